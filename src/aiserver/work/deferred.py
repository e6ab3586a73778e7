"""Calls made as jobs though somebody waits: by `Prefer`, or so that a repeated one runs once."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.errors import ApiError, Conflict, InvalidRequest, UpstreamTimedOut
from aiserver.contract.operation import (
    Answer,
    Call,
    Handler,
    JsonBytes,
    Operation,
    WithHeaders,
    operation_of,
)
from aiserver.contract.twins import status_url, twin_of
from aiserver.jobs.job import Job, State
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import BackgroundJobState, acknowledgement
from aiserver.jobs.shown import meta, why
from aiserver.jobs.store import Accepted
from aiserver.work.twins import QueueHandlers

_WAIT = re.compile(r"\s*wait\s*=\s*\"?(\d{1,5})\"?\s*", re.IGNORECASE)
_LONGEST_WAIT = 600
_LONGEST_KEY = 255
# As long as a direct call may take; who gave no `wait` of its own is told where the job is then.
_USUAL_WAIT = 600.0


class Manner(NamedTuple):
    """How the caller wants it done; `wait` in seconds, None where nothing was said of it."""

    respond_async: bool = False
    wait: float | None = None
    idempotency_key: str | None = None

    @property
    def asked(self) -> bool:
        """Whether the call must be a job."""
        return self != _DIRECT


_DIRECT = Manner()


def manner_of(prefer: str | None, idempotency_key: str | None) -> Manner:
    """As the headers `Prefer` and `Idempotency-Key` say. Raises InvalidRequest."""
    if prefer is None and idempotency_key is None:
        return _DIRECT
    if idempotency_key is not None and not 0 < len(idempotency_key) <= _LONGEST_KEY:
        raise InvalidRequest(f"An Idempotency-Key has 1 to {_LONGEST_KEY} characters.")
    respond_async, wait = False, None
    for preference in (prefer or "").split(","):
        if preference.strip().lower() == "respond-async":
            respond_async = True
        elif (found := _WAIT.fullmatch(preference)) is not None:
            wait = float(min(int(found[1]), _LONGEST_WAIT))
    return Manner(respond_async, wait, idempotency_key)


class Deferred:
    """Runs a queueable operation as a job and answers as the operation would, once it can."""

    def __init__(self, queue: Queue, handlers: QueueHandlers) -> None:
        self._queue = queue
        self._handlers = handlers

    def handler(self, manner: Manner) -> Handler:
        """What answers a queueable operation in this manner; its calls bear their members."""

        async def answer(_: Any, call: Call) -> Answer:
            return await self._run(call, call.members, manner)

        return answer

    async def _run(self, call: Call, members: dict[str, Any], manner: Manner) -> Answer:
        operation = call.operation
        if members.get("stream"):
            raise InvalidRequest(
                "A call with Prefer or Idempotency-Key is not streamed; leave `stream` out, or "
                "follow its job at /api/jobs/{id}/events."
            )
        body_hash = _hash(members) if manner.idempotency_key is not None else None
        accepted = await self._handlers.defer(
            operation,
            members,
            call,
            idempotency_key=manner.idempotency_key,
            body_hash=body_hash,
        )
        headers = _replayed(accepted)
        if manner.respond_async and manner.wait is None and not accepted.state.ended:
            return _later(operation, accepted, headers)
        wait = _USUAL_WAIT if manner.wait is None else manner.wait
        job = await self._queue.ended(accepted.id, seconds=wait)
        if job is None and manner.wait is None:
            raise UpstreamTimedOut(
                "The call has not ended yet and goes on as a job; ask for it by its refId.",
                reason="job_not_ended",
                meta=_ids(operation, accepted),
            )
        return _later(operation, accepted, headers) if job is None else _ended(job, headers)


def _ended(job: Job, headers: tuple[tuple[bytes, bytes], ...]) -> Answer:
    if job.state is State.COMPLETED:
        return WithHeaders(JsonBytes(job.result or b"{}"), headers)
    error = why(job)
    if job.state is State.CANCELLED:
        raise Conflict(error.message, code=error.error_code, meta=meta(job))
    raise _Failed(job)


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


def _replayed(accepted: Accepted) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Idempotency-Replayed", b"true"),) if accepted.replayed else ()


def _hash(members: dict[str, Any]) -> bytes:
    """Of what was asked, however its members were ordered."""
    return hashlib.sha256(msgspec.json.encode(members, order="sorted")).digest()
