"""What falls due among the jobs without anybody asking: starts, lost leases, deadlines."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from msgspec.structs import replace

from aiserver.jobs.job import Job, State
from aiserver.jobs.store import MOST_ROWS, Bounds, Changed, Swept
from aiserver.jobs.store.lost import lost_row
from aiserver.jobs.store.postgres_line import IN_TURN, Line, place_of
from aiserver.jobs.store.postgres_rows import job
from aiserver.jobs.store.postgres_turn import LOCKED, Turns
from aiserver.jobs.store.refusals import DEADLINE_ERROR, lost_error
from aiserver.kit.ids import CallIds
from aiserver.kit.postgres import Postgres, Transaction

_NEXT = """
SELECT least(
  (SELECT min(run_after) FROM jobs WHERE state = 'Scheduled'),
  (SELECT min(lease_until) FROM jobs WHERE state = 'Started'),
  (SELECT min(deadline) FROM jobs WHERE deadline IS NOT NULL AND ended IS NULL))"""
# A row that is locked is just being ended by somebody.
_OVERDUE = f"""
SELECT {LOCKED} FROM jobs j WHERE j.deadline IS NOT NULL AND j.ended IS NULL AND j.deadline <= $1
ORDER BY j.deadline LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED"""
_EXPIRED = f"""
SELECT {LOCKED} FROM jobs j WHERE j.state = 'Started' AND j.lease_until <= $1
ORDER BY j.lease_until LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED"""
_OWNED = f"""
SELECT {LOCKED} FROM jobs j WHERE j.state = 'Started' AND j.owner = ANY($1::text[])
LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED"""
_PLANNED = f"""
SELECT {LOCKED} FROM jobs j WHERE j.state = 'Scheduled' AND j.run_after <= $1
ORDER BY j.run_after, j.id LIMIT {MOST_ROWS} FOR UPDATE SKIP LOCKED"""


async def next_due(database: Postgres) -> int | None:
    [row] = await database.read(_NEXT)
    return row[0]


async def sweep(
    database: Postgres, turns: Turns, ids: CallIds, *, spare_leases: bool = False
) -> Swept:
    """Attempts that end here are told to the ledger under `ids`."""
    async with database.transaction(IN_TURN) as transaction:
        overdue = await _rows(transaction, _OVERDUE, turns.now)
        ended = [
            turns.stop(found, DEADLINE_ERROR if found.cancel_asked is None else None)
            for found in overdue
        ]
        _lose([found for found in overdue if found.state is State.STARTED], turns, ids)
        expired = [] if spare_leases else await _rows(transaction, _EXPIRED, turns.now)
        late = [found for found in expired if found.id not in turns.turned]
        returned, lost = _take_back(late, turns)
        _lose(late, turns, ids)
        planned = await _rows(transaction, _PLANNED, turns.now)
        line = Line(Bounds())
        promoted = await _promote(transaction, planned, line, turns)
        await turns.write(transaction, line)
    more = MOST_ROWS in (len(overdue), len(expired), len(planned))
    again = await next_due(database)
    return Swept(ended + lost, returned + promoted, len(late), again, more)


async def take_back(database: Postgres, owners: Sequence[str], turns: Turns, ids: CallIds) -> Swept:
    """As `sweep`, for the leases of these owners."""
    async with database.transaction() as transaction:
        held = await _rows(transaction, _OWNED, list(owners))
        returned, ended = _take_back(held, turns)
        _lose(held, turns, ids)
        await turns.write(transaction)
    again = await next_due(database)
    return Swept(ended, returned, len(held), again, len(held) == MOST_ROWS)


async def _rows(transaction: Transaction, sql: str, parameter: object) -> list[Job]:
    return [job(row) for row in await transaction.rows(sql, parameter)]


def _lose(held: list[Job], turns: Turns, ids: CallIds) -> None:
    for found in held:
        lost = lost_row(ids, turns.now, key_id=found.key_id, model=found.model, worker=found.worker)
        if lost is not None:
            turns.ledger.append(lost)


def _take_back(held: list[Job], turns: Turns) -> tuple[int, list[Changed]]:
    """How many are Queued again, and those that ended."""
    ended: list[Changed] = []
    for found in held:
        if found.cancel_asked is not None:
            ended.append(turns.stop(found, None))
        elif found.attempt >= found.max_attempts:
            ended.append(turns.stop(found, lost_error(found.attempt)))
        else:
            turns.turn(found, replace(found, state=State.QUEUED))
    return len(held) - len(ended), ended


async def _promote(transaction: Transaction, planned: list[Job], line: Line, turns: Turns) -> int:
    due = [found for found in planned if found.id not in turns.turned]
    if due:
        await line.learn(transaction, [place_of(found) for found in due])
    for found in due:
        # One that ran keeps its place; one that was planned long ago would pass everybody.
        vtag = found.vtag if found.attempt else line.next(place_of(found))
        turns.turn(found, replace(found, state=State.QUEUED, vtag=vtag))
    return len(due)
