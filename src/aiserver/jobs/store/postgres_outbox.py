"""Callbacks to be sent, in PostgreSQL."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Collection
from typing import Any

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
from aiserver.jobs.store.due import FEW, Found, Look, Turn, chosen
from aiserver.jobs.store.outbox import MOST_ATTEMPTS, MOST_PASSED_THERE, MOST_WALKED
from aiserver.jobs.store.postgres_rows import text
from aiserver.jobs.store.postgres_turn import add_deliveries
from aiserver.kit.clock import Clock
from aiserver.kit.postgres import Postgres, Record, Transaction

# While the planner does not know yet how many are due it would sort them all to see the first.
_IN_ORDER = "SET LOCAL enable_bitmapscan = off"
# Another process may have taken what was found a moment ago.
_TRIES = 3
_COLUMNS = ", ".join(DELIVERY_COLUMNS)
_BODILESS = ", ".join("NULL AS body" if name == "body" else name for name in DELIVERY_COLUMNS)
_STATE = DELIVERY_COLUMNS.index("state")
_BODY = DELIVERY_COLUMNS.index("body")
_DUE = """
SELECT due, id, key_id, receiver FROM (
  SELECT *, row_number() OVER (PARTITION BY receiver ORDER BY due, id) AS place FROM (
    SELECT due, id, key_id, receiver FROM outbox
    WHERE state = 'Pending' AND due <= $1 ORDER BY due, id LIMIT {window}) d
  WHERE receiver <> ALL($2::text[]) AND key_id <> ALL($3::int[])) p
WHERE place <= $4 ORDER BY due, id LIMIT {most}"""
_DUE_FEW = _DUE.format(window=FEW, most=MOST_ROWS)
_DUE_MANY = _DUE.format(window=MOST_PASSED, most=MOST_ROWS)
_MORE = """
SELECT 1 FROM outbox WHERE state = 'Pending' AND due <= $1
ORDER BY due, id LIMIT 1 OFFSET {passed}"""
_MORE_THAN_FEW = _MORE.format(passed=FEW)
_MORE_THAN_MANY = _MORE.format(passed=MOST_PASSED)
# A step for each receiver, however many deliveries wait for it.
_WALK = f"""
WITH RECURSIVE walk (receiver, place, due, key_id) AS (
  (SELECT receiver, 1, due, key_id FROM outbox
    WHERE state = 'Pending' AND receiver > $1 ORDER BY receiver, due, id LIMIT 1)
  UNION ALL
  SELECT n.receiver, w.place + 1, n.due, n.key_id FROM walk w CROSS JOIN LATERAL (
    SELECT receiver, due, key_id FROM outbox
    WHERE state = 'Pending' AND receiver > w.receiver ORDER BY receiver, due, id LIMIT 1) n
  WHERE w.place < {MOST_WALKED}
)
SELECT receiver, place, due, key_id FROM walk
WHERE (due <= $2 AND receiver <> ALL($3::text[])) OR place = {MOST_WALKED} ORDER BY place"""
_THERE = f"""
SELECT d.due, d.id, d.key_id, d.receiver FROM unnest($1::text[]) r (name) CROSS JOIN LATERAL (
  SELECT due, id, key_id, receiver FROM (
    SELECT due, id, key_id, receiver FROM outbox
    WHERE state = 'Pending' AND receiver = r.name AND due <= $2
    ORDER BY due, id LIMIT {MOST_PASSED_THERE}) few
  WHERE key_id <> ALL($3::int[]) ORDER BY due, id LIMIT $4) d
ORDER BY d.due, d.id"""
_TAKE = f"""
UPDATE outbox SET due = $1, under_way = 0 WHERE id IN (
  SELECT id FROM outbox WHERE id = ANY($2::text[]) AND state = 'Pending' AND due <= $3
  FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}"""
_NEXT = "SELECT min(due) FROM outbox WHERE state = 'Pending'"
_AGAIN_SINCE = "under_way = 1 AND $3 <> 'Delivered'"
_ATTEMPTED = f"""
WITH tried AS (
  UPDATE outbox SET attempt = $2, last_status = $5, last_error = $6, delivered = $7,
    under_way = NULL, state = CASE WHEN {_AGAIN_SINCE} THEN 'Pending' ELSE $3 END,
    due = CASE WHEN {_AGAIN_SINCE} THEN $10::bigint ELSE $4 END
  WHERE id = $1 AND attempt = $2 - 1 AND state = 'Pending' RETURNING id, job_id
), logged AS (
  INSERT INTO outbox_attempts (delivery_id, attempt, at, duration_ms, status, error)
  SELECT id, $2, $8, $9, $5, $6 FROM tried
), cut AS (
  DELETE FROM outbox_attempts a USING tried t
  WHERE a.delivery_id = t.id AND a.attempt <= $2 - {MOST_ATTEMPTS}
), live AS (
  UPDATE jobs j SET notified = $7 FROM tried t WHERE j.id = t.job_id AND $7::bigint IS NOT NULL
), kept AS (
  UPDATE job_summary s SET notified = $7 FROM tried t
  WHERE s.id = t.job_id AND $7::bigint IS NOT NULL
)
SELECT 1 FROM tried"""
_UNDER_WAY = "state = 'Pending' AND under_way IS NOT NULL AND due > $1"
_AGAIN = f"""
UPDATE outbox SET state = 'Pending',
  due = CASE WHEN {_UNDER_WAY} THEN due ELSE $1 END,
  under_way = CASE WHEN {_UNDER_WAY} THEN 1 END
