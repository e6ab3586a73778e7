"""Sums jobs for people who look after them: by operation, by provider, by hour."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import msgspec

from aiserver.jobs.job import State
from aiserver.jobs.records import HourSummary, JobStatSummary, WorkerStats
from aiserver.jobs.shown import RunningJob, moment
from aiserver.jobs.store import Group, Tally

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Sums(msgspec.Struct):
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retries: int = 0

    @property
    def total(self) -> int:
        return self.completed + self.failed + self.cancelled

    def add(self, tally: Tally) -> None:
        self.retries += tally.retries
        match tally.state:
            case State.COMPLETED:
                self.completed += tally.jobs
            case State.CANCELLED:
                self.cancelled += tally.jobs
            case _:
                self.failed += tally.jobs


def sums_by(tallies: Iterable[Tally], group: Callable[[Tally], str | None]) -> dict[str, Sums]:
    """Those of no group are left out."""
    sums: dict[str, Sums] = {}
    for tally in tallies:
        name = group(tally)
        if name is not None:
            sums.setdefault(name, Sums()).add(tally)
    return sums


def statistics(sums: dict[str, Sums]) -> list[JobStatSummary]:
    """Most jobs first."""
    return [
        JobStatSummary(
            name=name,
            total=each.total,
            completed=each.completed,
            retries=each.retries,
            failed=each.failed,
            cancelled=each.cancelled,
        )
        for name, each in sorted(sums.items(), key=lambda item: (-item[1].total, item[0]))
    ]


def hours(tallies: Sequence[Tally], day: int) -> list[HourSummary]:
    """The 24 hours of the day that begins then (ms)."""
    summaries: list[HourSummary] = []
    for hour in range(day, day + DAY_MS, HOUR_MS):
        sums = Sums()
        for tally in tallies:
            if tally.hour == hour:
                sums.add(tally)
        summaries.append(
            HourSummary(
                hour=moment(hour).strftime("%b %d %H:00"),
                total=sums.total,
                completed=sums.completed,
                failed=sums.failed,
                cancelled=sums.cancelled,
            )
        )
    return summaries


def waiting(groups: Iterable[Group]) -> dict[str, int]:
    """Jobs that wait for one provider alone, by its name."""
    counts: dict[str, int] = {}
    for group in groups:
        if group.provider:
            counts[group.provider] = counts.get(group.provider, 0) + group.ready
    return counts


def worker_stats(
    sums: dict[str, Sums], queued: dict[str, int], running: Sequence[RunningJob], *, now: int
) -> list[WorkerStats]:
    """By name; of several jobs that run at a provider the one that runs longest is shown."""
    at_work: dict[str, list[RunningJob]] = {}
    for each in sorted(running, key=lambda each: each.since_ms):
        if each.job.worker is not None:
            at_work.setdefault(each.job.worker, []).append(each)
    none = Sums()
    return [
        _worker(name, sums.get(name, none), queued.get(name, 0), at_work.get(name, []), now)
        for name in sorted({*sums, *queued, *at_work})
    ]


def _worker(
    name: str, sums: Sums, queued: int, running: Sequence[RunningJob], now: int
) -> WorkerStats:
    first = running[0] if running else None
    return WorkerStats(
        name=name,
        queued=queued,
        received=sums.total + len(running),
        completed=sums.completed,
        retries=sums.retries,
        failed=sums.failed,
        running_job=first.job.id if first else None,
        running_time=_clocked(now - first.since_ms) if first else None,
    )


def _clocked(ms: int) -> str:
    seconds = timedelta(milliseconds=max(ms, 0)) // timedelta(seconds=1)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
