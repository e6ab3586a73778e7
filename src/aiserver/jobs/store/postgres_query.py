"""Finds jobs, and gives the pages and counts that people look at."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Collection
from enum import Enum
from typing import Any

from aiserver.jobs.job import JOB_COLUMNS, LARGEST_ID, SUMMARY_COLUMNS, Job, State, Summary
from aiserver.jobs.store import MOST_ROWS, Counts, Filter, Order, Tally
from aiserver.jobs.store.postgres_rows import COLUMNS, job, summary, text
from aiserver.kit.postgres import Postgres

_CONTENT = {"request": "NULL", "files": "NULL", "result": "NULL", "logs": "''"}
_PAGE = ", ".join(f"{_CONTENT.get(name, name)} AS {name}" for name in JOB_COLUMNS)
_KEPT = ", ".join(SUMMARY_COLUMNS[:-1])
_LIVE = f"SELECT {COLUMNS} FROM jobs k"
_FROM_ARCHIVE = ", ".join(
    f"k.{name}" if name == "notified" else f"a.{name}" for name in JOB_COLUMNS
)
_ARCHIVED = (
    f"SELECT {_FROM_ARCHIVE} FROM job_summary k"
    " JOIN job_archive a ON a.month = k.month AND a.id = k.id"
)
_EQUAL = ("operation", "kind", "model", "provider", "worker", "tag")
_AMONG = (("states", "state", "text"), ("ids", "id", "bigint"), ("ref_ids", "ref_id", "text"))
_LARGEST = 2**62
_HOUR = 3_600_000
_TALLIES = f"""
SELECT ended / {_HOUR} * {_HOUR}, operation, worker, state, count(*),
  sum(greatest(attempt - 1, 0))::bigint, sum(coalesce(ended - started, 0))::bigint
FROM (
  SELECT ended, started, operation, worker, state, attempt FROM jobs
  WHERE ended IS NOT NULL AND ended >= $1 AND ended < $2
  UNION ALL
  SELECT ended, started, operation, worker, state, attempt FROM job_summary
  WHERE ended >= $1 AND ended < $2) ended_jobs
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3 NULLS FIRST, 4"""
_WAITING = "state IN ('Queued', 'Scheduled')"
_OWNERS = "SELECT DISTINCT owner FROM jobs WHERE state = 'Started' ORDER BY owner"


class _Where:
    """Conditions with their parameters."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._clauses = ["TRUE"]

    def add(self, clause: str, value: object) -> None:
        """In the clause, {} is the parameter."""
        self.values.append(value)
        self._clauses.append(clause.format(f"${len(self.values)}"))

    def among(self, column: str, type: str, wanted: Collection[Any]) -> None:
        fit = [one.value if isinstance(one, Enum) else one for one in wanted]
        if type == "bigint":
            fit = [one for one in fit if 0 <= one <= LARGEST_ID]
        else:
            fit = [text(one) for one in fit]
        self.add(f"{column} = ANY({{}}::{type}[])", fit)

    def __str__(self) -> str:
        return " AND ".join(self._clauses)


async def find(
    database: Postgres, *, id: int | None, ref_id: str | None, key_id: int | None
) -> Job | None:
    where = _Where()
    if id is not None:
        where.among("k.id", "bigint", (id,))
    else:
        where.add("k.ref_id = {}", text(ref_id or ""))
    if key_id is not None:
        where.add("k.key_id = {}::bigint", _bounded(key_id))
    # It may be moved between the two looks, in either direction.
    for table in (_LIVE, _ARCHIVED, _LIVE):
        sql = f"{table} WHERE {where} ORDER BY k.id DESC LIMIT 1"
        rows = await database.read(sql, *where.values)
        if rows:
            return job(rows[0])
    return None


async def owners(database: Postgres) -> list[str]:
    return [row[0] for row in await database.read(_OWNERS)]


