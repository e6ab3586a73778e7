"""Callbacks to be sent, in SQLite."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence

from aiserver.jobs.store import (
    DELIVERY_COLUMNS,
    MOST_PASSED,
    MOST_ROWS,
    Attempt,
    Attempted,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    NewDelivery,
)
from aiserver.jobs.store.sqlite_query import apart, deliveries, delivery_of
from aiserver.jobs.store.sqlite_rows import AMONG, insert_delivery, listed
from aiserver.kit.clock import Clock
from aiserver.kit.db import Connection, Database, Row

_COLUMNS = ", ".join(DELIVERY_COLUMNS)
# A step for each receiver, however many deliveries wait for it.
_RECEIVERS = """
WITH RECURSIVE receivers (name) AS (
  SELECT min(receiver) FROM outbox INDEXED BY outbox_due WHERE state = 'Pending'
  UNION ALL
  SELECT (SELECT min(receiver) FROM outbox INDEXED BY outbox_due
      WHERE state = 'Pending' AND receiver > name)
  FROM receivers WHERE name IS NOT NULL
)
SELECT name FROM receivers WHERE name IS NOT NULL"""
_DUE = f"""
SELECT due, id, key_id FROM (
  SELECT due, id, key_id FROM outbox INDEXED BY outbox_due
  WHERE state = 'Pending' AND receiver = ? AND due <= ? ORDER BY due, id LIMIT {MOST_PASSED})
WHERE key_id NOT {AMONG} LIMIT ?"""
_TAKE = f"UPDATE outbox SET due = ? WHERE id {AMONG} RETURNING {_COLUMNS}"
_NEXT = "SELECT min(due) FROM outbox INDEXED BY outbox_next WHERE state = 'Pending'"
_ATTEMPTED = """
UPDATE outbox SET attempt = ?, state = ?, due = ?, last_status = ?, last_error = ?, delivered = ?
WHERE id = ? AND attempt = ? AND state = 'Pending' RETURNING job_id"""
_LOG = "INSERT INTO outbox_attempts VALUES (?, ?, ?, ?, ?, ?)"
_AGAIN = "UPDATE outbox SET state = 'Pending', due = ? WHERE id = ? AND (? IS NULL OR key_id = ?)"
_ONE = f"SELECT {_COLUMNS} FROM outbox WHERE id = ? AND (? IS NULL OR key_id = ?)"
_ATTEMPTS = """
SELECT attempt, at, duration_ms, status, error FROM outbox_attempts
WHERE delivery_id = ? ORDER BY attempt"""
_OLD = f"""
SELECT id FROM outbox INDEXED BY outbox_created
WHERE created < ? AND state <> 'Pending' ORDER BY created LIMIT {MOST_ROWS}"""

# The column takes no NULL; no callback has an empty body.
_FULL = f"""
SELECT id FROM outbox INDEXED BY outbox_created
WHERE created < ? AND body <> x'' ORDER BY created LIMIT {MOST_ROWS}"""
_BLANK = f"UPDATE outbox SET body = x'' WHERE id {AMONG}"


class SqliteOutbox:
    """Implements `Outbox`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    async def add(self, delivery: NewDelivery) -> None:
        now = self._now()
        await self._db.write(lambda connection: insert_delivery(connection, delivery, now))

    async def take(
        self,
        *,
        until: int,
        most: int,
        per_receiver: int,
        per_key: int | None = None,
        busy: Collection[str] = (),
        busy_keys: Collection[int] = (),
    ) -> list[Delivery]:
        now = self._now()
        due = await self.next_due()
        if due is None or due > now:
            return []
        per_receiver = min(per_receiver, most)

        def take(connection: Connection) -> list[Delivery]:
            found: list[Row] = []
            for (receiver,) in connection.rows(_RECEIVERS):
                if receiver not in busy:
                    found += connection.rows(_DUE, (receiver, now, listed(busy_keys), per_receiver))
            chosen = _chosen(sorted(found), most, per_key)
            order = {id: place for place, id in enumerate(chosen)}
            taken = connection.rows(_TAKE, (until, listed(order))) if order else []
            return sorted(map(delivery_of, taken), key=lambda delivery: order[delivery.id])

        return await self._db.write(take)

    async def next_due(self) -> int | None:
        return self._db.read(_NEXT)[0][0]

    async def attempted(self, attempted: Attempted) -> bool:
        new, now = attempted, self._now()
        arrived = now if new.state is DeliveryState.DELIVERED else None

        def log(connection: Connection) -> bool:
            what = (new.attempt, new.state.value, new.due or now, new.status, new.error, arrived)
            rows = connection.rows(_ATTEMPTED, (*what, new.id, new.attempt - 1))
            if not rows:
                return False
            entry = (new.id, new.attempt, new.at, new.duration_ms, new.status, new.error)
            connection.execute(_LOG, entry)
            if arrived is not None and rows[0][0] is not None:
                for table in ("jobs", "job_summary"):
                    sql = f"UPDATE {table} SET notified = ? WHERE id = ?"
                    connection.execute(sql, (arrived, rows[0][0]))
            return True

        return await self._db.write(log)

    async def redeliver(self, id: str, *, key_id: int | None = None) -> bool:
        values = (self._now(), id, key_id, key_id)
        return await self._db.write(lambda connection: connection.execute(_AGAIN, values)) > 0

    async def deliveries(self, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
        return await asyncio.to_thread(apart, self._db, lambda read: deliveries(read, filter))

    async def delivery(self, id: str, *, key_id: int | None = None) -> Delivery | None:
        rows = self._db.read(_ONE, (id, key_id, key_id))
        return delivery_of(rows[0]) if rows else None

    async def attempts(self, id: str) -> list[Attempt]:
        return [Attempt(*row) for row in self._db.read(_ATTEMPTS, (id,))]

    async def blank(self, before: int) -> int:
        found = await asyncio.to_thread(apart, self._db, lambda read: read(_FULL, (before,)))
        if not found:
            return 0
        ids = listed(id for (id,) in found)
        return await self._db.write(lambda connection: connection.execute(_BLANK, (ids,)))

    async def prune(self, before: int) -> int:
        def prune(connection: Connection) -> int:
            ids = listed(id for (id,) in connection.rows(_OLD, (before,)))
            connection.execute(f"DELETE FROM outbox_attempts WHERE delivery_id {AMONG}", (ids,))
            return connection.execute(f"DELETE FROM outbox WHERE id {AMONG}", (ids,))

        return await self._db.write(prune)

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _chosen(rows: Sequence[Row], most: int, per_key: int | None) -> list[str]:
    """The ids of the first ones, so many of one key at most."""
    taken: Counter[int] = Counter()
    chosen: list[str] = []
    for _, id, key_id in rows:
        if len(chosen) < most and (per_key is None or taken[key_id] < per_key):
            taken[key_id] += 1
            chosen.append(id)
    return chosen
