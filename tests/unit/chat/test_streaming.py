"""Events come out whole, however the bytes came in."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.chat import streaming
from aiserver.chat.streaming import EventSplitter, data_of, read_chunk, without_usage
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
    assert splitter.rest() == b""


def test_unfinished_event_is_kept_back() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == [b"data: 1"]
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


def test_chunk_tells_what_the_gateway_needs() -> None:
    chunk = read_chunk(b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null,"x":1}')
    assert (chunk.finished, chunk.failed, chunk.only_usage) == (True, False, False)
    chunk = read_chunk(b'{"choices":[],"usage":{"prompt_tokens":1}}')
    assert (chunk.finished, chunk.failed, chunk.only_usage) == (False, False, True)
    assert read_chunk(b'{"error":{"message":"x"}}').failed


@pytest.mark.parametrize("data", [b"{", b"[]", b"", b'{"choices":5}', b"\xff"])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read_chunk(data)


def test_usage_is_taken_out_and_nothing_else() -> None:
    data = b'{"id":"1","usage":null,"choices":[{"delta":{"a":1.50}}],"x":{"usage":1}}'
    assert without_usage(data) == b'{"id":"1","choices":[{"delta":{"a":1.50}}],"x":{"usage":1}}'
