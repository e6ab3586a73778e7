"""Jobs as callers and administrators see them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeVar

from aiserver.contract.errors import ApiError
from aiserver.contract.responses import ResponseStatus
from aiserver.jobs.job import WAITING, FailureKind, Job, State, Summary
from aiserver.jobs.records import BackgroundJobBase, BackgroundJobState, JobSummary

Record = TypeVar("Record", bound=BackgroundJobBase)

# The name of the type that an operation answers, None where it is not known.
AnswerOf = Callable[[str], str | None]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_FIRST_MS = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
_API = "API"
_STATUSES: dict[str, int] = {
    FailureKind.REQUEST: 422,
    FailureKind.UPSTREAM: 502,
    FailureKind.DEADLINE: 504,
}


class RunningJob(NamedTuple):
    """A job at work in this process, its `worker` filled in, and when its attempt began (ms)."""

    job: Job
    since_ms: int


class JobFailed(ApiError):
    """The job failed or was cancelled; `meta` names it."""

    def __init__(self, job: Job) -> None:
        error = why(job)
        super().__init__(error.message, code=error.error_code, reason="job_failed", meta=meta(job))
        self._status = _status(job)

    @property
    def http_status(self) -> int:
        return self._status


def unknown(_: str) -> str | None:
    """For a server that does not tell what its operations answer."""


def moment(ms: int) -> datetime:
    """The nearest one that can be written: callers may mean a time past the last of them."""
    return _EPOCH + timedelta(milliseconds=min(max(ms, _FIRST_MS), _LAST_MS))


def maybe_moment(ms: int | None) -> datetime | None:
    return None if ms is None else moment(ms)


def milliseconds(moment: datetime) -> int:
    """A moment without a zone is in UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MILLISECOND


def state_of(job: Job | Summary) -> BackgroundJobState:
    return BackgroundJobState(job.state.shown)


def status_of(job: Job) -> str:
    """What the job says of itself while it runs, else its state."""
    return (job.status if job.state is State.STARTED else None) or job.state.shown


def meta(job: Job) -> dict[str, str]:
    """What every error about a job says of it."""
    return {"jobId": str(job.id), "refId": job.ref_id, "jobState": job.state.shown}


def why(job: Job) -> ResponseStatus:
    """Why the job did not do its work."""
    cancelled = job.state is State.CANCELLED
    return ResponseStatus(
        error_code=job.error_code or ("Cancelled" if cancelled else ApiError.code),
        message=job.error_message or ("The job was cancelled." if cancelled else "The job failed."),
    )


def error_of(job: Job) -> ResponseStatus | None:
    """None unless the job failed or was cancelled."""
    return why(job) if job.state in (State.FAILED, State.CANCELLED) else None


def duration_ms(job: Job | Summary, now: int) -> int:
    """Of the last attempt; 0 while the job waits."""
    if job.started is None or job.state in WAITING:
        return 0
    return max((now if job.ended is None else job.ended) - job.started, 0)


def record(into: type[Record], job: Job, *, now: int, answer_of: AnswerOf = unknown) -> Record:
    """The job in full; `now` in ms."""
    return into(
        id=job.id,
        ref_id=job.ref_id,
        worker=job.worker,
        tag=job.tag,
        run_after=maybe_moment(job.run_after),
        created_date=moment(job.created),
        request_id=job.request_id,
        request_type=_API,
        request=job.operation,
        request_body=_text(job.request) or "",
        response=answer_of(job.operation) if job.state is State.COMPLETED else None,
        response_body=_text(job.result),
        state=state_of(job),
        started_date=maybe_moment(job.started),
        completed_date=maybe_moment(job.ended),
        notified_date=maybe_moment(job.notified),
        retry_limit=max(job.max_attempts - 1, 0),
        attempts=job.attempt,
        duration_ms=duration_ms(job, now),
        timeout_secs=_timeout(job),
        progress=job.progress,
        status=job.status,
        logs=job.logs or None,
        last_activity_date=moment(job.ended or job.started or job.created),
        reply_to=job.reply_to,
        error_code=job.error_code,
        error=None if job.error_code is None and error_of(job) is None else why(job),
        args=_args(job),
    )


def summary(job: Job | Summary, *, now: int, answer_of: AnswerOf = unknown) -> JobSummary:
    """The job in short; `now` in ms."""
    return JobSummary(
        id=job.id,
        ref_id=job.ref_id,
        worker=job.worker,
        tag=job.tag,
        created_date=moment(job.created),
        request_type=_API,
        request=job.operation,
        response=answer_of(job.operation) if job.state is State.COMPLETED else None,
        started_date=maybe_moment(job.started),
        completed_date=maybe_moment(job.ended),
        state=state_of(job),
        duration_ms=duration_ms(job, now),
        attempts=job.attempt,
        error_code=job.error_code,
        error_message=job.error_message,
    )


def _status(job: Job) -> int:
    if job.state is State.CANCELLED:
        return 409
    return _STATUSES.get(job.error_kind or "", 500)


def _timeout(job: Job) -> int | None:
    if job.deadline is None:
        return None
    return max(job.deadline - (job.started or job.created), 0) // 1000


def _args(job: Job) -> dict[str, str]:
    args = {"KeyId": str(job.key_id)}
    if job.provider:
        args["Provider"] = job.provider
    return args


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode(errors="replace")