WHERE id = $2 AND ($3::bigint IS NULL OR key_id = $3)"""
_ONE = f"SELECT {_COLUMNS} FROM outbox WHERE id = $1 AND ($2::bigint IS NULL OR key_id = $2)"
_ATTEMPTS = f"""
SELECT attempt, at, duration_ms, status, error FROM outbox_attempts
WHERE delivery_id = $1 ORDER BY attempt DESC LIMIT {MOST_ATTEMPTS}"""
_PENDING = """
SELECT count(*) FROM (
  SELECT 1 FROM outbox WHERE state = 'Pending' AND key_id = $1 LIMIT $2) p"""
# The column takes no NULL; no callback has an empty body.
_BLANK = f"""
UPDATE outbox SET body = '' WHERE id IN (
  SELECT id FROM outbox WHERE created < $1 AND body <> ''
  ORDER BY created LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED)"""
_PRUNE = f"""
WITH old AS (
  DELETE FROM outbox WHERE id IN (
    SELECT id FROM outbox WHERE created < $1 AND state <> 'Pending'
    ORDER BY created LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED) RETURNING id
), logged AS (
  DELETE FROM outbox_attempts a USING old WHERE a.delivery_id = old.id
)
SELECT count(*) FROM old"""


class PostgresOutbox:
    """Implements `Outbox`. The database is closed by its owner."""

    def __init__(self, database: Postgres, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._turn = Turn()

    async def add(self, delivery: NewDelivery) -> None:
        async with self._db.transaction() as transaction:
            await add_deliveries(transaction, [delivery], self._now())

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
        most = max(0, min(most, MOST_ROWS))
        each = max(0, min(per_receiver, most))
        names = [text(name) or "" for name in busy]
        for _ in range(_TRIES):
            look = Look(self._now(), most, each, per_key, names, list(busy_keys))
            async with self._db.transaction(_IN_ORDER) as transaction:
                ids = chosen(await self._due(transaction, look), look)
                rows = await transaction.rows(_TAKE, until, ids, look.now) if ids else []
            if not ids:
                break
            if rows:
                order = {id: place for place, id in enumerate(ids)}
                return sorted(map(_delivery, rows), key=lambda delivery: order[delivery.id])
        return []

    async def next_due(self) -> int | None:
        [row] = await self._db.read(_NEXT)
        return row[0]

    async def attempted(self, attempted: Attempted) -> bool:
        new, now = attempted, self._now()
        arrived = now if new.state is DeliveryState.DELIVERED else None
        what = (new.attempt, new.state.value, new.due or now, new.status, text(new.error), arrived)
        return bool(await self._db.rows(_ATTEMPTED, new.id, *what, new.at, new.duration_ms, now))

    async def redeliver(self, id: str, *, key_id: int | None = None) -> bool:
        return await self._db.execute(_AGAIN, self._now(), text(id), key_id) > 0

    async def deliveries(self, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
        clauses: list[str] = ["TRUE"]
        values: list[Any] = []
        for name, type in (("key_id", "bigint"), ("job_id", "bigint"), ("id", "text")):
            if (value := getattr(filter, name)) is not None:
                values.append(text(value) if type == "text" else value)
                clauses.append(f"{name} = ${len(values)}::{type}")
        if filter.states is not None:
            values.append([state.value for state in filter.states])
            clauses.append(f"state = ANY(${len(values)}::text[])")
        where = " AND ".join(clauses)
        take, skip = max(0, min(filter.take, MOST_ROWS)), max(0, filter.skip)
        rows = await self._db.read(
            f"SELECT {_BODILESS} FROM outbox WHERE {where}"
            f" ORDER BY created DESC, id LIMIT {take} OFFSET {skip}",
            *values,
        )
        [total] = await self._db.read(f"SELECT count(*) FROM outbox WHERE {where}", *values)
        return [_delivery(row) for row in rows], total[0]

    async def delivery(self, id: str, *, key_id: int | None = None) -> Delivery | None:
        rows = await self._db.read(_ONE, text(id), key_id)
        return _delivery(rows[0]) if rows else None

    async def attempts(self, id: str) -> list[Attempt]:
        rows = await self._db.read(_ATTEMPTS, text(id))
        return [Attempt(*row) for row in reversed(rows)]

    async def pending(self, key_id: int, *, most: int) -> int:
        [row] = await self._db.read(_PENDING, key_id, most)
        return row[0]

    async def blank(self, before: int) -> int:
        return await self._db.execute(_BLANK, before)

    async def prune(self, before: int) -> int:
        [row] = await self._db.rows(_PRUNE, before)
        return int(row[0])

    async def _due(self, transaction: Transaction, look: Look) -> list[Found]:
        async def found(sql: str, *values: Any) -> list[Found]:
            return [tuple(row) for row in await transaction.rows(sql, *values)]

        seen = (look.now, look.busy, look.busy_keys, look.per_receiver)
        for due, more in ((_DUE_FEW, _MORE_THAN_FEW), (_DUE_MANY, _MORE_THAN_MANY)):
            rows = await found(due, *seen)
            if rows or not await found(more, look.now):
                return rows
        walked = await found(_WALK, self._turn.after, look.now, look.busy)
        names = self._turn.receivers(walked, look)
        return (
            await found(_THERE, names, look.now, look.busy_keys, look.per_receiver) if names else []
        )

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _delivery(row: Record) -> Delivery:
    values = list(row)
    values[_STATE] = DeliveryState(values[_STATE])
    values[_BODY] = values[_BODY] or None
    return Delivery(*values)
