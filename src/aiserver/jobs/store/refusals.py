"""What the stores say of jobs that they do not take, do not queue again, or end by themselves."""

from collections.abc import Sequence
from typing import Any

from aiserver.contract.errors import Conflict
from aiserver.jobs.job import FailureKind, Job, JobError, State
from aiserver.jobs.store import Accepted

QUEUE_FULL = "The queue is full."
NO_SUCH_JOB = "There is no such job."
_DEAD = (State.FAILED, State.CANCELLED)

DEADLINE_ERROR = JobError(
    code="DeadlineExceeded",
    message="The job's deadline passed before it was done.",
    status=504,
    kind=FailureKind.DEADLINE,
)


def lost_error(attempts: int) -> JobError:
    """For a job whose last attempt was lost with its process."""
    return JobError(
        code="WorkerLost",
        message=f"The server that ran this job stopped, in all of its {attempts} attempts.",
        status=502,
        kind=FailureKind.LOST,
    )


def replayed(rows: Sequence[Sequence[Any]], asked_hash: bytes | None) -> Accepted | Conflict | None:
    """What to answer to a job whose idempotency key was used; None where it was not.

    The first row is the id, refId, state and body hash of the job that used it.
    """
    if not rows:
        return None
    id, ref_id, state, body_hash = rows[0]
    if body_hash != asked_hash:
        return Conflict(
            "This Idempotency-Key was used for another request. Send a new key.",
            reason="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return Accepted(id, ref_id, State(state), replayed=True)


def ref_id_used() -> Conflict:
    return Conflict(
        "This API key has a job with this refId already. Send another one, or none.",
        reason="ref_id_used",
        param="refId",
    )


def not_again(job: Job | None) -> str | None:
    """Why a job is not queued again; None when it may be."""
    if job is None:
        return NO_SUCH_JOB
    if job.state not in _DEAD:
        return f"The job is {job.state.shown}; only Failed and Cancelled ones are queued again."
    return "What the job asked for is not kept any more." if job.request is None else None
