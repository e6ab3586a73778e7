"""Calls made as jobs though somebody waits: by `Prefer`, or so that a repeated one runs once."""

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple

from aiserver.contract.errors import (
    ApiError,
    Conflict,
    Gone,
    InvalidRequest,
    StorageUnavailable,
    UpstreamTimedOut,
)
from aiserver.contract.operation import (
    Answer,
    Call,
    EventStream,
    Handler,
    JsonBytes,
    Operation,
    StreamForm,
    WithHeaders,
    operation_of,
)
from aiserver.contract.twins import status_url, twin_of
from aiserver.jobs.job import Job, State
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.records import BackgroundJobState, acknowledgement
from aiserver.jobs.shown import meta, why
from aiserver.jobs.store import Accepted
from aiserver.kit.db import StorageError
from aiserver.work.asked import NOTHING, Asked
from aiserver.work.links import Links
from aiserver.work.twins import QueueHandlers, replayed

# A comma in quotes parts no preferences.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_SECONDS = re.compile(r"\d+", re.ASCII)
_LONGEST_WAIT = 600.0
_LONGEST_KEY = 255
# As long as a direct call may take; who gave no `wait` of its own is told where the job is then.
_USUAL_WAIT = 600.0
# Proxies close what is silent for a minute, some for half of one.
_SILENCE_SECONDS = 15.0
_STILL_HERE = b": still here\n\n"

# How an operation's answer is told: the form of its stream, the pieces of one to a call with these
# members, and the whole of it, which goes by the call's path too.
Telling = tuple[
    StreamForm,
    Callable[[dict[str, Any], bytes], list[bytes]],
    Callable[[str, dict[str, Any], bytes], bytes],
]


class Manner(NamedTuple):
    """How the caller wants it done; `wait` in seconds, None where nothing was said of it.

    `job` counts where the call becomes one.
    """

    respond_async: bool = False
    wait: float | None = None
    job: Asked = NOTHING

    @property
    def asked(self) -> bool:
        """Whether the call must be a job."""
        return self.respond_async or self.wait is not None or self.job.idempotency_key is not None


def manner_of(
    prefer: str | None,
    idempotency_key: str | None,
    *,
    deadline: str | None = None,
    run_after: str | None = None,
    priority: str | None = None,
) -> Manner:
    """As `Prefer`, `Idempotency-Key` and the three Job headers say. Raises InvalidRequest."""
    if idempotency_key is not None and not 0 < len(idempotency_key) <= _LONGEST_KEY:
        raise InvalidRequest(f"An Idempotency-Key has 1 to {_LONGEST_KEY} characters.")
    preferences = _preferences(prefer) if prefer else {}
    seconds = preferences.get("wait", "")
    # As a float, since Python refuses to read thousands of digits as an int.
    wait = min(float(seconds), _LONGEST_WAIT) if _SECONDS.fullmatch(seconds) else None
    asked = Asked(idempotency_key, deadline, run_after, priority)
    return Manner(preferences.get("respond-async") == "", wait, asked)


def _preferences(prefer: str) -> dict[str, str]:
    """Values by name, "" where there is none: the first of a name counts, parameters do not."""
    said: dict[str, str] = {}
    for preference in _PREFERENCE.findall(prefer):
        name, _, value = preference.partition(";")[0].partition("=")
        said.setdefault(name.strip().lower(), value.strip().strip('"'))
    return said


