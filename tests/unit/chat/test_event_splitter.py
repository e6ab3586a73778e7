"""A splitter of events does the same however it is fed, and no more work than there are bytes."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiserver.chat import streaming
from aiserver.chat.streaming import EventSplitter
from aiserver.contract.errors import UpstreamFailed

PIECES = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"\r", b"data: 1", b"x", b"\n\n", b": c", b"\r\n\r\n"]),
    max_size=40,
)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def split_at_once(stream: bytes) -> tuple[list[bytes], bytes]:
    """Its events and the rest of it, by the plainest rule."""
    *events, rest = stream.replace(b"\r\n", b"\n").split(b"\n\n")
    return [event.lstrip(b"\n") for event in events if event.strip()], rest


@UNHURRIED
@given(PIECES, st.lists(st.integers(0, 200), max_size=60))
def test_cuts_change_nothing(words: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(words)
    places = sorted({min(cut, len(stream)) for cut in cuts})
    splitter = EventSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *places], [*places, len(stream)], strict=True):
        found += splitter.feed(stream[start:end])
    events, rest = split_at_once(stream)
    assert found == events
    assert splitter.rest() == rest.strip()
    assert splitter.empty or stream


@UNHURRIED
@given(PIECES)
def test_nothing_waits_after_a_whole_event(words: list[bytes]) -> None:
    splitter = EventSplitter()
    splitter.feed(b"".join(words).replace(b"\r", b"") + b"x\n\n")
    assert splitter.empty
    assert splitter.rest() == b""


def test_empty_data_changes_nothing() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"") == []
    assert splitter.empty


def test_huge_event_in_small_pieces_is_read_in_its_own_time() -> None:
    piece, pieces = b"x" * 64, 100_000
    splitter = EventSplitter()
    began = time.process_time()
    for _ in range(pieces):
        splitter.feed(piece)
    assert splitter.feed(b"\n\n") == [piece * pieces]
    # Copying what waits with every piece would move 320 GB.
    assert time.process_time() - began < 5


def test_event_without_an_end_is_bounded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_EVENT", 100)
    splitter = EventSplitter()
    for _ in range(100):
        splitter.feed(b"x")
    with pytest.raises(UpstreamFailed, match="without an end"):
        splitter.feed(b"x")


def test_bound_is_for_what_waits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MAX_EVENT", 10)
    splitter = EventSplitter()
    assert splitter.feed(b"x" * 50 + b"\n\n" + b"y" * 10) == [b"x" * 50]
    with pytest.raises(UpstreamFailed):
        splitter.feed(b"y")
