"""Waiting jobs are counted against their bounds."""

import pytest

from aiserver.contract.errors import TooBusy
from aiserver.jobs.store import Bounds
from aiserver.jobs.store.depth import Depth


def test_queue_at_its_bound_is_too_busy() -> None:
    depth = Depth(Bounds(queued=2, queued_per_key=0, retry_after=9))
    depth.reserve(1)
    depth.reserve(2)
    with pytest.raises(TooBusy, match="2 jobs wait") as refused:
        depth.reserve(3)
    assert refused.value.retry_after == 9
    assert (depth.total, depth.room()) == (2, 0)


def test_key_at_its_bound_is_too_busy() -> None:
    depth = Depth(Bounds(queued=0, queued_per_key=1))
    depth.reserve(1)
    with pytest.raises(TooBusy, match="API key"):
        depth.reserve(1)
    depth.reserve(2)


def test_place_is_free_again_when_its_job_goes() -> None:
    depth = Depth(Bounds(queued=1))
    depth.reserve(1)
    depth.apply({1: -1})
    depth.reserve(2)
    assert (depth.of(1), depth.of(2)) == (0, 1)


def test_reset_counts_anew() -> None:
    depth = Depth(Bounds())
    depth.reserve(1)
    depth.reset({2: 3, 4: 1})
    assert (depth.total, depth.of(1), depth.of(2)) == (4, 0, 3)
