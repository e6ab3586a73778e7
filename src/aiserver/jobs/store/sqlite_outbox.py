"""Callbacks to be sent, in SQLite."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import asyncio
from collections.abc import Collection

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
from aiserver.jobs.store.due import FEW, Look, Turn, chosen
from aiserver.jobs.store.outbox import MOST_ATTEMPTS, MOST_PASSED_THERE, MOST_WALKED
from aiserver.jobs.store.sqlite_query import Read, apart, deliveries, delivery_of
from aiserver.jobs.store.sqlite_rows import AMONG, insert_delivery, listed
from aiserver.kit.clock import Clock
from aiserver.kit.db import Connection, Database, Row

_COLUMNS = ", ".join(DELIVERY_COLUMNS)
_DUE = """
SELECT due, id, key_id, receiver FROM (
  SELECT *, row_number() OVER (PARTITION BY receiver ORDER BY due, id) AS place FROM (
    SELECT due, id, key_id, receiver FROM outbox INDEXED BY outbox_next
    WHERE state = 'Pending' AND due <= ? ORDER BY due, id LIMIT {window})
  WHERE receiver NOT {among} AND key_id NOT {among})
WHERE place <= ? ORDER BY due, id LIMIT {most}"""
_DUE_FEW = _DUE.format(window=FEW, among=AMONG, most=MOST_ROWS)
_DUE_MANY = _DUE.format(window=MOST_PASSED, among=AMONG, most=MOST_ROWS)
_MORE = """
SELECT 1 FROM outbox INDEXED BY outbox_next
WHERE state = 'Pending' AND due <= ? ORDER BY due LIMIT 1 OFFSET ?"""
# A step for each receiver, however many deliveries wait for it.
_FIRST_AFTER = """
SELECT rowid FROM outbox INDEXED BY outbox_due
WHERE state = 'Pending' AND receiver > {name} ORDER BY receiver, due, id LIMIT 1"""
_WALK = f"""
WITH RECURSIVE walk (receiver, place, due, key_id) AS (
  SELECT receiver, 1, due, key_id FROM outbox WHERE rowid = ({_FIRST_AFTER.format(name="?")})
  UNION ALL
  SELECT o.receiver, w.place + 1, o.due, o.key_id FROM walk w CROSS JOIN outbox o
  WHERE w.place < {MOST_WALKED} AND o.rowid = ({_FIRST_AFTER.format(name="w.receiver")})
)
SELECT receiver, place, due, key_id FROM walk
WHERE (due <= ? AND receiver NOT {AMONG}) OR place = {MOST_WALKED} ORDER BY place"""
_THERE = f"""
SELECT due, id, key_id, receiver FROM (
  SELECT due, id, key_id, receiver FROM outbox INDEXED BY outbox_due
  WHERE state = 'Pending' AND receiver = ? AND due <= ? ORDER BY due, id LIMIT {MOST_PASSED_THERE})
WHERE key_id NOT {AMONG} LIMIT ?"""
_TAKE = f"""
UPDATE outbox SET due = ?, under_way = 0 WHERE id {AMONG} AND state = 'Pending' AND due <= ?
RETURNING {_COLUMNS}"""
_NEXT = "SELECT min(due) FROM outbox INDEXED BY outbox_next WHERE state = 'Pending'"
_AGAIN_SINCE = "under_way = 1 AND ?2 <> 'Delivered'"
_ATTEMPTED = f"""
UPDATE outbox SET attempt = ?1, last_status = ?4, last_error = ?5, delivered = ?6, under_way = NULL,
  state = CASE WHEN {_AGAIN_SINCE} THEN 'Pending' ELSE ?2 END,
  due = CASE WHEN {_AGAIN_SINCE} THEN ?7 ELSE ?3 END
WHERE id = ?8 AND attempt = ?1 - 1 AND state = 'Pending' RETURNING job_id"""
_LOG = "INSERT INTO outbox_attempts VALUES (?, ?, ?, ?, ?, ?)"
_CUT = "DELETE FROM outbox_attempts WHERE delivery_id = ? AND attempt <= ?"
_UNDER_WAY = "state = 'Pending' AND under_way IS NOT NULL AND due > ?1"
_AGAIN = f"""
UPDATE outbox SET state = 'Pending',
  due = CASE WHEN {_UNDER_WAY} THEN due ELSE ?1 END,
  under_way = CASE WHEN {_UNDER_WAY} THEN 1 END
