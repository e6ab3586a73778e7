"""Streams of OpenAI's dialect go through whole; what the gateway must know of them is read."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.chat import streaming
from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.openai import OpenAiAdapter, OpenAiReader
from aiserver.chat.failures import Failure
from aiserver.chat.flavours import PLAIN, flavour_of
from aiserver.chat.ordinary import ordinary_usage
from aiserver.chat.usage import usage_of
from aiserver.contract.trace import Usage
from aiserver.providers.health import FailureKind

ROLE = {"id": "1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
USAGE = {"id": "1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
LAST = {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None}
DONE = b"data: [DONE]\n\n"
COUNTED = Usage(prompt=3, completion=2)


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": {"content": text}}], **more}


def event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(event(chunk) for chunk in chunks)


def reader(*, strip_usage: bool = True, kind: str | None = None) -> OpenAiReader:
    return OpenAiReader("p", flavour_of(kind) if kind else PLAIN, strip_usage=strip_usage)


WHOLE = stream(ROLE, says("é😀", usage=None), says("b"), LAST, USAGE) + DONE
STRIPPED = (
    stream(ROLE, says("é😀"), says("b"), {k: v for k, v in LAST.items() if k != "usage"}) + DONE
)


@pytest.mark.parametrize("strip", [True, False])
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=20))
def test_any_split_gives_the_same_stream(strip: bool, cuts: list[int]) -> None:
    reading = reader(strip_usage=strip)
    places = [0, *sorted(cuts), len(WHOLE)]
    given = b"".join(reading.feed(WHOLE[a:b]) for a, b in pairwise(places))
    assert given == (STRIPPED if strip else WHOLE)
    assert (reading.finished, reading.usage, reading.failure) == (True, COUNTED, None)
    assert reading.end() == b""


def test_text_that_looks_like_usage_stays() -> None:
    chunks = [says("a"), says('x,"usage":null,"y": "usage" [DONE] "error"'), says("b")]
    reading = reader()
    assert b"".join(reading.feed(event(chunk)) for chunk in chunks) == stream(*chunks)
    assert not reading.finished


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"content": " "},
        {"reasoning_content": "a"},
        {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
        {"refusal": "no"},
    ],
)
def test_first_word_begins_the_answer(delta: dict[str, Any]) -> None:
    reading = reader()
    reading.feed(event({"choices": [{"delta": delta}]}))
    assert reading.begun


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"role": "assistant"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"a": None},
    ],
)
def test_preamble_does_not_begin_the_answer(delta: dict[str, Any]) -> None:
    reading = reader()
    assert reading.feed(b": connected\n\n") == b": connected\n\n"
    assert reading.feed(event({"choices": [{"delta": delta}]}))
    assert not reading.begun


def test_error_before_the_first_word_costs_nothing() -> None:
    reading = reader()
    assert reading.feed(stream(ROLE)) == stream(ROLE)
    assert reading.feed(event({"error": {"message": "no room", "code": 503}})) == b""
    assert reading.failure is not None
    failure = reading.failure
    assert (failure.kind, failure.status, failure.lost) == (FailureKind.OVERLOADED, 503, False)
    assert failure.detail == "no room"
    assert not reading.begun


def test_error_later_may_have_cost_something() -> None:
    reading = reader()
    given = reading.feed(stream(says("a"), {"error": {"message": "gone"}}, says("never given")))
    assert given == stream(says("a"))
    assert reading.failure is not None
    assert reading.failure.lost


def test_last_words_without_done_end_the_stream() -> None:
    reading = reader()
    reading.feed(stream(says("a"), LAST, USAGE))
    assert not reading.finished
    assert reading.end() == DONE
    assert (reading.finished, reading.usage) == (True, COUNTED)


@pytest.mark.parametrize("rest", [b"", b'data: {"choices"'])
def test_end_in_the_middle_is_a_failure(rest: bytes) -> None:
    reading = reader()
    reading.feed(stream(says("a")) + rest)
    assert reading.end() == b""
    assert reading.failure is not None
    assert reading.failure.kind is FailureKind.BROKEN
    assert reading.failure.lost


def test_cut_event_after_the_last_words_is_a_failure() -> None:
    reading = reader()
    reading.feed(stream(says("a"), LAST) + b'data: {"choices":[],"usa')
    assert reading.end() == b""
    assert reading.failure is not None


@pytest.mark.parametrize("data", [b"{", b"[]", b"", b'{"choices":5}', b"\xff"])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    reading = reader()
    assert reading.feed(b"data: " + data + b"\n\n") == b""
    assert reading.failure is not None
    assert reading.failure.kind is FailureKind.BROKEN
    assert reading.failure.error.http_status == 502


def test_event_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_EVENT", 100)
    reading = reader()
    reading.feed(stream(says("a")))
    assert reading.feed(b"data: " + b"x" * 100) == b""
    assert reading.failure is not None


def test_nothing_after_done_is_given_out() -> None:
    reading = reader()
    assert reading.feed(stream(says("a")) + DONE + stream(says("b"))) == stream(says("a")) + DONE
    assert reading.finished


def test_usage_of_groq_is_found_in_its_own_place() -> None:
    reading = reader()
    said = says("a", x_groq={"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    reading.feed(stream(said, LAST) + DONE)
    assert reading.usage == COUNTED


CHAT = Chat(members={}, model="m", stream=False, wants_usage=False, request_id="r", created=0)


def test_whole_answer_goes_on_as_it_came() -> None:
    body = b'{ "choices": [{"message": {"content": "\\u00e9"}}], "x": 1.50 }'
    answered = OpenAiAdapter().answer(body, CHAT, provider="p")
    assert (answered.body, answered.usage) == (body, None)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error": {"message": "busy", "code": 503}}', FailureKind.OVERLOADED),
        (b'{"error": {"message": "slow down", "code": 429}}', FailureKind.LIMITED),
        (b'{"object": "list"}', FailureKind.BROKEN),
        (b"<html>", FailureKind.BROKEN),
        (b"", FailureKind.BROKEN),
    ],
)
def test_answer_of_status_200_may_be_none(body: bytes, kind: FailureKind) -> None:
    with pytest.raises(Failure) as raised:
        OpenAiAdapter().answer(body, CHAT, provider="p")
    assert raised.value.kind is kind


COUNTS = st.none() | st.integers(-2, 2_000_000_000)
DETAILS = st.none() | st.fixed_dictionaries(
    {}, optional={"cached_tokens": COUNTS, "reasoning_tokens": COUNTS, "cache_write_tokens": COUNTS}
)
USAGES = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS},
    optional={
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
        "cost": st.none() | st.floats(0, 1),
        "cached_tokens": COUNTS,
    },
)


@given(
    usage=USAGES, total=st.booleans(), more=st.sampled_from([{}, {"x_groq": {}}, {"error": None}])
)
def test_both_readings_of_an_answer_agree(
    usage: dict[str, Any] | None, total: bool, more: dict[str, Any]
) -> None:
    if usage is not None and total:
        usage["total_tokens"] = (usage["prompt_tokens"] or 0) + (usage["completion_tokens"] or 0)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "a", "content": "b"}}
    body = json.dumps({"choices": [choice], "usage": usage, **more}).encode()
    quick = ordinary_usage(body)
    assert quick is None or quick == usage_of(body)
