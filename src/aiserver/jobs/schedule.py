"""Work that recurs, and what became of it when it last ran."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import msgspec

from aiserver.jobs.records import ScheduledTask
from aiserver.kit.background import Background
from aiserver.kit.clock import Clock

Step = Callable[[], Awaitable[None]]


class Task(msgspec.Struct, kw_only=True):
    """`last_run` is when it last began; `last_error` the kind of error that it met, if any."""

    name: str
    seconds: float
    next_run: datetime
    last_run: datetime | None = None
    last_seconds: float | None = None
    last_error: str | None = None
    running: bool = False

    @property
    def last_status(self) -> str | None:
        """None before its first run."""
        if self.running:
            return "Started"
        if self.last_run is None:
            return None
        return "Completed" if self.last_error is None else "Failed"


class Schedule:
    """Everything that the server does again and again, in the order in which it was added."""

    def __init__(self, background: Background, clock: Clock) -> None:
        self._background = background
        self._clock = clock
        self._tasks: list[Task] = []

    @property
    def tasks(self) -> list[Task]:
        return list(self._tasks)

    def every(
        self, seconds: float, name: str, step: Step, *, soon: asyncio.Event | None = None
    ) -> None:
        """As `Background.every`, and kept account of."""
        task = Task(name=name, seconds=seconds, next_run=self._after(seconds))
        self._tasks.append(task)

        async def watched() -> None:
            await self._run(task, step)

        self._background.every(seconds, name, watched, soon=soon)

    async def _run(self, task: Task, step: Step) -> None:
        began = self._clock.monotonic()
        task.last_run, task.running, error = self._clock.now(), True, None
        try:
            await step()
        except Exception as failure:  # only noted here: who runs the loop logs it
            error = type(failure).__name__
            raise
        finally:
            task.running, task.last_error = False, error
            task.last_seconds = self._clock.monotonic() - began
            task.next_run = self._after(task.seconds)

    def _after(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=seconds)


def shown(tasks: list[Task]) -> list[ScheduledTask]:
    """As administrators see them."""
    return [
        ScheduledTask(
            id=number,
            name=task.name,
            interval=timedelta(seconds=task.seconds),
            request_type="CMD",
            command=task.name,
            request="",
            request_body="",
            last_run=task.last_run,
            last_duration=_lasted(task),
            last_status=task.last_status,
            last_error=task.last_error,
            next_run=None if task.running else task.next_run,
        )
        for number, task in enumerate(tasks, 1)
    ]


def _lasted(task: Task) -> timedelta | None:
    seconds = task.last_seconds
    return None if seconds is None else timedelta(milliseconds=round(seconds * 1000))
