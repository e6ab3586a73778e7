"""Moves ended jobs between SQLite's table of jobs and the files of their months."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections import defaultdict
from collections.abc import Sequence

from aiserver.jobs.job import JOB_COLUMNS, SUMMARY_COLUMNS, Job, State
from aiserver.jobs.store import MOST_ROWS, Blanked, Requeued
from aiserver.jobs.store.months import began, month_of
from aiserver.jobs.store.sqlite_enqueue import Line, Tags
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.jobs.store.sqlite_query import Read, apart
from aiserver.jobs.store.sqlite_rows import AMONG, CHANGED, COLUMNS, Effects, job_of, listed
from aiserver.kit.db import Connection, Database, Row, in_blocks

_ID, _ENDED = JOB_COLUMNS.index("id"), JOB_COLUMNS.index("ended")
_KEPT = (*SUMMARY_COLUMNS[:-1], "idempotency_key", "body_hash")
_FINISHED = f"""
SELECT id, ifnull(length(request), 0) + ifnull(length(result), 0)
FROM jobs INDEXED BY jobs_ended
WHERE ended IS NOT NULL AND ended < ? ORDER BY ended LIMIT {MOST_ROWS}"""
_SOME = f"SELECT {COLUMNS} FROM jobs WHERE id {AMONG} AND ended IS NOT NULL"
_BYTES_A_ROUND = 16 * 2**20
# Again by their end: one that was queued again meanwhile stays.
_SUMMARISE = f"""
INSERT OR REPLACE INTO job_summary (month, {", ".join(_KEPT)})
SELECT ?, {", ".join(_KEPT)} FROM jobs WHERE id {AMONG} AND ended >= ? AND ended < ?"""
_MOVED = f"DELETE FROM jobs WHERE id {AMONG} AND ended >= ? AND ended < ?"
_BACK = f"INSERT INTO jobs ({COLUMNS})"
_AGAIN = f"""
UPDATE jobs SET state = 'Queued', vtag = ?, max_attempts = attempt + max_attempts,
  run_after = NULL, deadline = NULL, started = NULL, ended = NULL, progress = NULL, status = NULL,
  result = NULL, error_code = NULL, error_message = NULL, error_status = NULL, error_kind = NULL,
  cancel_asked = NULL, notified = NULL
WHERE id = ? RETURNING {CHANGED}"""
_FORGOTTEN = (
    "DELETE FROM job_summary WHERE id IN (SELECT id FROM job_summary WHERE ended < ? LIMIT ?)"
)
_FREE = f"""
UPDATE {{table}} SET idempotency_key = NULL, body_hash = NULL WHERE id IN (SELECT id FROM {{table}}
  WHERE idempotency_key IS NOT NULL AND ended IS NOT NULL AND created < ? LIMIT {MOST_ROWS})"""
_DEAD = (State.FAILED, State.CANCELLED)


def finished(database: Database, before: int) -> dict[str, list[Row]]:
    """Jobs to be moved, by month; one at least, and no more than fit in memory."""

    def find(read: Read) -> list[Row]:
        ids: list[int] = []
        held = 0
        for id, size in read(_FINISHED, (before,)):
            held += size
            if ids and held > _BYTES_A_ROUND:
                break
            ids.append(id)
        return read(_SOME, (listed(ids),))

    months: dict[str, list[Row]] = defaultdict(list)
    for row in apart(database, find):
        months[month_of(row[_ENDED])].append(row)
    return months


def summarise(connection: Connection, months: dict[str, list[Row]], before: int) -> int:
    """Takes out of the table what its months have; how many jobs."""
    moved = 0
    for month, rows in months.items():
        which = (listed(row[_ID] for row in rows), began(month), before)
        connection.execute(_SUMMARISE, (month, *which))
        moved += connection.execute(_MOVED, which)
    return moved


def forget_before(connection: Connection, month: str) -> int:
    return connection.execute(_FORGOTTEN, (began(month), 5 * MOST_ROWS))


def forget_keys(connection: Connection, before: int) -> int:
    """At most MOST_ROWS of each table."""
    return sum(
        connection.execute(_FREE.format(table=table), (before,))
        for table in ("jobs", "job_summary")
    )


def blank(files: MonthFiles, before: int) -> Blanked:
    """At most MOST_ROWS."""
    jobs = 0
    named: list[str] = []
    for month in files.months():
        if jobs == MOST_ROWS or month > month_of(before):
            break
        blanked = files.blank(month, before, MOST_ROWS - jobs)
        jobs += len(blanked)
        named += [name for name in blanked if name is not None]
    return Blanked(jobs, named, jobs == MOST_ROWS)


def archived(
    database: Database, files: MonthFiles, ids: Sequence[int]
) -> dict[int, tuple[str, Row]]:
    """The archive's rows with their months."""
    by_month: dict[str, list[int]] = defaultdict(list)
    sql = f"SELECT month, id FROM job_summary WHERE id {AMONG}"
    for month, id in apart(database, lambda read: read(sql, (listed(ids),))):
        by_month[month].append(id)
    return {
        row[_ID]: (month, row)
        for month, wanted in by_month.items()
        for row in files.get(month, wanted)
    }


def requeue(
    connection: Connection,
    ids: Sequence[int],
    found: dict[int, tuple[str, Row]],
    room: int,
    effects: Effects,
) -> Requeued:
    """`found` are those of the archive."""
    result = Requeued([], {})
    live = {job.id: job for job in _jobs(connection, ids)}
    tags = Tags(connection)
    for id in dict.fromkeys(ids):
        row = found.get(id)
        job = live.get(id) or (job_of(row[1]) if row else None)
        problem = _refusal(job) or ("The queue is full." if len(result.ids) >= room else None)
        if job is None or problem is not None:
            result.errors[id] = problem or "There is no such job."
            continue
        if id not in live and row is not None and not _bring_back(connection, row[1]):
            result.errors[id] = "The job was queued again meanwhile."
            continue
        place = tags.next(Line(job.kind, job.model, job.priority), job.key_id)
        [changed] = connection.rows(_AGAIN, (place, id))
        effects.moves[effects.reached(connection, changed, State.QUEUED).key_id] += 1
        result.ids.append(id)
    tags.save()
    return result


def _jobs(connection: Connection, ids: Sequence[int]) -> list[Job]:
    sql = f"SELECT {COLUMNS} FROM jobs WHERE id {AMONG}"
    return [job_of(row) for row in connection.rows(sql, (listed(ids),))]


def _bring_back(connection: Connection, row: Row) -> bool:
    if not connection.execute("DELETE FROM job_summary WHERE id = ?", (row[_ID],)):
        return False
    for sql, values in in_blocks(_BACK, [row]):
        connection.execute(sql, values)
    return True


def _refusal(job: Job | None) -> str | None:
    if job is None:
        return "There is no such job."
    if job.state not in _DEAD:
        return f"The job is {job.state.shown}; only Failed and Cancelled ones are queued again."
    return "What the job asked for is not kept any more." if job.request is None else None
