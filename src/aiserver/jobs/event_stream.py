"""What happens to a job, as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from msgspec.structs import replace

from aiserver.contract.errors import StorageUnavailable
from aiserver.jobs.job import WAITING, Job, State
from aiserver.jobs.links import Links
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import JobEvent
from aiserver.jobs.shown import error_of, state_of, status_of
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError

# A client that still wants to know after that connects again.
MOST_SECONDS = 3600.0
# Proxies close what is silent for a minute, some for half of one.
_SILENCE_SECONDS = 15.0
_STILL_HERE = b": still here\n\n"


class Teller:
    """Says of one job what is new since it was last told."""

    def __init__(self) -> None:
        self._told: Job | None = None
        self._position: int | None = None

    def tell(self, job: Job, position: int | None) -> list[bytes]:
        """The events to send, none when nothing changed; `position` counts from 0."""
        before, moved = self._told, position != self._position
        self._told, self._position = job, position
        logs = job.logs[len(before.logs) if before else 0 :] or None
        if before is None or _stage(before) != _stage(job):
            return self._come_to(job, position, logs)
        if moved and job.state in WAITING:
            return [_event("queued", _said(job, position=position, logs=logs))]
        if logs or (before.progress, before.status) != (job.progress, job.status):
            return [_event("progress", _said(job, position=position, logs=logs))]
        return []

    def _come_to(self, job: Job, position: int | None, logs: str | None) -> list[bytes]:
        if not job.state.ended:
            name = "started" if job.state is State.STARTED else "queued"
            return [_event(name, _said(job, position=position, logs=logs))]
        events: list[bytes] = []
        if job.state is State.COMPLETED and job.result is not None:
            events.append(_event("output", _said(job, result=msgspec.Raw(job.result))))
        return [*events, _event("finished", _said(job, logs=logs))]


async def events_of(
    queue: Queue,
    id: int,
    clock: Clock,
    *,
    seconds: float = MOST_SECONDS,
    links: Links | None = None,
    base: str = "",
) -> AsyncGenerator[bytes]:
    """Until the job or the time has ended. Raises StorageUnavailable.

    `links` signs the addresses of results, `base` is what the caller reached the server by.
    """
    teller, spoke = Teller(), clock.monotonic()
    try:
        async with aclosing(queue.follow(id, seconds=seconds)) as jobs:
            async for job in jobs:
                if links is not None and job.result is not None:
                    job = replace(job, result=await links.written(job.result, base=base))
                events = teller.tell(job, await _position(queue, job))
                now = clock.monotonic()
                if not events and now - spoke >= _SILENCE_SECONDS:
                    events = [_STILL_HERE]
                if events:
                    spoke = now
                    yield b"".join(events)
    except StorageError as error:
        raise StorageUnavailable(retry_after=2) from error


async def _position(queue: Queue, job: Job) -> int | None:
    if job.state is not State.QUEUED:
        return None
    place = await queue.store.position(job.id)
    return None if place is None else place - 1


def _stage(job: Job) -> tuple[str, int]:
    """Another attempt is another stage, so that a caller sees it begin."""
    return job.state.shown, job.attempt


def _said(
    job: Job,
    *,
    position: int | None = None,
    logs: str | None = None,
    result: msgspec.Raw | None = None,
) -> JobEvent:
    return JobEvent(
        job_id=job.id,
        ref_id=job.ref_id,
        job_state=state_of(job),
        position=position,
        progress=job.progress,
        status=status_of(job),
        logs=logs,
        result=result,
        response_status=error_of(job),
    )


def _event(name: str, said: JobEvent) -> bytes:
    # A stored answer may be spread over lines, each of which needs the field's name.
    data = b"\ndata: ".join(msgspec.json.encode(said).splitlines())
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
