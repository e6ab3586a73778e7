"""The ledger: what each settled call used and cost, kept even where history is not."""

import asyncio
from collections import deque
from contextlib import closing
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

from aiserver.contract.conditions import stored
from aiserver.contract.trace import Usage
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import (
    Connection,
    Database,
    DriverError,
    Row,
    StorageError,
    in_blocks,
    open_file,
)
from aiserver.kit.ids import began_ms, first_of
from aiserver.kit.ledger import COLUMNS, row
from aiserver.kit.money import dollars

KEPT = timedelta(days=62)

_BOUND = 100_000
_ROWS_A_WRITE = 5_000
_DAY_MS = 86_400_000
_log = log.get("ledger")

_INSERT = f"INSERT OR IGNORE INTO ledger ({COLUMNS})"
_EDGE = "SELECT max(id) FROM (SELECT id FROM ledger WHERE id < ? ORDER BY id LIMIT ?)"
_FOLD = f"""
INSERT INTO ledger_days
SELECT at / {_DAY_MS}, ifnull(key_id, -1), provider, model, count(*),
  ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0), ifnull(sum(cost), 0),
  sum(cost IS NULL), sum(lost)
FROM ledger WHERE id <= ? GROUP BY 1, 2, 3, 4
ON CONFLICT DO UPDATE SET calls = calls + excluded.calls,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens,
  cost = cost + excluded.cost, unknown = unknown + excluded.unknown, lost = lost + excluded.lost
"""  # noqa: S608 - constants of this file
# In two parts, because SQLite refuses sums past 63 bits, 9 million dollars.
_SPENT = """
SELECT ifnull(sum(cost / 1000000), 0), ifnull(sum(cost % 1000000), 0), ifnull(sum(unknown), 0)
FROM (
  SELECT cost, cost IS NULL AS unknown FROM ledger WHERE id >= ? AND key_id IS ?
  UNION ALL
  SELECT cost, unknown FROM ledger_days WHERE day >= ? AND key_id = ifnull(?, -1))
"""

_Entry = tuple[int, int | None, str, str, Usage | None, Decimal | None, int]


class Spent(NamedTuple):
    """Dollars that are known, and the number of calls whose cost is not."""

    known: Decimal
    unknown: int


class Ledger:
    """`add` costs nothing; `flush` writes what was added, and keeps it while it cannot.

    `full`: the store has been away for so long that nothing more is kept.
    """

    def __init__(self, database: Database, clock: Clock, *, bound: int = _BOUND) -> None:
        self._db = database
        self._clock = clock
        self._bound = bound
        self._added: deque[_Entry] = deque()
        self._writing = asyncio.Lock()
        self.problem: str | None = None
        self.dropped = 0

    @property
    def full(self) -> bool:
        return len(self._added) >= self._bound

    @property
    def held(self) -> int:
        return len(self._added)

    def add(
        self,
        id: int,
        key_id: int | None,
        provider: str,
        model: str,
        usage: Usage | None,
        cost: Decimal | None,
        lost: int,
    ) -> None:
        """One settled call, `cost` in dollars; the same id again is ignored when it is written."""
        if len(self._added) < self._bound:
            self._added.append((id, key_id, provider, model, usage, cost, lost))
            return
        if not self.dropped:
            _log.error("ledger_full", held=self._bound)
        self.dropped += 1

    async def flush(self) -> None:
        """Writes what was added until now; while the store is away it stays for the next time."""
        async with self._writing:
            # What comes meanwhile waits for the next round, so that commits stay few under load.
            left = len(self._added)
            while left:
                entries = list(islice(self._added, min(left, _ROWS_A_WRITE)))
                left -= len(entries)
                rows = [_row(entry) for entry in entries]
                try:
                    await self._db.write(lambda connection, rows=rows: _insert(connection, rows))
                except StorageError as error:
                    self._troubled(str(error))
                    return
                for _ in entries:
                    self._added.popleft()
            self._troubled(None)

    async def fold(self, before: datetime | None = None) -> int:
        """Sums rows by day and removes them, older than 62 days if not told; how many."""
        limit = first_of(before or self._clock.now() - KEPT)
        moved = 0
        while found := await self._db.write(lambda connection: _fold(connection, limit)):
            moved += found
        return moved

    async def spent(self, key_id: int | None, since: datetime) -> Spent:
        """For start-up and reports: it reads every row since. What was folded counts by the day."""
        return await asyncio.to_thread(self._spent, key_id, since)

    async def close(self) -> None:
        """Writes what is held, if that can be."""
        await self.flush()
        if self._added:
            _log.error("ledger_not_written", calls=len(self._added), problem=self.problem)

    def _spent(self, key_id: int | None, since: datetime) -> Spent:
        first = first_of(since)
        day = began_ms(first) // _DAY_MS
        try:
            with closing(open_file(self._db.path, read_only=True)) as connection:
                found = connection.execute(_SPENT, (first, key_id, day, key_id)).fetchall()
        except DriverError as error:
            raise StorageError(f"Cannot read the ledger: {error}.") from error
        [(millionths, rest, unknown)] = found
        return Spent(dollars(millionths * 1_000_000 + rest), unknown)

    def _troubled(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            _log.error("ledger_not_writable", problem=problem, held=len(self._added))
        if problem is None and self.problem is not None:
            _log.info("ledger_writable_again", dropped=self.dropped)
        self.problem = problem


def _insert(connection: Connection, rows: list[Row]) -> None:
    for sql, values in in_blocks(_INSERT, rows):
        connection.execute(sql, values)


def _fold(connection: Connection, limit: int) -> int:
    [(last,)] = connection.rows(_EDGE, (limit, _ROWS_A_WRITE))
    if last is None:
        return 0
    connection.execute(_FOLD, (last,))
    return connection.execute("DELETE FROM ledger WHERE id <= ?", (last,))


def _row(entry: _Entry) -> Row:
    id, key_id, provider, model, usage, cost, lost = entry
    return row(
        id,
        at=began_ms(id),
        key_id=key_id,
        provider=str(stored(provider)),
        model=str(stored(model)),
        prompt_tokens=usage.prompt if usage else None,
        completion_tokens=usage.completion if usage else None,
        cost=cost,
        lost=lost,
    )
