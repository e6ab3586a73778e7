"""Moves ended jobs between SQLite's table of jobs and the files of their months."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections import defaultdict
from collections.abc import Sequence

from aiserver.jobs.job import JOB_COLUMNS, SUMMARY_COLUMNS, Job, State
from aiserver.jobs.store import MOST_ROWS, Blanked, Requeued
from aiserver.jobs.store.months import began, month_of
from aiserver.jobs.store.refusals import NO_SUCH_JOB, QUEUE_FULL, not_again
from aiserver.jobs.store.sqlite_enqueue import Line, Tags
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.jobs.store.sqlite_query import Read, apart
from aiserver.jobs.store.sqlite_rows import AMONG, CHANGED, COLUMNS, Effects, job_of, listed
from aiserver.kit.db import Connection, Database, Row, in_blocks

_ID, _ENDED = JOB_COLUMNS.index("id"), JOB_COLUMNS.index("ended")
_KEY, _HASH = JOB_COLUMNS.index("idempotency_key"), JOB_COLUMNS.index("body_hash")
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
_MOVED = f"DELETE FROM jobs WHERE id {AMONG} AND ended >= ? AND ended < ? RETURNING id"
_UNSUMMED = "DELETE FROM job_summary WHERE id = ? RETURNING idempotency_key, body_hash"
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

# By the indexes of what waits and runs: jobs that ended may be many more.
_LIVE = " UNION ".join(
    f"SELECT kind, model, key_id FROM jobs INDEXED BY {index} WHERE state = '{state}'"
    for index, state in (
        ("jobs_fair", "Queued"),
        ("jobs_scheduled", "Scheduled"),
        ("jobs_leases", "Started"),
    )
)
_IDLE = f"""
WITH live AS MATERIALIZED ({_LIVE})
SELECT kind, model, key_id, tag FROM fair WHERE (kind, model, key_id) NOT IN live
AND (key_id >= 0 OR (kind, model) NOT IN (SELECT kind, model FROM live)) LIMIT {MOST_ROWS}"""
_TIDY = "DELETE FROM fair WHERE kind = ? AND model = ? AND key_id = ? AND tag = ?"


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


def summarise(connection: Connection, months: dict[str, list[Row]], before: int) -> set[int]:
    """Takes out of the table what its months have; which jobs."""
    moved: set[int] = set()
    for month, rows in months.items():
        which = (listed(row[_ID] for row in rows), began(month), before)
        connection.execute(_SUMMARISE, (month, *which))
        moved.update(id for (id,) in connection.rows(_MOVED, which))
    return moved


def left_behind(months: dict[str, list[Row]], moved: set[int]) -> dict[str, list[int]]:
    """By month, the jobs whose copies mean nothing: another process had them queued again."""
    left = {month: [row[_ID] for row in rows] for month, rows in months.items()}
    return {month: [id for id in ids if id not in moved] for month, ids in left.items()}


def forget_before(connection: Connection, month: str) -> int:
    return connection.execute(_FORGOTTEN, (began(month), 5 * MOST_ROWS))


def forget_keys(connection: Connection, before: int) -> int:
    """At most MOST_ROWS of each table."""
    return sum(
        connection.execute(_FREE.format(table=table), (before,))
        for table in ("jobs", "job_summary")
    )


def idle_places(read: Read) -> list[Row]:
    """Rows of `fair` without a job in line, at most MOST_ROWS."""
    return read(_IDLE, ())


def tidy(connection: Connection, idle: Sequence[Row]) -> int:
    """Without those that got a job meanwhile."""
    return sum(connection.execute(_TIDY, row) for row in idle)


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
        problem = not_again(job) or (QUEUE_FULL if len(result.ids) >= room else None)
        if job is None or problem is not None:
            result.errors[id] = problem or NO_SUCH_JOB
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
    kept = connection.rows(_UNSUMMED, (row[_ID],))
    if not kept:
        return False
    back = list(row)
    # Its idempotency key may have been freed, and used by another job, since it was archived.
    back[_KEY], back[_HASH] = kept[0]
    for sql, values in in_blocks(_BACK, [tuple(back)]):
        connection.execute(sql, values)
    return True
