"""The ring is bounded in calls and in bytes, and counts what it cannot hold."""

from pathlib import Path

import pytest

from aiserver.history.ring import DISCARDED, RECORDED, WRITTEN, Progress, Ring
from fakes.calls import ended_call, ended_calls


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "progress")


def ring_of(progress: Progress, *, bound: int = 10, room: int = 1000, longest: int = 100) -> Ring:
    return Ring(progress.slots, bound=bound, room=room, longest=longest)


def test_full_ring_drops_and_counts(progress: Progress) -> None:
    ring = ring_of(progress)
    calls = ended_calls(12)
    assert [ring.add(call) for call in calls] == [True] * 10 + [False] * 2
    assert (len(ring), ring.dropped, progress.slots[RECORDED]) == (10, 2, 10)
    assert ring.take(4) == calls[:4]
    assert ring.add(calls[11])
    assert ring.take(100) == [*calls[4:10], calls[11]]


def test_shut_ring_takes_nothing(progress: Progress) -> None:
    ring = ring_of(progress)
    ring.shut()
    assert not ring.add(ended_call())


def test_long_prompt_is_cut_and_short_room_keeps_the_call_without(progress: Progress) -> None:
    ring = ring_of(progress, room=250)
    calls = [ended_call(prompt=b"x" * 5000, answer=b"y") for _ in range(3)]
    for call in calls:
        assert ring.add(call)
    assert [call.prompt for call in calls] == [b"x" * 100, b"x" * 100, None]
    assert ring.cut == 1
    ring.take(3)
    later = ended_call(prompt=b"z")
    ring.add(later)
    assert (later.prompt, ring.cut) == (b"z", 1)


def test_counters_outlive_the_process(progress: Progress, tmp_path: Path) -> None:
    run = progress.run
    for slot, count in ((RECORDED, 9), (WRITTEN, 5), (DISCARDED, 1)):
        progress.slots[slot] = count
    after = Progress(tmp_path / "progress")
    assert after.last_run == (run, 9, 5, 1)
    assert after.slots[RECORDED] == 0


def test_counters_without_a_file_are_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    progress = Progress(tmp_path / "file" / "progress")
    assert progress.last_run is None
    progress.slots[RECORDED] += 1
    assert progress.slots[RECORDED] == 1
