"""Runs a job by the handler of its operation, as if its owner had just called."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from aiserver.contract.binding import binder_of
from aiserver.contract.caller import Caller
from aiserver.contract.errors import (
    ApiError,
    Forbidden,
    Gone,
    StorageUnavailable,
    TooBusy,
    UpstreamFailed,
    UpstreamTimedOut,
)
from aiserver.contract.operation import Answer, AsJob, Call, EventStream, JsonBytes
from aiserver.contract.registry import Registry
from aiserver.contract.trace import Trace
from aiserver.contract.uploads import Upload
from aiserver.jobs.attempt import Attempt
from aiserver.jobs.job import (
    Completed,
    Failed,
    FailureKind,
    Job,
    JobError,
    Outcome,
    Released,
    Retry,
)
from aiserver.keys.access import permit
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError
from aiserver.kit.ids import CallIds
from aiserver.settlement import Settlement

_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 2.0, 60.0
_LONGEST_MESSAGE = 2_000
_PATIENCE = frozenset({408, 429})
# What a job's call came with. Raises ApiError or StorageError.
UploadsOf = Callable[[Job], Awaitable[dict[str, Upload]]]
_encode = msgspec.json.Encoder().encode
_log = log.get("jobs")


class JobRunner:
    """`caller_of` gives the owner of a key's id, None once the key may not be used any more.

    `redact` masks secrets in what an upstream said: a job keeps it, and its callback carries it.
    """

    def __init__(
        self,
        registry: Registry,
        settlement: Settlement,
        clock: Clock,
        *,
        caller_of: Callable[[int], Caller | None],
        chance: Callable[[], float] = random.random,
        redact: Callable[[str], str] = str,
        uploads: UploadsOf | None = None,
        ids: CallIds | None = None,
    ) -> None:
        self._registry = registry
        self._settlement = settlement
        self._clock = clock
        self._caller_of = caller_of
        self._chance = chance
        self._redact = redact
        self._uploads = uploads
        self._ids = ids or CallIds()

    async def run(self, attempt: Attempt) -> Outcome:
        """How the attempt ended. Cancelled, it leaves in `attempt` what it cost until then."""
        job = attempt.job
        trace = self._trace(job)
        try:
            body = await self._answer(job, trace, attempt)
        except ApiError as error:
            outcome = self._failed(attempt, trace, error)
        except asyncio.CancelledError:
            attempt.ledger = self._settlement.close(trace)
            attempt.worker = trace.provider
            raise
        except BaseException:
            attempt.ledger = self._settlement.close(trace)
            raise
        else:
            trace.status = trace.status or 200
            ledger = self._settlement.close(trace)
            outcome = Completed(result=body, worker=trace.provider, ledger=ledger)
        return outcome

    async def _answer(self, job: Job, trace: Trace, attempt: Attempt) -> bytes:
        operation = self._registry.named(job.operation)
        if operation is None or job.request is None:
            raise Gone(f"The server has no {job.operation} any more, or its content was deleted.")
        caller = self._caller_of(job.key_id)
        if caller is None:
            raise Forbidden("The API key of this job is disabled, expired or deleted.")
        permit(caller, operation)
        attempt.slot.give(trace)
        members: dict[str, Any] = msgspec.json.decode(job.request)
        request = binder_of(operation.request).bind(members)
        call = Call(
            operation=operation,
            caller=caller,
            request_id=trace.request_id,
            trace=trace,
            members=members if operation.keeps_members else {},
            job=AsJob(job.id, job.ref_id, attempt.report),
        )
        try:
            if job.files is not None and self._uploads is not None:
                call = msgspec.structs.replace(call, files=await self._uploads(job))
            return _body(await self._registry.handler(operation)(request, call))
        except (ApiError, asyncio.CancelledError):
            raise
        except StorageError as error:
            raise StorageUnavailable(retry_after=2) from error
        except Exception as error:
            _log.exception("job_failed", job=job.id, operation=job.operation)
            raise ApiError(
                f"The server failed; its log has the details under {trace.request_id}."
            ) from error

    def _failed(self, attempt: Attempt, trace: Trace, error: ApiError) -> Outcome:
        ledger = self._settlement.close(trace, error)
        status = error.http_status
        if isinstance(error, TooBusy) and not trace.attempts:
            # Nobody was asked: the slot that it was claimed for went to another call.
            return Released(ledger=ledger)
        kind = FailureKind.REQUEST
        if status in _PATIENCE or status >= 500:
            asked = bool(trace.attempts) or isinstance(error, UpstreamFailed | UpstreamTimedOut)
            kind = FailureKind.UPSTREAM if asked else FailureKind.SERVER
        # Before it is cut: half a secret is not known as one.
        message = self._redact(error.message)[:_LONGEST_MESSAGE]
        described = JobError(code=error.error_code, message=message, status=status, kind=kind)
        if kind is FailureKind.REQUEST:
            return Failed(error=described, worker=trace.provider, ledger=ledger)
        wait = error.retry_after or self._backoff(attempt.job.attempt)
        at = int((self._clock.now().timestamp() + wait) * 1000)
        return Retry(at=at, error=described, worker=trace.provider, ledger=ledger)

    def _backoff(self, attempt: int) -> float:
        """Twice as long each time, by chance between nothing and that: a herd must not return."""
        longest = min(_MOST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** max(attempt - 1, 0))
        return longest * self._chance()

    def _path(self, name: str) -> str:
        """Where the call came in that left this job."""
        operation = self._registry.named(name)
        alone = operation is not None and operation.queues is operation
        return f"/api/{name}" if alone else f"/api/Queue{name}"

    def _trace(self, job: Job) -> Trace:
        now = time.time()
        id = self._ids.next(int(now * 1000))
        return Trace(
            id=id,
            at=now,
            started=time.monotonic(),
            operation=job.operation,
            request_id=job.request_id or f"{id:x}",
            key_id=job.key_id,
            method="JOB",
            path=self._path(job.operation),
            tag=job.tag,
            ref_id=job.ref_id,
        )


def _body(answer: Answer) -> bytes:
    if isinstance(answer, JsonBytes):
        return answer.body
    if isinstance(answer, EventStream):
        answer.close()
        raise ApiError("A job cannot answer with a stream.")
    return _encode(answer)
