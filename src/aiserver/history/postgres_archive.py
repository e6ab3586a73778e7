"""History in PostgreSQL, one partition a UTC month, written by any number of processes at once."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiserver.history.archive import Content
from aiserver.history.postgres_shelf import PostgresShelf, months_of
from aiserver.history.rollups import SUMS, Tally
from aiserver.history.rows import COLUMNS, MODEL
from aiserver.kit.db import Row
from aiserver.kit.postgres import writable
from aiserver.kit.postgres_thread import PostgresThread, ThreadTransaction

# One process at a time makes or drops a month's partitions.
_MOVING = "SELECT pg_advisory_xact_lock(4611734512290823)"
_PARTITIONS = """
CREATE TABLE IF NOT EXISTS {calls} PARTITION OF history_calls
  (month DEFAULT '{month}', PRIMARY KEY (id)) FOR VALUES IN ('{month}');
CREATE TABLE IF NOT EXISTS {contents} PARTITION OF history_contents
  (month DEFAULT '{month}', PRIMARY KEY (call_id)) FOR VALUES IN ('{month}')"""
_FORGET = """
DROP TABLE IF EXISTS {calls}, {contents};
DELETE FROM history_hours WHERE month = '{month}';
DELETE FROM history_days WHERE month = '{month}';
DELETE FROM history_runs WHERE month = '{month}'"""
_KNOWN = "SELECT id FROM {calls} WHERE id = ANY($1::bigint[])"
_HOURS, _DAYS = ("hour", "model", "provider"), ("day", "key_id", "model")
_RUN = """
INSERT INTO history_runs AS r VALUES ($1, $2, $3)
ON CONFLICT (month, run) DO UPDATE SET calls = r.calls + excluded.calls"""
_WRITTEN_BY = "SELECT coalesce(sum(calls), 0)::bigint FROM history_runs WHERE run = $1"
_TEXTS = frozenset(("operation", "model", "provider", "error", "detail"))
_MOST = {"status": 2**31 - 1, "lost": 2**31 - 1}
_LARGEST = 2**63 - 1
_DETAIL = COLUMNS.index("detail")
# A NUL as JSON writes it: no backslash stands before its own that would make it mean another.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def _upsert(table: str, key: tuple[str, str, str]) -> str:
    columns = ("month", *key, *SUMS)
    types = ("text" if name in ("model", "provider") else "bigint" for name in columns[1:])
    lists = ", ".join(f"${n}::{type}[]" for n, type in enumerate(types, 2))
    sums = ", ".join(f"{name} = t.{name} + excluded.{name}" for name in SUMS)
    return (
        f"INSERT INTO {table} AS t ({', '.join(columns)}) SELECT $1::text, * FROM unnest({lists})"
        f" ON CONFLICT (month, {', '.join(key)}) DO UPDATE SET {sums}"
    )


_ADD_HOURS, _ADD_DAYS = _upsert("history_hours", _HOURS), _upsert("history_days", _DAYS)


class PostgresPage:
    """Implements `Page`."""

    def __init__(self, transaction: ThreadTransaction, month: str) -> None:
        self._transaction = transaction
        self._month = month
        self._names = _names(month)

    def insert(self, chunks: Iterable[tuple[list[Row], list[Content]]]) -> None:
        # All rows are made first: an error of ours in the middle of a copy costs the connection.
        # Between two chunks other threads have their turn.
        rows: list[Row] = []
        contents: list[Row] = []
        for some, bodies in chunks:
            rows += some
            time.sleep(0)
            contents += (
                (id, _readable(prompt), _readable(answer)) for id, prompt, answer in bodies
            )
        self._transaction.copy(self._names["calls"], COLUMNS, _in_turns(rows))
        if contents:
            columns = ("call_id", "prompt", "answer")
            self._transaction.copy(self._names["contents"], columns, _in_turns(contents))

    def undo(self) -> None:
        self._transaction.again()

    def known(self, ids: Sequence[int]) -> set[int]:
        return {row[0] for row in self._transaction.rows(_KNOWN.format(**self._names), list(ids))}

    def add(self, tally: Tally, *, run: int, calls: int) -> None:
        # In one order in every process, so that no two wait for each other.
        for sql, groups in zip((_ADD_HOURS, _ADD_DAYS), tally.groups(), strict=True):
            if groups:
                columns = map(list, zip(*sorted(groups), strict=True))
                self._transaction.execute(sql, self._month, *columns)
        self._transaction.execute(_RUN, self._month, run, calls)


class PostgresArchive:
    """Implements `Archive` on a database at this version's schema."""

    broken = 0

    def __init__(self, url: str) -> None:
        self._url = url
        self._database = PostgresThread(url)
        self._made: set[str] = set()

    def prepare(self) -> None:
        """The migrations have done it."""

    @contextmanager
    def page(self, month: str) -> Generator[PostgresPage]:
        if month not in self._made:
            self._move(_PARTITIONS, month)
            self._made.add(month)
        with self._database.transaction() as transaction:
            yield PostgresPage(transaction, month)

    def mended(self, month: str, error: Exception) -> bool:
        # Another process may have dropped it.
        self._made.discard(month)
        return False

    def fitting(self, rows: list[Row]) -> list[Row]:
        return rows if all(map(_is_plain, rows)) else self.plain(rows)

    def plain(self, rows: list[Row]) -> list[Row]:
        return list(map(_plain, rows))

    def drop_before(self, month: str) -> list[str]:
        dropped = [old for old in months_of(self._database) if old < month]
        for old in dropped:
            self._made.discard(old)
            self._move(_FORGET, old)
        return dropped

    def written_by(self, run: int) -> int:
        [(calls,)] = self._database.read(_WRITTEN_BY, run)
        return int(calls)

    def shelf(self) -> PostgresShelf:
        return PostgresShelf(self._url)

    def close(self) -> None:
        self._database.close()

    def _move(self, statements: str, month: str) -> None:
        with self._database.transaction() as transaction:
            transaction.execute(_MOVING)
            transaction.execute(statements.format(month=month, **_names(month)))


def _names(month: str) -> dict[str, str]:
    end = month.replace("-", "_")
    return {name: f"history_{name}_{end}" for name in ("calls", "contents")}


def _in_turns(rows: list[Row]) -> Iterator[Row]:
    """The driver would hold up all other threads until it has encoded the last row."""
    for number, row in enumerate(rows):
        if number % 64 == 0:
            time.sleep(0)
        yield row


def _is_plain(row: Row) -> bool:
    """Whether it has no NUL, which a caller may have written in two places."""
    model = row[MODEL]
    return "\\u0000" not in row[_DETAIL] and (model is None or "\x00" not in model)


def _plain(row: Row) -> Row:
    return tuple(_held(*pair) for pair in zip(COLUMNS, row, strict=True))


def _held(column: str, value: Any) -> str | int | None:
    """What the column can hold of it; None where that is nothing."""
    if column in _TEXTS:
        if not isinstance(value, str):
            return None
        text = _NUL.sub("\\1\ufffd", value) if column == "detail" else value
        return writable(text)
    most = _MOST.get(column, _LARGEST)
    return value if type(value) is int and -most <= value <= most else None


def _readable(content: bytes | None) -> str | None:
    # It may be cut in the middle of a character.
    return None if content is None else content.decode(errors="replace").replace("\x00", "\ufffd")
