"""Jobs, workers and callbacks as they are on the wire."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from aiserver.contract.operation import Operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.contract.twins import status_url
from aiserver.jobs.store import DeliveryState


class BackgroundJobState(StrEnum):
    """`Executed` is of the contract and never answered: a job is completed at once."""

    QUEUED = "Queued"
    STARTED = "Started"
    EXECUTED = "Executed"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class QueueOpenAiChatResponse(Wire, kw_only=True):
    id: int
    ref_id: str
    status_url: str
    response_status: ResponseStatus | None = None


class QueueOllamaGenerationResponse(Wire, kw_only=True):
    id: int
    ref_id: str
    status_url: str
    response_status: ResponseStatus | None = None


class QueueGenerationResponse(Wire, kw_only=True):
    """`status` is what the job says of itself, else its state."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    status_url: str
    response_status: ResponseStatus | None = None


class QueueMediaTransformResponse(Wire, kw_only=True):
    """`status` is what the job says of itself, else its state."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    status_url: str
    response_status: ResponseStatus | None = None


def acknowledgement(
    operation: Operation,
    *,
    job_id: int,
    ref_id: str,
    state: BackgroundJobState,
    status: str | None = None,
) -> msgspec.Struct:
    """What is answered once a job is stored, in the form that the operation declares."""
    original, into = operation.queues, operation.returns
    if original is None or into is None:
        raise TypeError(f"{operation.name} queues no operation")
    known: dict[str, Any] = {
        "id": job_id,
        "job_id": job_id,
        "ref_id": ref_id,
        "job_state": state,
        "status": status or state.value,
        "status_url": status_url(original, ref_id),
    }
    return into(**{name: known[name] for name in into.__struct_fields__ if name in known})


class ArtifactOutput(Wire, kw_only=True):
    url: str | None = None
    file_name: str | None = None
    provider: str | None = None


class TextOutput(Wire, kw_only=True):
    text: str | None = None


class BackgroundJobBase(Wire, kw_only=True):
    """A job in full. `request` and `response` name types, their bodies are JSON text.

    `worker` is the provider, `args` has the owner's KeyId and the provider asked for; `timeoutSecs`
    and `durationMs` are counted from the start of the last attempt. Bodies are empty or left out
    once a job's content has been blanked.
    """

    id: int
    parent_id: int | None = None
    ref_id: str | None = None
    worker: str | None = None
    tag: str | None = None
    batch_id: str | None = None
    callback: str | None = None
    depends_on: int | None = None
    run_after: datetime | None = None
    created_date: datetime
    created_by: str | None = None
    request_id: str | None = None
    request_type: str
    command: str | None = None
    request: str
    request_body: str
    user_id: str | None = None
    response: str | None = None
    response_body: str | None = None
    state: BackgroundJobState
    started_date: datetime | None = None
    completed_date: datetime | None = None
    notified_date: datetime | None = None
    retry_limit: int | None = None
    attempts: int
    duration_ms: int
    timeout_secs: int | None = None
    progress: float | None = None
    status: str | None = None
    logs: str | None = None
    last_activity_date: datetime | None = None
    reply_to: str | None = None
    error_code: str | None = None
    error: ResponseStatus | None = None
    args: dict[str, str] | None = None
    meta: dict[str, str] | None = None


class BackgroundJob(BackgroundJobBase, kw_only=True):
    """A job that waits or runs."""


class CompletedJob(BackgroundJobBase, kw_only=True):
    """A job that is done."""


class FailedJob(BackgroundJobBase, kw_only=True):
    """A job that failed or was cancelled."""


class JobSummary(Wire, kw_only=True):
    """What stays of every job in the main store."""

    id: int
    parent_id: int | None = None
    ref_id: str | None = None
    worker: str | None = None
    tag: str | None = None
    batch_id: str | None = None
    created_date: datetime
    created_by: str | None = None
    request_type: str
    command: str | None = None
    request: str
    response: str | None = None
    user_id: str | None = None
    callback: str | None = None
    started_date: datetime | None = None
    completed_date: datetime | None = None
    state: BackgroundJobState
    duration_ms: int
    attempts: int
    error_code: str | None = None
    error_message: str | None = None


class BackgroundJobOptions(Wire, kw_only=True):
    ref_id: str | None = None
    parent_id: int | None = None
    worker: str | None = None
    run_after: datetime | None = None
    callback: str | None = None
    depends_on: int | None = None
    user_id: str | None = None
    retry_limit: int | None = None
    reply_to: str | None = None
    tag: str | None = None
    batch_id: str | None = None
    created_by: str | None = None
    timeout_secs: int | None = None
    timeout: timedelta | None = None
    args: dict[str, str] | None = None
    run_command: bool | None = None


class ScheduledTask(Wire, kw_only=True):
    """Work that recurs, each `interval` or at the times of `cronExpression`.

    `lastStatus` is Started, Completed or Failed; `lastError` the kind of error that it met.
    """

    id: int
    name: str
    interval: timedelta | None = None
    cron_expression: str | None = None
    request_type: str
    command: str | None = None
    request: str
    request_body: str
    options: BackgroundJobOptions | None = None
    last_run: datetime | None = None
    last_job_id: int | None = None
    last_duration: timedelta | None = None
    last_status: str | None = None
    last_error: str | None = None
    next_run: datetime | None = None


class WorkerStats(Wire, kw_only=True):
    """A provider as a worker; `queued` waits for it alone, `runningTime` is hh:mm:ss."""

    name: str
    queued: int
    received: int
    completed: int
    retries: int
    failed: int
    running_job: int | None = None
    running_time: str | None = None


class JobStatSummary(Wire, kw_only=True):
    name: str
    total: int
    completed: int
    retries: int
    failed: int
    cancelled: int


class HourSummary(Wire, kw_only=True):
    """`hour` is a label such as `May 09 14:00`."""

    hour: str
    total: int
    completed: int
    failed: int
    cancelled: int


class CallbackAttempt(Wire, kw_only=True):
    """`httpStatus` where the receiver answered, `error` where it did not take the callback."""

    at: datetime
    duration_ms: int
    http_status: int | None = None
    error: str | None = None


class CallbackDelivery(Wire, kw_only=True):
    """A callback. `id` is its webhook-id, the same on every attempt; a test has no job.

    `dueDate` is when it is tried next, `httpStatus` and `error` are of the last attempt. Disabled
    means that the receiver answered 410.
    """

    id: str
    job_id: int | None = None
    ref_id: str | None = None
    key_id: int
    url: str
    verb: str
    state: DeliveryState
    attempts: int
    created_date: datetime
    due_date: datetime | None = None
    delivered_date: datetime | None = None
    http_status: int | None = None
    error: str | None = None
    log: list[CallbackAttempt] | None = None


class JobEvent(Wire, kw_only=True):
    """What one event of a job says: `position` while it waits, 0 is next; `progress` is 0 to 1.

    `logs` are the lines that came since the event before.
    """

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    position: int | None = None
    progress: float | None = None
    status: str | None = None
    logs: str | None = None
    result: Any = None
    response_status: ResponseStatus | None = None
