"""Follows a job from outside the server that runs it, until it ends."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aiserver.cli.console import CommandError, say
from aiserver.cli.jobs_view import seconds
from aiserver.jobs.job import Job, State
from aiserver.jobs.shown import duration_ms, error_of, maybe_moment
from aiserver.jobs.store import JobStore

_LOOK_SECONDS = 0.25


class Seen(NamedTuple):
    """A job at one look; `news` is what was logged since the last, `position` counts from 1."""

    job: Job
    position: int | None
    news: str

    @property
    def stage(self) -> tuple[State, int, str | None, int | None]:
        """What gets a line of its own."""
        return self.job.state, self.job.attempt, self.job.worker, self.position


async def _pause() -> None:
    await asyncio.sleep(_LOOK_SECONDS)


async def changes(
    store: JobStore, id: int, *, pause: Callable[[], Awaitable[None]] = _pause
) -> AsyncGenerator[Seen]:
    """The job as it stands, then each time it changed, until it has ended or is not there."""
    told: Seen | None = None
    while (job := await store.find(id=id)) is not None:
        known = len(told.job.logs) if told else 0
        seen = Seen(job, await store.position(id), job.logs[known:])
        if told is None or seen.news or _shown(seen) != _shown(told):
            told = seen
            yield seen
        if job.state.ended:
            return
        await pause()


async def follow_job(store: JobStore, id: int, *, as_json: bool) -> Job:
    """Prints what happens to the job; how it ended. Raises CommandError when it is deleted."""
    last: Job | None = None
    tell = _tell_json if as_json else Teller().tell
    async with aclosing(changes(store, id)) as seen:
        async for each in seen:
            last = each.job
            tell(each)
    if last is None or not last.state.ended:
        raise CommandError(f"Job {id} was deleted.")
    return last


class Teller:
    """Says lines on stdout, and on a terminal keeps a bar below them while the job runs."""

    def __init__(self) -> None:
        self._stage: object = None
        self._far: object = None
        self._console = Console(stderr=True)
        # What goes to a file is not to be drawn above the bar.
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=None)

    def tell(self, seen: Seen) -> None:
        if seen.job.state is State.STARTED and self._console.is_terminal:
            self._draw(seen.job)
        else:
            self._bar.stop()
        if seen.news:
            say(seen.news.rstrip("\n"))
        if seen.stage != self._stage:
            say(_line(seen))
        elif not self._console.is_terminal and _far(seen) != self._far:
            say(_progress(seen.job))
        self._stage, self._far = seen.stage, _far(seen)

    def _draw(self, job: Job) -> None:
        known = job.progress is not None
        self._bar.update(
            self._task,
            description=_progress(job),
            total=1.0 if known else None,
            completed=job.progress or 0.0,
        )
        self._bar.start()


def _tell_json(seen: Seen) -> None:
    """A line of JSON for each change."""
    job = seen.job
    error = error_of(job)
    said: dict[str, Any] = {
        "id": job.id,
        "refId": job.ref_id,
        "state": job.state.shown,
        "attempt": job.attempt,
        "position": seen.position,
        "provider": job.worker,
        "progress": job.progress,
        "status": job.status,
        "logs": seen.news or None,
        "errorCode": job.error_code if error is None else error.error_code,
        "errorMessage": job.error_message if error is None else error.message,
    }
    sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
    sys.stdout.flush()


def _shown(seen: Seen) -> tuple[object, ...]:
    return *seen.stage, *_far(seen)


def _far(seen: Seen) -> tuple[float | None, str | None]:
    return seen.job.progress, seen.job.status


def _line(seen: Seen) -> str:
    job = seen.job
    at = f" at {job.worker}" if job.worker else ""
    if job.state.ended:
        took = "" if job.started is None else f" after {seconds(duration_ms(job, 0))}"
        error = error_of(job)
        return f"{job.state.shown}{took}{at}{'' if error is None else f': {error.message}'}"
    if job.state is State.STARTED:
        return f"Started, attempt {job.attempt} of {job.max_attempts}{at}"
    after = maybe_moment(job.run_after)
    when = f", place {seen.position} in line" if seen.position else ""
    if job.state is State.SCHEDULED and after is not None:
        when = f", not before {after:%Y-%m-%dT%H:%M:%SZ}"
    failed = f"; attempt {job.attempt} failed: {job.error_message}" if job.error_message else ""
    return f"Queued{when}{failed}"


def _progress(job: Job) -> str:
    said = [] if job.progress is None else [f"{job.progress:.0%}"]
    return " ".join([*said, job.status or job.state.shown])
