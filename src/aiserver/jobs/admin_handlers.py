"""Answers what an administrator asks of the queue."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from aiserver.contract.autoquery import Table
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import EmptyResponse, QueryResponse
from aiserver.jobs.admin_cancelling import LIVE, Done, cancel_all, cancel_ids, requeue_ids
from aiserver.jobs.admin_counts import (
    DAY_MS,
    hours,
    statistics,
    sums_by,
    waiting,
    worker_stats,
)
from aiserver.jobs.admin_operations import (
    AdminCancelJobs,
    AdminCancelJobsResponse,
    AdminGetJob,
    AdminGetJobProgress,
    AdminGetJobProgressResponse,
    AdminGetJobResponse,
    AdminJobDashboard,
    AdminJobDashboardResponse,
    AdminJobInfo,
    AdminJobInfoResponse,
    AdminQueryBackgroundJobs,
    AdminQueryCompletedJobs,
    AdminQueryFailedJobs,
    AdminQueryJobSummary,
    AdminQueryScheduledTasks,
    AdminRequeueFailedJobs,
    AdminRequeueFailedJobsJobsResponse,
    CancelWorker,
    GetWorkerStats,
    GetWorkerStatsResponse,
)
from aiserver.jobs.admin_queries import JobQueries, ended_jobs
from aiserver.jobs.asked import asked_for
from aiserver.jobs.job import Job, State
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import (
    BackgroundJob,
    BackgroundJobBase,
    BackgroundJobState,
    CompletedJob,
    FailedJob,
    JobSummary,
    ScheduledTask,
    WorkerStats,
)
from aiserver.jobs.schedule import Schedule, shown
from aiserver.jobs.shown import (
    AnswerOf,
    RunningJob,
    duration_ms,
    error_of,
    milliseconds,
    record,
    state_of,
    summary,
    unknown,
)
from aiserver.jobs.store import Filter
from aiserver.kit.clock import Clock

_FAILED = frozenset({State.FAILED, State.CANCELLED})
_COMPLETED = frozenset({State.COMPLETED})
Record = TypeVar("Record", bound=BackgroundJobBase)


async def _told() -> None:
    """For a process that runs no jobs."""


class AdminHandlers:
    """`running` are the jobs of this process; `answer_of` names what an operation answers.

    `tell` writes down what these jobs reported, such as which provider they run at.
    """

    def __init__(
        self,
        queue: Queue,
        running: Callable[[], Sequence[RunningJob]],
        schedule: Schedule,
        clock: Clock,
        *,
        answer_of: AnswerOf = unknown,
        tell: Callable[[], Awaitable[None]] = _told,
    ) -> None:
        self._queue = queue
        self._tell = tell
        self._store = queue.store
        self._running = running
        self._schedule = schedule
        self._clock = clock
        self._answer_of = answer_of
        self._began = self._now()
        self._live = JobQueries(BackgroundJob)
        self._kept = JobQueries(JobSummary)
        self._completed = JobQueries(CompletedJob)
        self._failed = JobQueries(FailedJob)

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            AdminJobDashboard: self.dashboard,
            AdminJobInfo: self.info,
            AdminGetJob: self.job,
            AdminGetJobProgress: self.progress,
            AdminQueryBackgroundJobs: self.live,
            AdminQueryJobSummary: self.summaries,
            AdminQueryScheduledTasks: self.tasks,
            AdminQueryCompletedJobs: self.completed,
            AdminQueryFailedJobs: self.failed,
            AdminRequeueFailedJobs: self.requeue,
            AdminCancelJobs: self.cancel,
            GetWorkerStats: self.workers,
            CancelWorker: self.cancel_worker,
        }

    async def dashboard(self, request: AdminJobDashboard, call: Call) -> AdminJobDashboardResponse:
        first = request.from_ or request.to or self._clock.now()
        last = request.to or max(first, self._clock.now(), key=milliseconds)
        day = _day(last)
        tallies = await self._store.tallies(since=_day(first), until=day + DAY_MS)
        return AdminJobDashboardResponse(
            commands=[],
            apis=statistics(sums_by(tallies, lambda tally: tally.operation)),
            workers=statistics(sums_by(tallies, lambda tally: tally.worker)),
            today=hours(tallies, day),
        )

    async def info(self, request: AdminJobInfo, call: Call) -> AdminJobInfoResponse:
        month = _month(request.month or self._clock.now())
        counts = await self._store.counts()
        ended = {
            state: (await self._ended(Filter(states={state}, take=0), month))[1]
            for state in (State.COMPLETED, State.FAILED, State.CANCELLED)
        }
        states: dict[str, int] = {}
        for state in (*sorted(LIVE), *ended):
            count = ended[state] if state in ended else counts.states.get(state, 0)
            states[state.shown] = states.get(state.shown, 0) + count
        stats, queued = await self._workers()
        return AdminJobInfoResponse(
            month_dbs=await self._months(),
            table_counts={
                "BackgroundJob": sum(counts.states.get(state, 0) for state in LIVE),
                "JobSummary": sum(counts.states.values()) + counts.archived,
                "ScheduledTask": len(self._schedule.tasks),
                "CompletedJob": ended[State.COMPLETED],
                "FailedJob": ended[State.FAILED] + ended[State.CANCELLED],
            },
            worker_stats=stats,
            queue_counts=queued,
            worker_counts=counts.running_by_worker,
            state_counts=states,
        )

    async def job(self, request: AdminGetJob, call: Call) -> AdminGetJobResponse:
        job = await asked_for(self._queue, call, id=request.id, ref_id=request.ref_id)
        now = self._now()

        def full(into: type[Record], states: frozenset[State]) -> Record | None:
            if job.state not in states:
                return None
            return record(into, job, now=now, answer_of=self._answer_of)

        return AdminGetJobResponse(
            result=summary(job, now=now, answer_of=self._answer_of),
            queued=full(BackgroundJob, LIVE),
            completed=full(CompletedJob, _COMPLETED),
            failed=full(FailedJob, _FAILED),
        )

    async def progress(
        self, request: AdminGetJobProgress, call: Call
    ) -> AdminGetJobProgressResponse:
        job = await asked_for(self._queue, call, id=request.id, ref_id=None)
        return AdminGetJobProgressResponse(
            state=state_of(job),
            progress=job.progress,
            status=job.status,
            logs=job.logs[request.log_start or 0 :] or None,
            duration_ms=duration_ms(job, self._now()),
            error=error_of(job),
        )

    async def live(
        self, request: AdminQueryBackgroundJobs, call: Call
    ) -> QueryResponse[BackgroundJob]:
        filter = self._live.filter(request, call.pairs, states=LIVE)
        jobs, total = await self._store.jobs(filter)
        now = self._now()
        rows = [record(BackgroundJob, job, now=now) for job in jobs]
        return self._live.page(request, filter, rows, total)

    async def summaries(
        self, request: AdminQueryJobSummary, call: Call
    ) -> QueryResponse[JobSummary]:
        filter = self._kept.filter(request, call.pairs, states=State)
        found, total = await self._store.summaries(filter)
        now = self._now()
        rows = [summary(each, now=now, answer_of=self._answer_of) for each in found]
        return self._kept.page(request, filter, rows, total)

    async def tasks(
        self, request: AdminQueryScheduledTasks, call: Call
    ) -> QueryResponse[ScheduledTask]:
        return Table(ScheduledTask, shown(self._schedule.tasks)).query(request, call.pairs)

    async def completed(
        self, request: AdminQueryCompletedJobs, call: Call
    ) -> QueryResponse[CompletedJob]:
        return await self._of_month(CompletedJob, self._completed, request, call, states=_COMPLETED)

    async def failed(self, request: AdminQueryFailedJobs, call: Call) -> QueryResponse[FailedJob]:
        return await self._of_month(FailedJob, self._failed, request, call, states=_FAILED)

    async def requeue(
        self, request: AdminRequeueFailedJobs, call: Call
    ) -> AdminRequeueFailedJobsJobsResponse:
        done = await requeue_ids(self._queue, request.ids or [])
        return AdminRequeueFailedJobsJobsResponse(results=done.ids, errors=done.errors)

    async def cancel(self, request: AdminCancelJobs, call: Call) -> AdminCancelJobsResponse:
        done = await cancel_ids(self._queue, request.ids or [])
        if request.worker is not None or request.state is not None:
            done.add(await self._cancel_all(request.worker, request.state))
        if request.cancel_worker is not None:
            done.add(await self._stop(request.cancel_worker))
        return AdminCancelJobsResponse(results=done.ids, errors=done.errors)

    async def workers(self, request: GetWorkerStats, call: Call) -> GetWorkerStatsResponse:
        stats, queued = await self._workers()
        return GetWorkerStatsResponse(results=stats, queue_counts=queued)

    async def cancel_worker(self, request: CancelWorker, call: Call) -> EmptyResponse:
        await self._stop(request.worker)
        return EmptyResponse()

    async def _stop(self, worker: str) -> Done:
        return await self._cancel_all(worker, BackgroundJobState.STARTED)

    async def _cancel_all(self, worker: str | None, shown: BackgroundJobState | None) -> Done:
        if worker is None:
            return await cancel_all(self._queue, shown=shown)
        await self._tell()
        here = [each.job.id for each in self._running() if each.job.worker == worker]
        return await cancel_all(self._queue, worker=worker, shown=shown, here=here)

    async def _workers(self) -> tuple[list[WorkerStats], dict[str, int]]:
        now = self._now()
        tallies = await self._store.tallies(since=self._began, until=now + 1)
        queued = waiting(await self._store.groups())
        sums = sums_by(tallies, lambda tally: tally.worker)
        return worker_stats(sums, queued, self._running(), now=now), queued

    async def _of_month(
        self,
        into: type[Record],
        queries: JobQueries[Record],
        request: AdminQueryCompletedJobs | AdminQueryFailedJobs,
        call: Call,
        *,
        states: frozenset[State],
    ) -> QueryResponse[Record]:
        month = _month(request.month or self._clock.now())
        filter = queries.filter(request, call.pairs, states=states)
        jobs, total = await self._ended(filter, month)
        now = self._now()
        rows = [record(into, job, now=now, answer_of=self._answer_of) for job in jobs]
        return queries.page(request, filter, rows, total)

    async def _ended(self, filter: Filter, month: str) -> tuple[list[Job], int]:
        newest = month == _month(self._clock.now())
        return await ended_jobs(self._store, filter, month=month, newest=newest)

    async def _months(self) -> list[str]:
        """Newest first, each as the moment at which it begins."""
        months = {*await self._store.months(), _month(self._clock.now())}
        return [f"{month}-01T00:00:00Z" for month in sorted(months, reverse=True)]

    def _now(self) -> int:
        return milliseconds(self._clock.now())


def _month(moment: datetime) -> str:
    return f"{moment:%Y-%m}"


def _day(moment: datetime) -> int:
    """When the day of this moment begins (ms)."""
    return milliseconds(moment) // DAY_MS * DAY_MS