class Deferred:
    """Runs a queueable operation as a job and answers as the operation would, once it can.

    `tellings` by operation; a stream is begun with comments when `silence` seconds were too few.
    A call without a `wait` of its own gets this one, in seconds; `links` signs addresses of files.
    """

    def __init__(
        self,
        queue: Queue,
        handlers: QueueHandlers,
        tellings: Mapping[str, Telling] | None = None,
        *,
        silence: float = _SILENCE_SECONDS,
        wait: float = _USUAL_WAIT,
        links: Links | None = None,
    ) -> None:
        self._queue = queue
        self._wait = wait
        self._links = links
        self._handlers = handlers
        self._tellings = tellings or {}
        self._silence = silence

    def handler_of(self, operation: Operation, manner: Manner) -> Handler | None:
        """What answers a call in this manner; None where the operation does so itself."""
        if operation.queues is operation or (operation.queues and manner.job != NOTHING):
            return self._handlers.asked(manner.job)
        queued = operation.queued
        if queued is None or not (manner.asked or queued.waited):
            return None
        return self.handler(manner)

    def handler(self, manner: Manner) -> Handler:
        """What answers a queueable operation in this manner; its calls bear their members."""

        async def answer(_: Any, call: Call) -> Answer:
            return await self._run(call, call.members, manner)

        return answer

    async def _run(self, call: Call, members: dict[str, Any], manner: Manner) -> Answer:
        operation = call.operation
        telling = self._telling(operation, manner) if members.get("stream") else None
        answer = None if manner.respond_async and manner.wait is None else EarlyAnswer()
        accepted = await self._handlers.defer(operation, members, call, manner.job, answer)
        try:
            if telling is not None:
                return await self._stream(call, accepted, telling, members)
            return await self._told(call, members, manner, accepted, answer)
        except ApiError as error:
            error.headers = replayed(accepted)
            raise

    async def _told(
        self,
        call: Call,
        members: dict[str, Any],
        manner: Manner,
        accepted: Accepted,
        answer: EarlyAnswer | None,
    ) -> Answer:
        operation, headers = call.operation, replayed(accepted)
        if manner.respond_async and manner.wait is None and not accepted.state.ended:
            return _later(operation, accepted, headers)
        wait = self._wait if manner.wait is None else manner.wait
        # A repeated call must find what this one is told, so that has to be on disk first.
        early = None if manner.job.idempotency_key else answer
        job = await self._queue.ended(accepted.id, seconds=wait, answer=early)
        if job is None and manner.wait is None:
            raise _not_ended(operation, accepted)
        if job is None:
            return _later(operation, accepted, headers)
        result = _result(job)
        if (told := self._tellings.get(operation.name)) is not None:
            _, _, whole = told
            result = whole(call.trace.path, members, result)
        if self._links is not None:
            result = await self._links.written(result, base=call.base)
        return WithHeaders(JsonBytes(result), headers)

    def _telling(self, operation: Operation, manner: Manner) -> Telling:
        telling = self._tellings.get(operation.name)
        if telling is None or manner.respond_async or manner.wait is not None:
            raise InvalidRequest(
                "A call with Prefer is not streamed; leave `stream` out, or follow its job at "
                "/api/jobs/{id}/events."
            )
        return telling

    async def _stream(
        self, call: Call, accepted: Accepted, telling: Telling, members: dict[str, Any]
    ) -> EventStream:
        # Most failures come early; until the stream has begun they have a status of their own.
        job = await self._queue.ended(accepted.id, seconds=self._silence)
        if job is not None:
            _result(job)
        form, pieces, _ = telling

        async def events() -> AsyncGenerator[bytes]:
            ended, until = job, time.monotonic() + _USUAL_WAIT
            try:
                while ended is None:
                    if self._queue.given_up or time.monotonic() >= until:
                        raise _not_ended(call.operation, accepted)
                    if form is StreamForm.SSE:
                        yield _STILL_HERE
                    ended = await self._queue.ended(accepted.id, seconds=self._silence)
                for piece in pieces(members, _result(ended)):
                    yield piece
            except StorageError as error:
                raise _noted(call, StorageUnavailable(retry_after=2)) from error
            except ApiError as error:
                _noted(call, error)
                raise
            call.trace.status = 200

        return EventStream(events(), lambda: None, form, replayed(accepted))


def _result(job: Job) -> bytes:
    """Raises what came instead of an answer."""
    if job.state is State.COMPLETED:
        if job.result is None:
            raise Gone("The answer is not kept any more; send the call with a new Idempotency-Key.")
        return job.result
    error = why(job)
    if job.state is State.CANCELLED:
        raise Conflict(error.message, code=error.error_code, meta=meta(job))
    raise _Failed(job)


def _noted(call: Call, error: ApiError) -> ApiError:
    """The error of a stream that has begun, for the call's history too."""
    trace = call.trace
    trace.status, trace.error, trace.message = error.http_status, error.error_reason, error.message
    return error


def _not_ended(operation: Operation, accepted: Accepted) -> UpstreamTimedOut:
    return UpstreamTimedOut(
        "The call has not ended yet and goes on as a job; ask for it by its refId.",
        reason="job_not_ended",
        meta=_ids(operation, accepted),
    )


class _Failed(ApiError):
    """The job failed."""

    def __init__(self, job: Job) -> None:
        error = why(job)
        super().__init__(error.message, code=error.error_code, reason="job_failed", meta=meta(job))
        self._status = job.error_status or 500

    @property
    def http_status(self) -> int:
        return self._status


def _later(
    operation: Operation, accepted: Accepted, headers: tuple[tuple[bytes, bytes], ...]
) -> Answer:
    twin = twin_of(operation.request)
    if twin is None:
        raise ApiError(f"{operation.name} cannot be queued.")
    answer = acknowledgement(
        operation_of(twin),
        job_id=accepted.id,
        ref_id=accepted.ref_id,
        state=BackgroundJobState(accepted.state.shown),
    )
    place = (b"Location", status_url(operation, accepted.ref_id).encode())
    return WithHeaders(answer, (*headers, place), status=202)


def _ids(operation: Operation, accepted: Accepted) -> Mapping[str, str]:
    return {
        "jobId": str(accepted.id),
        "refId": accepted.ref_id,
        "statusUrl": status_url(operation, accepted.ref_id),
    }