WHERE id = ?2 AND (?3 IS NULL OR key_id = ?3)"""
_ONE = f"SELECT {_COLUMNS} FROM outbox WHERE id = ? AND (? IS NULL OR key_id = ?)"
_ATTEMPTS = f"""
SELECT attempt, at, duration_ms, status, error FROM outbox_attempts
WHERE delivery_id = ? ORDER BY attempt DESC LIMIT {MOST_ATTEMPTS}"""
_PENDING = """
SELECT count(*) FROM (
  SELECT 1 FROM outbox INDEXED BY outbox_key WHERE state = 'Pending' AND key_id = ? LIMIT ?)"""
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
        self._turn = Turn()

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
        most = max(0, min(most, MOST_ROWS))
        look = Look(now, most, min(per_receiver, most), per_key, busy, busy_keys)
        ids = chosen(await self._due(look), look)
        if not ids:
            return []
        order = {id: place for place, id in enumerate(ids)}
        values = (until, listed(ids), now)
        rows = await self._db.write(lambda connection: connection.rows(_TAKE, values), single=True)
        return sorted(map(delivery_of, rows), key=lambda delivery: order[delivery.id])

    async def next_due(self) -> int | None:
        return self._db.read(_NEXT)[0][0]

    async def attempted(self, attempted: Attempted) -> bool:
        new, now = attempted, self._now()
        arrived = now if new.state is DeliveryState.DELIVERED else None

        def log(connection: Connection) -> bool:
            what = (new.attempt, new.state.value, new.due or now, new.status, new.error, arrived)
            rows = connection.rows(_ATTEMPTED, (*what, now, new.id))
            if not rows:
                return False
            entry = (new.id, new.attempt, new.at, new.duration_ms, new.status, new.error)
            connection.execute(_LOG, entry)
            connection.execute(_CUT, (new.id, new.attempt - MOST_ATTEMPTS))
            if arrived is not None and rows[0][0] is not None:
                for table in ("jobs", "job_summary"):
                    sql = f"UPDATE {table} SET notified = ? WHERE id = ?"
                    connection.execute(sql, (arrived, rows[0][0]))
            return True

        return await self._db.write(log)

    async def redeliver(self, id: str, *, key_id: int | None = None) -> bool:
        values = (self._now(), id, key_id)
        return await self._db.write(lambda connection: connection.execute(_AGAIN, values)) > 0

    async def deliveries(self, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
        return await asyncio.to_thread(apart, self._db, lambda read: deliveries(read, filter))

    async def delivery(self, id: str, *, key_id: int | None = None) -> Delivery | None:
        rows = self._db.read(_ONE, (id, key_id, key_id))
        return delivery_of(rows[0]) if rows else None

    async def attempts(self, id: str) -> list[Attempt]:
        return [Attempt(*row) for row in reversed(self._db.read(_ATTEMPTS, (id,)))]

    async def pending(self, key_id: int, *, most: int) -> int:
        return self._db.read(_PENDING, (key_id, most))[0][0]

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

    async def _due(self, look: Look) -> list[Row]:
        found = _due(self._db.read, _DUE_FEW, look)
        if found or not _more(self._db.read, look, FEW):
            return found
        return await asyncio.to_thread(apart, self._db, lambda read: self._further(read, look))

    def _further(self, read: Read, look: Look) -> list[Row]:
        found = _due(read, _DUE_MANY, look)
        if found or not _more(read, look, MOST_PASSED):
            return found
        walked = read(_WALK, (self._turn.after, look.now, listed(look.busy)))
        keys = listed(look.busy_keys)
        for name in self._turn.receivers(walked, look):
            found += read(_THERE, (name, look.now, keys, look.per_receiver))
        return sorted(found)

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _due(read: Read, sql: str, look: Look) -> list[Row]:
    busy, keys = listed(look.busy), listed(look.busy_keys)
    return read(sql, (look.now, busy, keys, look.per_receiver))


def _more(read: Read, look: Look, passed: int) -> bool:
    return bool(read(_MORE, (look.now, passed)))
