"""Answers what callers ask of their jobs."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote

import msgspec

from aiserver.contract.errors import Conflict, NotFound, UpstreamTimedOut
from aiserver.contract.operation import Call, EventStream, Handler
from aiserver.jobs.asked import asked_for, not_found, scope_of
from aiserver.jobs.event_stream import MOST_SECONDS, events_of
from aiserver.jobs.job import Job, State
from aiserver.jobs.links import Links
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import ArtifactOutput, BackgroundJobBase, BackgroundJobState, TextOutput
from aiserver.jobs.shown import (
    AnswerOf,
    JobFailed,
    error_of,
    meta,
    milliseconds,
    record,
    state_of,
    status_of,
    unknown,
)
from aiserver.jobs.status_operations import (
    CancelJob,
    CancelJobResponse,
    GetArtifactGenerationStatus,
    GetArtifactGenerationStatusResponse,
    GetJobEvents,
    GetOpenAiChat,
    GetOpenAiChatResponse,
    GetTextGenerationStatus,
    GetTextGenerationStatusResponse,
    StatusRequest,
    WaitForOpenAiChat,
)
from aiserver.jobs.store import CancelOutcome
from aiserver.kit.clock import Clock

LONGEST_WAIT = 120.0
_OF_RESULTS = (GetArtifactGenerationStatus.__name__, GetTextGenerationStatus.__name__)
T = TypeVar("T", ArtifactOutput, TextOutput)


class StatusHandlers:
    """`answer_of` names what an operation answers, `statuses` which call tells of its jobs.

    A wait for a job lasts `wait` seconds at most, a stream of its events `listen`. `links` signs
    the addresses of results.
    """

    def __init__(
        self,
        queue: Queue,
        clock: Clock,
        *,
        answer_of: AnswerOf = unknown,
        wait: float = LONGEST_WAIT,
        listen: float = MOST_SECONDS,
        statuses: Mapping[str, str] | None = None,
        links: Links | None = None,
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._answer_of = answer_of
        self._wait = wait
        self._listen = listen
        self._statuses = statuses or {}
        self._links = links

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            GetArtifactGenerationStatus: self.artifacts,
            GetTextGenerationStatus: self.texts,
            GetOpenAiChat: self.chat,
            WaitForOpenAiChat: self.wait,
            CancelJob: self.cancel,
            GetJobEvents: self.events,
        }

    async def artifacts(
        self, request: GetArtifactGenerationStatus, call: Call
    ) -> GetArtifactGenerationStatusResponse:
        job = await job_told_by(self._queue, call, request, self._statuses)
        results = _results(job, ArtifactOutput)
        for output in results or ():
            if self._links is not None and output.url is not None:
                output.url = await self._links.of(output.url, base=call.base)
        return GetArtifactGenerationStatusResponse(
            job_id=job.id,
            ref_id=job.ref_id,
            job_state=state_of(job),
            status=status_of(job),
            results=results,
            duration=_duration(job),
        )

    async def texts(
        self, request: GetTextGenerationStatus, call: Call
    ) -> GetTextGenerationStatusResponse:
        job = await job_told_by(self._queue, call, request, self._statuses)
        return GetTextGenerationStatusResponse(
            job_id=job.id,
            ref_id=job.ref_id,
            job_state=state_of(job),
            status=status_of(job),
            results=_results(job, TextOutput),
            duration=_duration(job),
        )

    async def chat(self, request: GetOpenAiChat, call: Call) -> GetOpenAiChatResponse:
        job = await asked_for(self._queue, call, id=request.id, ref_id=request.ref_id)
        return self._in_full(job)

    async def wait(self, request: WaitForOpenAiChat, call: Call) -> GetOpenAiChatResponse:
        job = await asked_for(self._queue, call, id=request.id, ref_id=request.ref_id)
        if not job.state.ended:
            ended = await self._queue.ended(job.id, seconds=self._wait)
            if ended is None:
                raise UpstreamTimedOut(
                    "The job has not ended yet; it goes on. Ask again with its refId.",
                    reason="job_not_ended",
                    meta={**meta(job), "statusUrl": _url(job)},
                )
            job = ended
        return self._in_full(job)

    async def cancel(self, request: CancelJob, call: Call) -> CancelJobResponse:
        job = await asked_for(self._queue, call, id=request.id, ref_id=request.ref_id)
        cancelled = await self._queue.cancel([job.id], key_id=scope_of(call))
        outcome = cancelled.outcomes.get(job.id)
        # A running one may have stopped already, or ended before it could.
        job = await self._queue.store.find(id=job.id)
        if outcome is None or job is None:
            raise not_found()
        if outcome is CancelOutcome.ENDED:
            raise Conflict(
                f"The job has ended and stays as it is: {job.state.shown}.", meta=meta(job)
            )
        state = BackgroundJobState.CANCELLED
        if outcome is CancelOutcome.ASKED:
            state = state_of(job)
        return CancelJobResponse(job_id=job.id, ref_id=job.ref_id, job_state=state)

    async def events(self, request: GetJobEvents, call: Call) -> EventStream:
        job = await asked_for(self._queue, call, id=request.id, ref_id=request.ref_id)
        events = events_of(
            self._queue,
            job.id,
            self._clock,
            seconds=self._listen,
            links=self._links,
            base=call.base,
        )
        return EventStream(_to_its_end(events, call), lambda: None)

    def _in_full(self, job: Job) -> GetOpenAiChatResponse:
        now = milliseconds(self._clock.now())
        return GetOpenAiChatResponse(
            result=record(BackgroundJobBase, job, now=now, answer_of=self._answer_of),
            response_status=error_of(job),
        )


async def job_told_by(
    queue: Queue, call: Call, request: StatusRequest, statuses: Mapping[str, str]
) -> Job:
    """The job that this status call names. Raises NotFound, also where another call tells of it."""
    job = await asked_for(queue, call, id=request.job_id, ref_id=request.ref_id)
    own = statuses.get(job.operation, _OF_RESULTS[0])
    calls = _OF_RESULTS if own in _OF_RESULTS else (own,)
    if call.operation.name not in calls:
        raise NotFound(
            f"Job not found. This one is of {job.operation}; ask for it by {' or '.join(calls)}."
        )
    return job


async def _to_its_end(events: AsyncGenerator[bytes], call: Call) -> AsyncGenerator[bytes]:
    """The same events; a stream that its reader left is no answer of status 200."""
    async with aclosing(events):
        async for event in events:
            yield event
    call.trace.status = 200


def _results(job: Job, item: type[T]) -> list[T] | None:
    """None until the job is completed. Raises JobFailed."""
    if job.state in (State.FAILED, State.CANCELLED):
        raise JobFailed(job)
    if job.state is not State.COMPLETED or job.result is None:
        return None
    members = msgspec.json.decode(job.result, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(members.get("results", b"null"), type=list[item] | None)


def _url(job: Job) -> str:
    return f"/api/{GetOpenAiChat.__name__}?RefId={quote(job.ref_id, safe='')}"


def _duration(job: Job) -> timedelta | None:
    if job.state is not State.COMPLETED or job.started is None or job.ended is None:
        return None
    return timedelta(milliseconds=max(job.ended - job.started, 0))