async def jobs(database: Postgres, filter: Filter, *, month: str | None) -> tuple[list[Job], int]:
    where = _where(filter)
    table = "jobs"
    if month is not None:
        table = "job_archive"
        where.add("month = {}", text(month))
    rows = await database.read(
        f"SELECT {_PAGE} FROM {table} WHERE {where} {_ordered(filter)}", *where.values
    )
    return [job(row) for row in rows], await _count(database, table, where)


async def summaries(database: Postgres, filter: Filter) -> tuple[list[Summary], int]:
    where = _where(filter)
    most = max(0, min(filter.take, MOST_ROWS)) + max(0, min(filter.skip, _LARGEST))
    # Each table gives its first rows by its own index; in the second nothing has a null `ended`.
    live = f"SELECT {_KEPT}, NULL::text AS month, priority FROM jobs WHERE {where} {_order(filter)}"
    kept = (
        f"SELECT {_KEPT}, month, 0 AS priority FROM job_summary WHERE {where}"
        f" {_order(filter, nulls=filter.order is not Order.ENDED)}"
    )
    held = f"({live} LIMIT {most}) UNION ALL ({kept} LIMIT {most})"
    rows = await database.read(
        f"SELECT {', '.join(SUMMARY_COLUMNS)} FROM ({held}) held {_ordered(filter)}", *where.values
    )
    total = [await _count(database, table, where) for table in ("jobs", "job_summary")]
    return [summary(row) for row in rows], sum(total)


async def counts(database: Postgres) -> Counts:
    async def by(column: str, condition: str) -> dict[Any, int]:
        sql = f"SELECT {column}, count(*) FROM jobs WHERE {condition} GROUP BY 1 ORDER BY 1"
        return {row[0]: row[1] for row in await database.read(sql)}

    states = await by("state", "TRUE")
    return Counts(
        states={State(word): count for word, count in states.items()},
        waiting_by_key=await by("key_id", _WAITING),
        waiting_by_model=await by("model", _WAITING),
        waiting_by_operation=await by("operation", _WAITING),
        running_by_worker=await by("worker", "state = 'Started' AND worker IS NOT NULL"),
        archived=await _count(database, "job_summary", _Where()),
    )


async def tallies(database: Postgres, *, since: int, until: int) -> list[Tally]:
    rows = await database.read(_TALLIES, _bounded(since), _bounded(until))
    return [
        Tally(hour, operation, worker, State(word), *sums)
        for hour, operation, worker, word, *sums in rows
    ]


async def _count(database: Postgres, table: str, where: _Where) -> int:
    rows = await database.read(f"SELECT count(*) FROM {table} WHERE {where}", *where.values)
    return int(rows[0][0])


def _where(filter: Filter) -> _Where:
    where = _Where()
    for member, column, type in _AMONG:
        if (wanted := getattr(filter, member)) is not None:
            where.among(column, type, wanted)
    if filter.key_id is not None:
        where.add("key_id = {}::bigint", _bounded(filter.key_id))
    for name in _EQUAL:
        if (value := getattr(filter, name)) is not None:
            where.add(f"{name} = {{}}", text(value))
    for value, operator in ((filter.since, ">="), (filter.until, "<")):
        if value is not None:
            where.add(f"created {operator} {{}}", _bounded(value))
    return where


def _bounded(number: int) -> int:
    return max(-_LARGEST, min(number, _LARGEST))


def _ordered(filter: Filter) -> str:
    take = max(0, min(filter.take, MOST_ROWS))
    skip = max(0, min(filter.skip, _LARGEST))
    return f"{_order(filter)} LIMIT {take} OFFSET {skip}"


def _order(filter: Filter, *, nulls: bool = True) -> str:
    way, last = ("DESC", "NULLS LAST") if filter.descending else ("ASC", "NULLS FIRST")
    if filter.order is Order.ID:
        return f"ORDER BY id {way}"
    return f"ORDER BY {filter.order.value} {way} {last if nulls else ''}, id {way}"
