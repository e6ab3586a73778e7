"""What is known of work that recurs."""

import asyncio
from datetime import timedelta

import pytest

from aiserver.jobs.schedule import Schedule, shown
from aiserver.kit.background import Background
from fakes.calls import NOVEMBER, StillClock


class Steps:
    """Work that a test lets go on, round by round."""

    def __init__(self, clock: StillClock) -> None:
        self._clock = clock
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> None:
        self.began.set()
        await self.go.wait()
        self.go.clear()
        self._clock.moment += timedelta(seconds=2)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


async def test_task_tells_what_became_of_it(clock: StillClock) -> None:
    background, steps = Background(), Steps(clock)
    schedule = Schedule(background, clock)
    schedule.every(0, "health checks", steps)
    [task] = schedule.tasks
    assert (task.last_status, task.last_run) == (None, None)
    await steps.began.wait()
    assert task.last_status == "Started"
    steps.began.clear()
    steps.go.set()
    await steps.began.wait()
    await background.stop()
    assert task.last_run == NOVEMBER + timedelta(seconds=2)
    assert task.last_seconds == 0


async def test_failure_is_noted_by_its_kind(clock: StillClock) -> None:
    background, steps = Background(), Steps(clock)
    schedule = Schedule(background, clock)
    schedule.every(0, "archive", steps)
    [task] = schedule.tasks
    steps.failure = OSError("/private/path")
    steps.go.set()
    await steps.began.wait()
    while task.running:
        await asyncio.sleep(0)
    await background.stop()
    assert (task.last_status, task.last_error) == ("Failed", "OSError")
    assert (task.last_seconds, task.next_run) == (2, clock.now())


async def test_tasks_are_shown_in_order(clock: StillClock) -> None:
    background = Background()
    schedule = Schedule(background, clock)
    for name in ("archive", "retention"):
        schedule.every(3600, name, Steps(clock))
    rows = shown(schedule.tasks)
    await background.stop()
    assert [(row.id, row.name, row.interval) for row in rows] == [
        (1, "archive", timedelta(hours=1)),
        (2, "retention", timedelta(hours=1)),
    ]
    assert schedule.tasks[0].next_run == NOVEMBER + timedelta(hours=1)


async def test_task_shows_how_it_went_and_when_it_runs_next(clock: StillClock) -> None:
    background, steps = Background(), Steps(clock)
    schedule = Schedule(background, clock)
    schedule.every(0, "archive", steps)
    [before] = shown(schedule.tasks)
    assert (before.last_status, before.last_duration, before.last_error) == (None, None, None)
    assert before.next_run == NOVEMBER
    await steps.began.wait()
    [during] = shown(schedule.tasks)
    assert (during.last_status, during.last_run, during.next_run) == ("Started", NOVEMBER, None)
    steps.failure = OSError("/private/path")
    steps.go.set()
    while schedule.tasks[0].running:
        await asyncio.sleep(0)
    [after] = shown(schedule.tasks)
    await background.stop()
    assert (after.last_status, after.last_error) == ("Failed", "OSError")
    assert after.last_duration == timedelta(seconds=2)
    assert after.next_run == clock.now()
