"""How a caller's `Prefer` is read, as RFC 7240 has it."""

import pytest

from aiserver.work.deferred import manner_of


@pytest.mark.parametrize(
    ("prefer", "respond_async", "wait"),
    [
        ("respond-async", True, None),
        ("Respond-Async", True, None),
        (' respond-async = "" ', True, None),
        ("respond-async;x=1", True, None),
        ("foo, respond-async", True, None),
        ("respond-async, wait=5", True, 5),
        ("wait=5", False, 5),
        ("WAIT=5", False, 5),
        ('wait = "5"', False, 5),
        ("wait=5;foo=bar", False, 5),
        ('wait=5 ; foo="a, wait=9"; bar', False, 5),
        ("wait=0", False, 0),
        ("wait=601", False, 600),
        ("wait=" + "9" * 5000, False, 600),
    ],
)
def test_preference_is_read(prefer: str, respond_async: bool, wait: float | None) -> None:
    manner = manner_of(prefer, None)
    assert (manner.respond_async, manner.wait) == (respond_async, wait)
    assert manner.asked


@pytest.mark.parametrize(("prefer", "wait"), [("wait=5, wait=0", 5), ("wait=0, Wait=5", 0)])
def test_first_of_two_counts(prefer: str, wait: float) -> None:
    assert manner_of(prefer, None).wait == wait


@pytest.mark.parametrize(
    "prefer",
    [
        *(
            "",
            ",,,",
            "wait",
            "wait=",
            "wait=abc",
            "wait=-1",
            "wait=1.5",
            "wait=\u0663",
            "wait=\u00b2",
        ),
        *("return=minimal", "respond-async=no", 'foo="a, respond-async"', "foo; respond-async"),
        *('foo="\\", wait=5"', 'foo="never closed, wait=5', "respond-asynchronously"),
    ],
)
def test_what_is_not_understood_is_ignored(prefer: str) -> None:
    assert not manner_of(prefer, None).asked
