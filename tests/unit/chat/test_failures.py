"""What an upstream said is bounded, and its secrets can still be found in it."""

import pytest

from aiserver.chat.failures import MOST_DETAIL, ErrorAnswer, Failure, refused, shortened

SECRET = "sk-canary-0123456789abcdefghij"


@pytest.mark.parametrize("place", range(MOST_DETAIL - len(SECRET) + 1, MOST_DETAIL))
@pytest.mark.parametrize("before", [" ", '"key":"', "key="])
def test_secret_at_the_cut_goes_whole(place: int, before: str) -> None:
    text = ("no " * MOST_DETAIL)[: place - len(before)] + before + SECRET + " more"
    cut = shortened(text)
    assert len(cut) <= MOST_DETAIL
    assert "sk-" not in cut
    assert text.startswith(cut)


@pytest.mark.parametrize("word", ["é", "字", "words ", '"a","b",'])
def test_text_keeps_what_is_allowed_of_it(word: str) -> None:
    assert shortened(word * 40) == word * 40
    assert len(shortened(word * MOST_DETAIL)) > MOST_DETAIL - len(word) - 1


def test_word_that_ends_at_the_cut_is_kept() -> None:
    text = "a" * (MOST_DETAIL - 4) + " end"
    assert shortened(text) == text
    assert shortened(text + " of it") == text


def test_endless_word_says_nothing_of_itself() -> None:
    failure: Failure = refused("fake", 400, ErrorAnswer("a" * 10_000))
    assert failure.error.message == "Provider fake refused the request."
    assert failure.detail == ""
