"""Pages and counts of SQLite's jobs, for people who look at them."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeVar

import msgspec

from aiserver.jobs.job import JOB_COLUMNS, SUMMARY_COLUMNS, Job, Summary
from aiserver.jobs.store import (
    DELIVERY_COLUMNS,
    MOST_ROWS,
    Counts,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Filter,
    Order,
    Tally,
)
from aiserver.jobs.store.sqlite_rows import AMONG, job_of, listed, state_of, summary_of
from aiserver.kit.db import Database, DriverError, Row, StorageError, open_file

T = TypeVar("T")
_CONTENT = {"request": "NULL", "files": "NULL", "result": "NULL", "logs": "''"}
_PAGE = ", ".join(f"{_CONTENT.get(name, name)} AS {name}" for name in JOB_COLUMNS)
_KEPT = ", ".join(SUMMARY_COLUMNS[:-1])
_EQUAL = ("key_id", "operation", "kind", "model", "provider", "worker", "tag")
_AMONG = (("states", "state"), ("ids", "id"), ("ref_ids", "ref_id"))
_DELIVERY_STATE = DELIVERY_COLUMNS.index("state")
_DELIVERY_BODY = DELIVERY_COLUMNS.index("body")
_HOUR = 3_600_000
_TALLIES = f"""
SELECT ended / {_HOUR} * {_HOUR}, operation, worker, state, count(*), sum(max(attempt - 1, 0)),
  sum(ifnull(ended - started, 0))
FROM (
  SELECT ended, started, operation, worker, state, attempt FROM jobs
  WHERE ended IS NOT NULL AND ended >= ? AND ended < ?
  UNION ALL
  SELECT ended, started, operation, worker, state, attempt FROM job_summary
  WHERE ended >= ? AND ended < ?)
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"""
_WAITING = "state IN ('Queued', 'Scheduled')"

Read = Callable[[str, Sequence[Any]], list[Row]]


def apart(database: Database, work: Callable[[Read], T]) -> T:
    """For a thread: a long read on a connection of its own. Raises StorageError."""
    try:
        with closing(open_file(database.path, read_only=True)) as connection:
            connection.execute("BEGIN")
            return work(lambda sql, values: connection.execute(sql, values).fetchall())
    except DriverError as error:
        raise StorageError(f"Cannot read {database.path.name}: {error}.") from error


def jobs(read: Read, filter: Filter) -> tuple[list[Job], int]:
    where, values = _where(filter)
    page = f"SELECT {_PAGE} FROM jobs WHERE {where} {_ordered(filter)}"
    count = f"SELECT count(*) FROM jobs WHERE {where}"
    return [job_of(row) for row in read(page, values)], _one(read(count, values))


def month_jobs(month: Read, kept: Read, filter: Filter) -> tuple[list[Job], int]:
    """A page of what `month` reads; callbacks may have been delivered since it was written."""
    found, total = jobs(month, filter)
    sql = f"SELECT id, notified FROM job_summary WHERE id {AMONG}"
    notified = dict(kept(sql, (listed(job.id for job in found),)))
    replaced = [msgspec.structs.replace(job, notified=notified.get(job.id)) for job in found]
    return replaced, total


def summaries(read: Read, filter: Filter) -> tuple[list[Summary], int]:
    where, values = _where(filter)
    held = (
        f"SELECT {_KEPT}, NULL AS month, priority FROM jobs WHERE {where} UNION ALL "
        f"SELECT {_KEPT}, month, 0 AS priority FROM job_summary WHERE {where}"
    )
    columns = ", ".join(SUMMARY_COLUMNS)
    page = f"SELECT {columns} FROM ({held}) {_ordered(filter)}"
    total = sum(
        _one(read(f"SELECT count(*) FROM {table} WHERE {where}", values))
        for table in ("jobs", "job_summary")
    )
    return [summary_of(row) for row in read(page, values * 2)], total


def counts(read: Read) -> Counts:
    def by(column: str, condition: str) -> dict[Any, int]:
        sql = f"SELECT {column}, count(*) FROM jobs WHERE {condition} GROUP BY 1 ORDER BY 1"
        return dict(read(sql, ()))

    return Counts(
        states={state_of(word): count for word, count in by("state", "TRUE").items()},
        waiting_by_key=by("key_id", _WAITING),
        waiting_by_model=by("model", _WAITING),
        waiting_by_operation=by("operation", _WAITING),
        running_by_worker=by("worker", "state = 'Started' AND worker IS NOT NULL"),
        archived=_one(read("SELECT count(*) FROM job_summary", ())),
    )


def waiting_by_key(read: Read) -> dict[int, int]:
    return dict(read(f"SELECT key_id, count(*) FROM jobs WHERE {_WAITING} GROUP BY 1", ()))


def tallies(read: Read, since: int, until: int) -> list[Tally]:
    rows = read(_TALLIES, (since, until, since, until))
    return [
        Tally(hour, operation, worker, state_of(word), *sums)
        for hour, operation, worker, word, *sums in rows
    ]


def deliveries(read: Read, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
    clauses: list[str] = ["TRUE"]
    values: list[Any] = []
    for name in ("key_id", "job_id", "id"):
        if (value := getattr(filter, name)) is not None:
            clauses.append(f"{name} = ?")
            values.append(value)
    if filter.states is not None:
        clauses.append(f"state {AMONG}")
        values.append(listed(filter.states))
    where = " AND ".join(clauses)
    columns = ", ".join("NULL AS body" if name == "body" else name for name in DELIVERY_COLUMNS)
    page = f"SELECT {columns} FROM outbox WHERE {where} ORDER BY created DESC, id LIMIT ? OFFSET ?"
    rows = read(page, (*values, min(filter.take, MOST_ROWS), filter.skip))
    total = _one(read(f"SELECT count(*) FROM outbox WHERE {where}", values))
    return [delivery_of(row) for row in rows], total


def delivery_of(row: Row) -> Delivery:
    values = list(row)
    values[_DELIVERY_STATE] = DeliveryState(values[_DELIVERY_STATE])
    values[_DELIVERY_BODY] = values[_DELIVERY_BODY] or None
    return Delivery(*values)


def _where(filter: Filter) -> tuple[str, list[Any]]:
    clauses: list[str] = ["TRUE"]
    values: list[Any] = []
    for member, column in _AMONG:
        if (wanted := getattr(filter, member)) is not None:
            clauses.append(f"{column} {AMONG}")
            values.append(listed(wanted))
    for name in _EQUAL:
        if (value := getattr(filter, name)) is not None:
            clauses.append(f"{name} = ?")
            values.append(value)
    for name, operator in (("since", ">="), ("until", "<")):
        if (value := getattr(filter, name)) is not None:
            clauses.append(f"created {operator} ?")
            values.append(value)
    return " AND ".join(clauses), values


def _ordered(filter: Filter) -> str:
    way = "DESC" if filter.descending else "ASC"
    first = "" if filter.order is Order.ID else f"{filter.order.value} {way}, "
    take = max(0, min(filter.take, MOST_ROWS))
    return f"ORDER BY {first}id {way} LIMIT {take} OFFSET {max(0, filter.skip)}"


def _one(rows: list[Row]) -> int:
    return int(rows[0][0]) if rows else 0
