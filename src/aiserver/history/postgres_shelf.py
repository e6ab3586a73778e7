"""Reads the months in PostgreSQL, on one connection that may take its time."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import re
import time
from collections.abc import Sequence

from aiserver.history.archive import TooSlow
from aiserver.history.dialect import POSTGRES, Dialect
from aiserver.kit.db import Row
from aiserver.kit.postgres import Rows, TookTooLong, writable
from aiserver.kit.postgres_thread import PostgresThread

_LONGEST_SECONDS = 60.0
# Questions look through whole months, unlike the queue that the settings of the others are for.
_SESSION = {
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "on"),
    "plan_cache_mode": "force_custom_plan",
    "default_transaction_read_only": "on",
}
_MONTHS = """
SELECT replace(right(c.relname, 7), '_', '-') FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'history_calls'::regclass ORDER BY 1"""
_SIZES = """
SELECT replace(right(c.relname, 7), '_', '-'), sum(pg_total_relation_size(c.oid))::bigint
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('history_calls'::regclass, 'history_contents'::regclass) GROUP BY 1 ORDER BY 1
"""
# A month's part of each table under the name that it has in a file.
_MONTH = ", ".join(
    f"{name} AS NOT MATERIALIZED (SELECT * FROM history_{name} WHERE month = '{{month}}')"
    for name in ("calls", "contents", "hours", "days", "runs")
)
_MARK = re.compile(r"\?")


def months_of(database: PostgresThread, *, seconds: float | None = None) -> list[str]:
    """Oldest first."""
    return [row[0] for row in database.read(_MONTHS, seconds=seconds)]


class PostgresMonth:
    """Implements `Month`."""

    def __init__(self, shelf: "PostgresShelf", month: str) -> None:
        self._shelf = shelf
        self._tables = _MONTH.format(month=month)

    @property
    def dialect(self) -> Dialect:
        return POSTGRES

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        numbered, given = _numbered(sql, values)
        return [tuple(row) for row in self._shelf.read(f"WITH {self._tables} {numbered}", *given)]


class PostgresShelf:
    """Implements `Shelf`."""

    def __init__(self, url: str) -> None:
        self._database = PostgresThread(url, statement_seconds=_LONGEST_SECONDS, session=_SESSION)
        self._until = 0.0
        self._months: list[str] | None = None

    @property
    def last(self) -> str:
        return "PostgreSQL"

    def begin(self, until: float) -> None:
        self._until = until
        self._months = None

    def overdue(self) -> bool:
        return time.monotonic() > self._until

    def months(self) -> list[str]:
        if self._months is None:
            self._months = [row[0] for row in self.read(_MONTHS)]
        return self._months

    def open(self, month: str) -> PostgresMonth | None:
        return PostgresMonth(self, month) if month in self.months() else None

    def sizes(self) -> dict[str, int]:
        return {row[0]: row[1] for row in self.read(_SIZES)}

    def read(self, sql: str, *values: object) -> Rows:
        """In what is left of the question's time. Raises TooSlow or StorageError."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TooSlow("There is no time left.")
        try:
            return self._database.read(sql, *values, seconds=seconds)
        except TookTooLong as error:
            raise TooSlow(str(error)) from error

    def cancel(self) -> None:
        self._until = 0.0
        self._database.cancel()

    def close(self) -> None:
        self._database.close()


def _numbered(sql: str, values: Sequence[object]) -> tuple[str, list[object]]:
    """Parameters as PostgreSQL has them, each with the type of its value."""
    said = iter([_said(value) for value in values])
    given: list[object] = []

    def mark(_: re.Match[str]) -> str:
        type, value = next(said)
        if type is None:
            return "NULL"
        given.append(value)
        return type.format(f"${len(given)}")

    return _MARK.sub(mark, sql), given


def _said(value: object) -> tuple[str | None, object]:
    match value:
        case str():
            # In the order of bytes, whatever language the database is in.
            return '({}::text COLLATE "C")', writable(value)
        case float():
            return "{}::float8", value
        case int():
            return "{}::bigint", int(value)
        case _:
            return None, None
