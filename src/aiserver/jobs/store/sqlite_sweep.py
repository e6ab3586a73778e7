"""What falls due among SQLite's jobs without anybody asking: starts, lost leases, deadlines."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from aiserver.jobs.job import State
from aiserver.jobs.store import MOST_ROWS, Changed, Swept
from aiserver.jobs.store.lost import lost_row
from aiserver.jobs.store.refusals import DEADLINE_ERROR, lost_error
from aiserver.jobs.store.sqlite_enqueue import Line, Tags
from aiserver.jobs.store.sqlite_finish import settle, stop
from aiserver.jobs.store.sqlite_rows import AMONG, CHANGED, Effects, listed
from aiserver.kit.db import Connection, Database, Row
from aiserver.kit.ids import CallIds

_NEXT = """
SELECT min(at) FROM (
  SELECT min(run_after) AS at FROM jobs INDEXED BY jobs_scheduled WHERE state = 'Scheduled'
  UNION ALL
  SELECT min(lease_until) FROM jobs INDEXED BY jobs_leases WHERE state = 'Started'
  UNION ALL
  SELECT min(deadline) FROM jobs INDEXED BY jobs_deadlines
  WHERE deadline IS NOT NULL AND ended IS NULL)"""
_OVERDUE = f"""
SELECT id, key_id, model, worker, state, cancel_asked FROM jobs INDEXED BY jobs_deadlines
WHERE deadline IS NOT NULL AND ended IS NULL AND deadline <= ?
ORDER BY deadline LIMIT {MOST_ROWS}"""
_HELD = "id, key_id, model, worker, attempt, max_attempts, cancel_asked"
_EXPIRED = f"""
SELECT {_HELD} FROM jobs INDEXED BY jobs_leases
WHERE state = 'Started' AND lease_until <= ? ORDER BY lease_until LIMIT {MOST_ROWS}"""
_OWNED = f"""
SELECT {_HELD} FROM jobs INDEXED BY jobs_leases
WHERE state = 'Started' AND owner {AMONG} LIMIT {MOST_ROWS}"""
_PLANNED = f"""
SELECT id, kind, model, priority, key_id, attempt, vtag FROM jobs INDEXED BY jobs_scheduled
WHERE state = 'Scheduled' AND run_after <= ? ORDER BY run_after, id LIMIT {MOST_ROWS}"""
_PROMOTE = "UPDATE jobs SET state = 'Queued', vtag = ? WHERE id = ?"
_RETURN = f"""
UPDATE jobs SET state = 'Queued', owner = NULL, lease_until = NULL WHERE id {AMONG}
RETURNING {CHANGED}"""


def next_due(database: Database) -> int | None:
    return database.read(_NEXT)[0][0]


def sweep(
    connection: Connection, effects: Effects, ids: CallIds, *, spare_leases: bool = False
) -> Swept:
    """Attempts that end here are told to the ledger under `ids`."""
    overdue = connection.rows(_OVERDUE, (effects.now,))
    ended = _end_overdue(connection, overdue, effects)
    _lose(connection, [row for row in overdue if row[4] == State.STARTED.value], effects, ids)
    expired = [] if spare_leases else connection.rows(_EXPIRED, (effects.now,))
    returned, lost = _take_back(connection, expired, effects)
    _lose(connection, expired, effects, ids)
    promoted = _promote(connection, effects)
    more = MOST_ROWS in (len(overdue), len(expired), promoted)
    again = connection.rows(_NEXT)[0][0]
    return Swept(ended + lost, returned + promoted, len(expired), again, more)


def take_back(
    connection: Connection, owners: Sequence[str], effects: Effects, ids: CallIds
) -> Swept:
    """As `sweep`, for the leases of these owners."""
    held = connection.rows(_OWNED, (listed(owners),))
    returned, lost = _take_back(connection, held, effects)
    _lose(connection, held, effects, ids)
    again = connection.rows(_NEXT)[0][0]
    return Swept(lost, returned, len(held), again, len(held) == MOST_ROWS)


def _lose(connection: Connection, rows: list[Row], effects: Effects, ids: CallIds) -> None:
    lost = [
        lost_row(ids, effects.now, key_id=key_id, model=model, worker=worker)
        for _, key_id, model, worker, *_ in rows
    ]
    settle(connection, [row for row in lost if row is not None])


def _end_overdue(connection: Connection, rows: list[Row], effects: Effects) -> list[Changed]:
    ended: list[Changed] = []
    for waiting in (True, False):
        mine = [row for row in rows if (row[4] != State.STARTED.value) is waiting]
        failed = [id for id, *_, asked in mine if asked is None]
        cancelled = [id for id, *_, asked in mine if asked is not None]
        ended += stop(connection, failed, DEADLINE_ERROR, effects, waiting=waiting)
        ended += stop(connection, cancelled, None, effects, waiting=waiting)
    return ended


def _take_back(
    connection: Connection, rows: list[Row], effects: Effects
) -> tuple[int, list[Changed]]:
    """How many are Queued again, and those that ended."""
    cancelled = [id for id, *_, asked in rows if asked is not None]
    again = [id for id, *_, attempt, most, asked in rows if asked is None and attempt < most]
    ended = stop(connection, cancelled, None, effects, waiting=False)
    for id, *_, attempt, most, asked in rows:
        if asked is None and attempt >= most:
            ended += stop(connection, [id], lost_error(attempt), effects, waiting=False)
    if again:
        for row in connection.rows(_RETURN, (listed(again),)):
            changed = effects.reached(connection, row, State.QUEUED)
            effects.moves[changed.key_id] += 1
    return len(again), ended


def _promote(connection: Connection, effects: Effects) -> int:
    tags = Tags(connection)
    rows = connection.rows(_PLANNED, (effects.now,))
    for id, kind, model, priority, key_id, attempt, vtag in rows:
        # One that ran keeps its place; one that was planned long ago would pass everybody.
        place = vtag if attempt else tags.next(Line(kind, model, priority), key_id)
        connection.execute(_PROMOTE, (place, id))
    tags.save()
    return len(rows)
