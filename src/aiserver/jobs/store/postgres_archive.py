"""Moves ended jobs to the partition of their month, and back; forgets what is old."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from msgspec.structs import replace

from aiserver.jobs.job import JOB_COLUMNS, LARGEST_ID, SUMMARY_COLUMNS, Job, State, with_error
from aiserver.jobs.store import MOST_ROWS, Blanked, Bounds, Requeued
from aiserver.jobs.store.months import began
from aiserver.jobs.store.postgres_line import IN_TURN, Line, place_of
from aiserver.jobs.store.postgres_rows import ALL_KEYS, COLUMNS, columns, job
from aiserver.jobs.store.postgres_turn import Turns
from aiserver.jobs.store.refusals import NO_SUCH_JOB, QUEUE_FULL, not_again
from aiserver.kit.postgres import Postgres, Transaction

# One process at a time makes or drops a month's partition.
_MOVING = "SELECT pg_advisory_xact_lock(4611734512290819)"
_KEPT = ", ".join((*SUMMARY_COLUMNS[:-1], "idempotency_key", "body_hash"))
_MONTH = "to_char(to_timestamp(ended / 1000), 'YYYY-MM')"
_FINISHED = f"""
SELECT id, {_MONTH} FROM jobs WHERE ended IS NOT NULL AND ended < $1
ORDER BY ended LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED"""
_MOVE = f"""
WITH moved AS (
  DELETE FROM jobs WHERE id = ANY($1::int[]) RETURNING {COLUMNS}, {_MONTH} AS month
), summed AS (
  INSERT INTO job_summary ({_KEPT}, month) SELECT {_KEPT}, month FROM moved
)
INSERT INTO job_archive ({COLUMNS}, month) SELECT {COLUMNS}, month FROM moved"""
_MONTHS = """
SELECT right(c.relname, 7) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'job_archive'::regclass ORDER BY 1"""
_FORGET = "DELETE FROM job_summary WHERE ended < $1"
_LIVE = f"SELECT {COLUMNS} FROM jobs WHERE id = ANY($1::int[]) ORDER BY id FOR UPDATE"
_OLD = ", ".join(
    f"s.{name}" if name in ("idempotency_key", "body_hash") else f"a.{name}" for name in JOB_COLUMNS
)
_ARCHIVED = f"""
SELECT {_OLD} FROM job_summary s JOIN job_archive a ON a.month = s.month AND a.id = s.id
WHERE s.id = ANY($1::int[]) FOR UPDATE"""
_BACK = f"""
WITH summed AS (
  DELETE FROM job_summary WHERE id = ANY($1::int[]) RETURNING id, month, idempotency_key, body_hash
), gone AS (
  DELETE FROM job_archive a USING summed s WHERE a.month = s.month AND a.id = s.id
  RETURNING {_OLD}
)
INSERT INTO jobs ({COLUMNS}) SELECT {COLUMNS} FROM gone"""
_BLANK = """
WITH old AS (
  SELECT {key}, files FROM {table} WHERE ended < $1 AND ended IS NOT NULL
    AND request IS NOT NULL
  ORDER BY ended LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE {table} t SET request = NULL, files = NULL, result = NULL, logs = ''
FROM old WHERE {same} RETURNING old.files"""
_BLANKS = (
    _BLANK.format(table="jobs", key="id", same="t.id = old.id"),
    _BLANK.format(
        table="job_archive", key="month, id", same="t.month = old.month AND t.id = old.id"
    ),
)
_FORGET_KEYS = """
WITH forgotten AS (
  UPDATE job_summary SET idempotency_key = NULL, body_hash = NULL
  WHERE idempotency_key IS NOT NULL AND created < $1 RETURNING 1
), ended AS (
  UPDATE jobs SET idempotency_key = NULL, body_hash = NULL
  WHERE idempotency_key IS NOT NULL AND created < $1 AND ended IS NOT NULL RETURNING 1
)
SELECT (SELECT count(*) FROM forgotten) + (SELECT count(*) FROM ended)"""

_IDLE = f"""
WITH live AS (SELECT DISTINCT kind, model, key_id FROM jobs WHERE ended IS NULL)
SELECT kind, model, key_id, tag FROM fair f WHERE NOT EXISTS (
  SELECT 1 FROM live l WHERE l.kind = f.kind AND l.model = f.model AND l.key_id = f.key_id)
AND (key_id <> {ALL_KEYS} OR NOT EXISTS (
  SELECT 1 FROM live l WHERE l.kind = f.kind AND l.model = f.model)) LIMIT {MOST_ROWS}"""
# A tag that changed belongs to a job that came meanwhile.
_TIDY = """
WITH idle AS (
  SELECT f.kind, f.model, f.key_id FROM fair f
  JOIN unnest($1::text[], $2::text[], $3::int[], $4::bigint[]) AS i(kind, model, key_id, tag)
    USING (kind, model, key_id, tag)
  ORDER BY kind, model, key_id FOR UPDATE OF f SKIP LOCKED
)
DELETE FROM fair f USING idle i
WHERE f.kind = i.kind AND f.model = i.model AND f.key_id = i.key_id"""


async def months(database: Postgres) -> list[str]:
    return [row[0].replace("_", "-") for row in await database.read(_MONTHS)]


async def archive(database: Postgres, before: int) -> int:
    async with database.transaction(_MOVING) as transaction:
        rows = await transaction.rows(_FINISHED, before)
        for month in sorted({row[1] for row in rows}):
            await _partition(transaction, month)
        if rows:
            await transaction.execute(_MOVE, [row[0] for row in rows])
    return len(rows)


async def _partition(transaction: Transaction, month: str) -> None:
    name = _table(month)
    if not await transaction.rows(
        "SELECT 1 FROM pg_class WHERE relname = $1 AND pg_table_is_visible(oid)", name
    ):
        await transaction.execute(
            f"CREATE TABLE {name} PARTITION OF job_archive FOR VALUES IN ('{month}')"
        )


async def drop_months(database: Postgres, before: str) -> list[str]:
    dropped = [month for month in await months(database) if month < before]
    for month in dropped:
        async with database.transaction(_MOVING) as transaction:
            await transaction.execute("DELETE FROM job_summary WHERE month = $1", month)
            await transaction.execute(f"DROP TABLE IF EXISTS {_table(month)}")
    await database.execute(_FORGET, began(before))
    return dropped


def _table(month: str) -> str:
    return f"job_archive_{month.replace('-', '_')}"


async def blank(database: Postgres, before: int) -> Blanked:
    jobs = 0
    named: list[str] = []
    for sql in _BLANKS:
        rows = await database.rows(sql, before, MOST_ROWS - jobs)
        jobs += len(rows)
        named += [row["files"] for row in rows if row["files"] is not None]
    return Blanked(jobs, named, jobs == MOST_ROWS)


async def forget_keys(database: Postgres, before: int) -> int:
    [row] = await database.rows(_FORGET_KEYS, before)
    return int(row[0])


async def tidy(database: Postgres) -> int:
    idle = [tuple(row) for row in await database.read(_IDLE)]
    return await database.execute(_TIDY, *columns(idle, 4)) if idle else 0


async def requeue(database: Postgres, ids: Sequence[int], turns: Turns, bounds: Bounds) -> Requeued:
    wanted = [id for id in dict.fromkeys(ids) if 0 < id <= LARGEST_ID]
    result = Requeued([], {id: NO_SUCH_JOB for id in ids if id not in wanted})
    async with database.transaction(IN_TURN) as transaction:
        archived = {found.id: found for found in await _jobs(transaction, _ARCHIVED, wanted)}
        live = {found.id: found for found in await _jobs(transaction, _LIVE, wanted)}
        known = {**archived, **live}
        line = Line(bounds)
        await line.learn(transaction, [place_of(found) for found in known.values()])
        for id in wanted:
            problem = not_again(known.get(id)) or _full(line, known[id])
            if problem is not None:
                result.errors[id] = problem
                continue
            turns.turn(known[id], _fresh(known[id], line))
            result.ids.append(id)
        back = [id for id in result.ids if id not in live]
        if back:
            await transaction.execute(_BACK, back)
        await turns.write(transaction, line)
    return result


async def _jobs(transaction: Transaction, sql: str, ids: list[int]) -> list[Job]:
    return [job(row) for row in await transaction.rows(sql, ids)]


def _full(line: Line, job: Job) -> str | None:
    if line.depth.room() <= 0:
        return QUEUE_FULL
    line.depth.move(job.key_id, 1)
    return None


def _fresh(job: Job, line: Line) -> Job:
    return replace(
        with_error(job, None),
        state=State.QUEUED,
        vtag=line.next(place_of(job)),
        max_attempts=job.attempt + job.max_attempts,
        **dict.fromkeys(("run_after", "deadline", "started", "ended", "progress", "status")),
        **dict.fromkeys(("result", "cancel_asked", "notified")),
    )
