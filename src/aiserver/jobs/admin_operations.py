"""What an administrator can ask of the queue, and do to it."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import GET, POST, Access, operation
from aiserver.contract.responses import EmptyResponse, QueryResponse, ResponseStatus, Wire
from aiserver.jobs.records import (
    BackgroundJob,
    BackgroundJobState,
    CompletedJob,
    FailedJob,
    HourSummary,
    JobStatSummary,
    JobSummary,
    ScheduledTask,
    WorkerStats,
)
from aiserver.jobs.status_operations import JobId, RefId

Ids = Annotated[list[JobId], Meta(max_length=1000)]
Name = Annotated[str, Meta(max_length=200)]


class AdminJobDashboardResponse(Wire, kw_only=True):
    """`apis` are operations; `today` has the 24 hours of the last day asked for."""

    commands: list[JobStatSummary]
    apis: list[JobStatSummary]
    workers: list[JobStatSummary]
    today: list[HourSummary]
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=AdminJobDashboardResponse)
class AdminJobDashboard(Wire, kw_only=True):
    """Counts jobs by operation, by provider and by hour, from one day through another, in UTC."""

    from_: datetime | None = msgspec.field(name="from", default=None)
    to: datetime | None = None


class AdminJobInfoResponse(Wire, kw_only=True):
    """`monthDbs` are the months that are kept; `queueCounts` are waiting jobs by provider."""

    month_dbs: list[str]
    table_counts: dict[str, int]
    worker_stats: list[WorkerStats]
    queue_counts: dict[str, int]
    worker_counts: dict[str, int]
    state_counts: dict[str, int]
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=AdminJobInfoResponse)
class AdminJobInfo(Wire, kw_only=True):
    """Counts the jobs of the queue and of one month, this one if not told."""

    month: datetime | None = None


class AdminGetJobResponse(Wire, kw_only=True):
    """One of `queued`, `completed` and `failed` is there, as the job stands."""

    result: JobSummary
    queued: BackgroundJob | None = None
    completed: CompletedJob | None = None
    failed: FailedJob | None = None
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=AdminGetJobResponse)
class AdminGetJob(Wire, kw_only=True):
    """Shows any job in full, by `id` or by `refId`."""

    id: JobId | None = None
    ref_id: RefId | None = None


class AdminGetJobProgressResponse(Wire, kw_only=True):
    """`logs` are what was logged from `logStart` on."""

    state: BackgroundJobState
    progress: float | None = None
    status: str | None = None
    logs: str | None = None
    duration_ms: int | None = None
    error: ResponseStatus | None = None
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=AdminGetJobProgressResponse)
class AdminGetJobProgress(Wire, kw_only=True):
    """Tells how far a job is; `logStart` is how many characters of its log were seen before."""

    id: JobId
    log_start: Annotated[int, Meta(ge=0)] | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=QueryResponse[BackgroundJob])
class AdminQueryBackgroundJobs(Query, kw_only=True):
    """Queries the jobs that wait or run."""

    id: JobId | None = None
    ref_id: RefId | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=QueryResponse[JobSummary])
class AdminQueryJobSummary(Query, kw_only=True):
    """Queries all jobs that are kept, in short."""

    id: JobId | None = None
    ref_id: RefId | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=QueryResponse[ScheduledTask])
class AdminQueryScheduledTasks(Query, kw_only=True):
    """Queries the work that recurs, with its last run."""


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=QueryResponse[CompletedJob])
class AdminQueryCompletedJobs(Query, kw_only=True):
    """Queries the completed jobs of one month, this one if not told."""

    month: datetime | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=QueryResponse[FailedJob])
class AdminQueryFailedJobs(Query, kw_only=True):
    """Queries the failed and cancelled jobs of one month, this one if not told."""

    month: datetime | None = None


class AdminRequeueFailedJobsJobsResponse(Wire, kw_only=True):
    """`results` are the ids that wait again; `errors` say by id why others do not."""

    results: list[int]
    errors: dict[str, str]
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=POST, access=Access.ADMIN, returns=AdminRequeueFailedJobsJobsResponse)
class AdminRequeueFailedJobs(Wire, kw_only=True):
    """Puts failed jobs back into the queue with all their attempts, at most 1000 a call."""

    ids: Ids | None = None


class AdminCancelJobsResponse(Wire, kw_only=True):
    """`results` are the ids that are cancelled or told to stop; `errors` say why others are not."""

    results: list[int]
    errors: dict[str, str]
    response_status: ResponseStatus | None = None


@operation(tag="jobs", verbs=GET, access=Access.ADMIN, returns=AdminCancelJobsResponse)
class AdminCancelJobs(Wire, kw_only=True):
    """Cancels jobs by `ids`, all of one provider with `worker`, or all in a `state`.

    Jobs of a provider run or ran last there, or wait for it alone. `worker` and `state` together
    mean jobs that are both; `cancelWorker` names a provider whose running jobs are told to stop.
    """

    ids: Ids | None = None
    worker: Name | None = None
    state: BackgroundJobState | None = None
    cancel_worker: Name | None = None


class GetWorkerStatsResponse(Wire, kw_only=True):
    """`queueCounts` are waiting jobs by provider, the running one not counted."""

    results: list[WorkerStats]
    queue_counts: dict[str, int]
    response_status: ResponseStatus | None = None


@operation(tag="Admin", verbs=GET, access=Access.ADMIN, returns=GetWorkerStatsResponse)
class GetWorkerStats(Wire, kw_only=True):
    """Tells for each provider what its jobs came to since the start, and what runs there now."""


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=EmptyResponse)
class CancelWorker(Wire, kw_only=True):
    """Cancels the jobs that run at a provider; those that wait for it go on."""

    worker: Annotated[str, Meta(min_length=1, max_length=200)]
