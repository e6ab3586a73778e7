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
from aiserver.jobs.store.postgres_rows import text
from aiserver.jobs.store.postgres_turn import add_deliveries
from aiserver.kit.clock import Clock
from aiserver.kit.postgres import Postgres, Record

_COLUMNS = ", ".join(DELIVERY_COLUMNS)
_BODILESS = ", ".join("NULL AS body" if name == "body" else name for name in DELIVERY_COLUMNS)
_STATE = DELIVERY_COLUMNS.index("state")
_BODY = DELIVERY_COLUMNS.index("body")
# A step for each receiver, however many deliveries wait for it.
_TAKE = """
WITH RECURSIVE receivers (name) AS (
  (SELECT receiver FROM outbox WHERE state = 'Pending' ORDER BY receiver LIMIT 1)
  UNION ALL
  SELECT n.receiver FROM receivers r CROSS JOIN LATERAL (
    SELECT receiver FROM outbox WHERE state = 'Pending' AND receiver > r.name
    ORDER BY receiver LIMIT 1) n
), found AS (
  SELECT d.* FROM receivers r CROSS JOIN LATERAL (
    SELECT id, due, key_id FROM {source}
    WHERE state = 'Pending' AND receiver = r.name AND due <= $1 AND key_id <> ALL($6::int[])
    ORDER BY due, id LIMIT $2 FOR UPDATE OF outbox SKIP LOCKED) d
  WHERE r.name <> ALL($3::text[])
), chosen AS (
  SELECT id, due FROM (
    SELECT *, row_number() OVER (PARTITION BY key_id ORDER BY due, id) AS n FROM found) f
  WHERE n <= $7 ORDER BY due, id LIMIT $4
), taken AS (
  UPDATE outbox o SET due = $5 FROM chosen c WHERE o.id = c.id RETURNING {theirs}, c.due AS was
)
SELECT {columns} FROM taken ORDER BY was, id"""
_FEW = f"""(SELECT id FROM outbox WHERE state = 'Pending' AND receiver = r.name AND due <= $1
  ORDER BY due, id LIMIT {MOST_PASSED}) few JOIN outbox USING (id)"""
_THEIRS = ", ".join(f"o.{name}" for name in DELIVERY_COLUMNS)
_TAKE_FIRST = _TAKE.format(source="outbox", theirs=_THEIRS, columns=_COLUMNS)
_TAKE_PAST_BUSY = _TAKE.format(source=_FEW, theirs=_THEIRS, columns=_COLUMNS)
_NEXT = "SELECT min(due) FROM outbox WHERE state = 'Pending'"
_ATTEMPTED = """
WITH tried AS (
  UPDATE outbox SET attempt = $2, state = $3, due = $4, last_status = $5, last_error = $6,
    delivered = $7
  WHERE id = $1 AND attempt = $2 - 1 AND state = 'Pending' RETURNING id, job_id
), logged AS (
  INSERT INTO outbox_attempts (delivery_id, attempt, at, duration_ms, status, error)
  SELECT id, $2, $8, $9, $5, $6 FROM tried
), live AS (
  UPDATE jobs j SET notified = $7 FROM tried t WHERE j.id = t.job_id AND $7::bigint IS NOT NULL
), kept AS (
  UPDATE job_summary s SET notified = $7 FROM tried t
  WHERE s.id = t.job_id AND $7::bigint IS NOT NULL
)
SELECT 1 FROM tried"""
_AGAIN = """
UPDATE outbox SET state = 'Pending', due = $1
WHERE id = $2 AND ($3::bigint IS NULL OR key_id = $3)"""
_ONE = f"SELECT {_COLUMNS} FROM outbox WHERE id = $1 AND ($2::bigint IS NULL OR key_id = $2)"
_ATTEMPTS = """
SELECT attempt, at, duration_ms, status, error FROM outbox_attempts
WHERE delivery_id = $1 ORDER BY attempt"""
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
        now = self._now()
        due = await self.next_due()
        if due is None or due > now:
            return []
        most = max(0, min(most, MOST_ROWS))
        names, keys = [text(name) for name in busy], list(busy_keys)
        each = max(0, min(per_receiver, most))
        of_key = most if per_key is None else max(0, min(per_key, most))
        sql = _TAKE_PAST_BUSY if keys else _TAKE_FIRST
        rows = await self._db.rows(sql, now, each, names, most, until, keys, of_key)
        return [_delivery(row) for row in rows]

    async def next_due(self) -> int | None:
        [row] = await self._db.read(_NEXT)
        return row[0]

    async def attempted(self, attempted: Attempted) -> bool:
        new, now = attempted, self._now()
        arrived = now if new.state is DeliveryState.DELIVERED else None
        what = (new.attempt, new.state.value, new.due or now, new.status, text(new.error), arrived)
        return bool(await self._db.rows(_ATTEMPTED, new.id, *what, new.at, new.duration_ms))

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
        return [Attempt(*row) for row in await self._db.read(_ATTEMPTS, text(id))]

    async def blank(self, before: int) -> int:
        return await self._db.execute(_BLANK, before)

    async def prune(self, before: int) -> int:
        [row] = await self._db.rows(_PRUNE, before)
        return int(row[0])

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _delivery(row: Record) -> Delivery:
    values = list(row)
    values[_STATE] = DeliveryState(values[_STATE])
    values[_BODY] = values[_BODY] or None
    return Delivery(*values)
