"""The ledger: what each settled call used and cost, kept even where history is not."""

import asyncio
from collections import deque
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

from aiserver.contract.conditions import stored
from aiserver.contract.trace import Usage
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import Row, StorageError, in_blocks
from aiserver.kit.ids import began_ms, first_of
from aiserver.kit.ledger import COLUMNS, row
from aiserver.kit.money import dollars
from aiserver.kit.tables import Statement, Tables

KEPT = timedelta(days=62)

_BOUND = 100_000
_ROWS_A_WRITE = 5_000
_DAY_MS = 86_400_000
_log = log.get("ledger")

_INSERT = f"INSERT INTO ledger ({COLUMNS})"
_OLDEST = "SELECT {} FROM ledger WHERE id < ? ORDER BY id LIMIT ?"
# Holds up another process that would fold the same rows.
_ALONE = "UPDATE revisions SET number = number + 1 WHERE name = 'ledger'"
_SUMS = ("calls", "prompt_tokens", "completion_tokens", "cost", "unknown", "lost")
_FOLD = f"""
INSERT INTO ledger_days
SELECT at / {_DAY_MS}, coalesce(key_id, -1), provider, model, count(*),
  coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(cost), 0),
  count(*) - count(cost), sum(lost)
FROM ({_OLDEST.format("*")}) oldest GROUP BY 1, 2, 3, 4
ON CONFLICT (day, key_id, provider, model) DO UPDATE SET
  {", ".join(f"{name} = ledger_days.{name} + excluded.{name}" for name in _SUMS)}
"""  # noqa: S608 - constants of this file
_REMOVE = f"DELETE FROM ledger WHERE id IN ({_OLDEST.format('id')}) RETURNING id"  # noqa: S608
# In two parts, because SQLite refuses sums past 63 bits, 9 million dollars.
_SPENT = """
SELECT coalesce(sum(cost / 1000000), 0), coalesce(sum(cost % 1000000), 0),
  coalesce(sum(unknown), 0)
FROM (
  SELECT cost, CASE WHEN cost IS NULL THEN 1 ELSE 0 END AS unknown
  FROM ledger WHERE id >= ? AND key_id IS NOT DISTINCT FROM ?
  UNION ALL
  SELECT cost, unknown FROM ledger_days WHERE day >= ? AND key_id = coalesce(?, -1)) found
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

    def __init__(self, tables: Tables, clock: Clock, *, bound: int = _BOUND) -> None:
        self._tables = tables
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
                inserts = in_blocks(_INSERT, rows, tail="ON CONFLICT DO NOTHING")
                try:
                    await self._tables.write(*(Statement(*insert) for insert in inserts))
                except StorageError as error:
                    self._troubled(str(error))
                    return
                for _ in entries:
                    self._added.popleft()
            self._troubled(None)

    async def fold(self, before: datetime | None = None) -> int:
        """Sums rows by day and removes them, older than 62 days if not told; how many."""
        oldest = (first_of(before or self._clock.now() - KEPT), _ROWS_A_WRITE)
        steps = Statement(_ALONE), Statement(_FOLD, oldest), Statement(_REMOVE, oldest)
        moved = 0
        while found := (await self._tables.write(*steps))[-1]:
            moved += len(found)
        return moved

    async def spent(self, key_id: int | None, since: datetime) -> Spent:
        """For start-up and reports: it reads every row since. What was folded counts by the day."""
        first = first_of(since)
        day = began_ms(first) // _DAY_MS
        rows = await self._tables.read_long(_SPENT, first, key_id, day, key_id)
        millionths, rest, unknown = map(int, rows[0])
        return Spent(dollars(millionths * 1_000_000 + rest), unknown)

    async def close(self) -> None:
        """Writes what is held, if that can be."""
        await self.flush()
        if self._added:
            _log.error("ledger_not_written", calls=len(self._added), problem=self.problem)

    def _troubled(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            _log.error("ledger_not_writable", problem=problem, held=len(self._added))
        if problem is None and self.problem is not None:
            _log.info("ledger_writable_again", dropped=self.dropped)
        self.problem = problem


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
