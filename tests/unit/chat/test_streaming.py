"""Events come out whole, however the bytes came in."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.chat import streaming
from aiserver.chat.streaming import DONE, EventSplitter, as_events, data_of, without_usage
from aiserver.contract.errors import UpstreamFailed

STREAM = (
    b'data: {"a":"\xc3\xa9\xf0\x9f\x98\x80"}\n\n: a comment\n\ndata: 1\ndata: 2\n\n'
    b"event: x\r\ndata: 3\r\n\r\n\n\ndata: [DONE]\n\n"
)
EVENTS = [
    b'data: {"a":"\xc3\xa9\xf0\x9f\x98\x80"}',
    b": a comment",
    b"data: 1\ndata: 2",
    b"event: x\ndata: 3",
    b"data: [DONE]",
]


def pieces(cuts: list[int]) -> Iterator[bytes]:
    places = sorted({min(cut, len(STREAM)) for cut in cuts})
    yield from (STREAM[a:b] for a, b in zip([0, *places], [*places, len(STREAM)], strict=True))


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    splitter = EventSplitter()
    assert [event for piece in pieces(cuts) for event in splitter.feed(piece)] == EVENTS
    assert splitter.empty
    assert splitter.rest() == b""


def test_unfinished_event_is_kept_back() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == [b"data: 1"]
    assert not splitter.empty
    assert splitter.rest() == b"data: 2"


def test_event_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_EVENT", 100)
    splitter = EventSplitter()
    splitter.feed(b"x" * 100)
    with pytest.raises(UpstreamFailed, match="without an end"):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: 1", b"1"),
        (b"data:1", b"1"),
        (b"event: x\ndata: 1", b"1"),
        (b"data: 1\ndata: 2", b"1\n2"),
        (b": comment", None),
        (b"event: ping", None),
    ],
)
def test_data_is_found(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


def test_usage_is_taken_out_and_nothing_else() -> None:
    data = b'{"id":"1","usage":null,"choices":[{"delta":{"a":1.50}}],"x":{"usage":1}}'
    assert without_usage(data) == b'{"id":"1","choices":[{"delta":{"a":1.50}}],"x":{"usage":1}}'


ANSWER = (
    b'{"id":"1","object":"chat.completion","x":1.50,"usage":{"prompt_tokens":3},"choices":'
    b'[{"index":0,"finish_reason":"stop","message":{"content":"Hi","tool_calls":[{"id":"a"}]}}]}'
)


@pytest.mark.parametrize("with_usage", [False, True])
def test_whole_answer_becomes_a_stream(with_usage: bool) -> None:
    *events, done = as_events(ANSWER, with_usage=with_usage)
    assert done == DONE
    first, *last = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]
    assert (first["object"], first["x"]) == ("chat.completion.chunk", 1.5)
    [choice] = first["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["delta"] == {"content": "Hi", "tool_calls": [{"id": "a", "index": 0}]}
    assert "usage" not in first
    assert [(chunk["choices"], chunk["usage"]) for chunk in last] == (
        [([], {"prompt_tokens": 3})] if with_usage else []
    )
