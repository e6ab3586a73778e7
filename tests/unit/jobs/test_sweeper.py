"""What falls due is done in its moment, and leases are spared when nobody could extend them."""

import asyncio
from datetime import timedelta

import pytest

from aiserver.jobs.queue import Queue
from aiserver.jobs.store import Swept
from aiserver.jobs.sweeper import AWAY_SECONDS, SPARED_SECONDS, SWEEP_SECONDS, Sweeper
from aiserver.kit.db import StorageError
from fakes.calls import StillClock

NOTHING = Swept([], 0, 0, None)


class Rounds(Queue):
    """Answers each sweep with what a test says."""

    def __init__(self) -> None:
        self.spared: list[bool] = []
        self.answers: list[Swept] = []
        self.away = False

    async def sweep(self, *, spare_leases: bool = False) -> Swept:
        if self.away:
            raise StorageError("away")
        self.spared.append(spare_leases)
        return self.answers.pop(0) if self.answers else NOTHING


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def queue() -> Rounds:
    return Rounds()


@pytest.fixture
def sweeper(queue: Rounds, clock: StillClock) -> Sweeper:
    return Sweeper(queue, clock)


def due_in(clock: StillClock, milliseconds: int) -> Swept:
    return Swept([], 0, 0, round(clock.now().timestamp() * 1000) + milliseconds)


async def test_next_round_is_when_the_next_thing_falls_due(
    sweeper: Sweeper, queue: Rounds, clock: StillClock
) -> None:
    queue.answers.append(due_in(clock, 1))
    await sweeper.round()
    await asyncio.wait_for(sweeper.soon.wait(), 10)


async def test_what_is_planned_meanwhile_is_looked_for(
    sweeper: Sweeper, queue: Rounds, clock: StillClock
) -> None:
    queue.answers.append(due_in(clock, 1_999))
    await sweeper.round()
    sweeper.planned()
    await asyncio.wait_for(sweeper.soon.wait(), 1.5)


async def test_round_does_all_that_is_due(sweeper: Sweeper, queue: Rounds) -> None:
    queue.answers = [Swept([], 1, 0, None, more=True)] * 3
    await sweeper.round()
    assert len(queue.spared) == 4


async def test_leases_are_spared_after_the_store_was_away(
    sweeper: Sweeper, queue: Rounds, clock: StillClock
) -> None:
    queue.away = True
    while clock.monotonic() - StillClock().monotonic() < AWAY_SECONDS:
        clock.moment += timedelta(seconds=SWEEP_SECONDS)
        with pytest.raises(StorageError):
            await sweeper.round()
    queue.away = False
    for _ in range(round(SPARED_SECONDS / SWEEP_SECONDS) + 2):
        clock.moment += timedelta(seconds=SWEEP_SECONDS)
        await sweeper.round()
    assert queue.spared == [True] * round(SPARED_SECONDS / SWEEP_SECONDS) + [False] * 2


async def test_leases_count_while_rounds_come_in_time(
    sweeper: Sweeper, queue: Rounds, clock: StillClock
) -> None:
    for _ in range(5):
        clock.moment += timedelta(seconds=AWAY_SECONDS)
        await sweeper.round()
    assert not any(queue.spared)
