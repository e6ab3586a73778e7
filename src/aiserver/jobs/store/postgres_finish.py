"""Ends attempts: many in one transaction, with their ledger rows and callbacks."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from msgspec.structs import replace

from aiserver.jobs.job import (
    LARGEST_ID,
    Cancelled,
    Completed,
    Failed,
    Fence,
    Job,
    Outcome,
    Released,
    Retry,
    State,
    with_error,
)
from aiserver.jobs.store import CancelOutcome, CancelResult, Changed, Word
from aiserver.jobs.store.postgres_rows import NOTIFY, changed, columns, job, payload
from aiserver.jobs.store.postgres_turn import LOCKED, Turns
from aiserver.jobs.store.sqlite_finish import Ending
from aiserver.kit.postgres import Postgres, Transaction

# Only a Started job has an owner; to say so would lead the planner through all leases.
_HELD = f"""
SELECT {LOCKED} FROM jobs j
JOIN unnest($1::int[], $2::text[], $3::int[]) f(id, owner, attempt)
  ON j.id = f.id AND j.owner = f.owner AND j.attempt = f.attempt
ORDER BY j.id FOR UPDATE OF j"""
_ENDED = f"""
SELECT {LOCKED} FROM jobs j JOIN unnest($1::int[], $2::int[]) f(id, attempt)
  ON j.id = f.id AND j.attempt = f.attempt WHERE j.ended = $3"""
_SOME = f"SELECT {LOCKED} FROM jobs j WHERE j.id = ANY($1::int[]) ORDER BY j.id FOR UPDATE"
_ARCHIVED = "SELECT id, key_id FROM job_summary WHERE id = ANY($1::int[])"
_ASK = f"""
WITH asked AS (
  UPDATE jobs SET cancel_asked = coalesce(cancel_asked, $2) WHERE id = ANY($1::int[])
)
SELECT {NOTIFY.format("$3")}"""


async def finish(
    database: Postgres, endings: Sequence[Ending], turns: Turns, *, again: bool
) -> list[Changed | None]:
    """None for those whose fence does not hold.

    `again`: the connection was cut the first time, so that the jobs may have ended by that.
    """
    fences = [(f.job_id, f.owner, f.attempt) for f, _ in endings]
    async with database.transaction() as transaction:
        held: dict[Fence, Job] = {}
        for row in await transaction.rows(_HELD, *columns(fences, 3)):
            found = job(row)
            held[found.fence] = found
        reached: list[Changed | None] = []
        for fence, outcome in endings:
            # A fence that comes twice holds once.
            old = held.pop(fence, None)
            reached.append(None if old is None else turns.turn(old, _after(old, outcome, turns)))
        await turns.write(transaction)
        if again and None in reached:
            await _recognise(transaction, endings, turns.now, reached)
    return reached


def _after(job: Job, outcome: Outcome, turns: Turns) -> Job:
    """The row as it is to be, its ledger row taken note of."""
    if outcome.ledger is not None:
        turns.ledger.append(outcome.ledger)
    if isinstance(outcome, Released):
        return replace(job, state=State.QUEUED, max_attempts=job.max_attempts + 1)
    worker = outcome.worker or job.worker
    if isinstance(outcome, Retry):
        if job.cancel_asked is not None:
            return _ended(job, Cancelled(worker=worker, ledger=outcome.ledger), turns.now)
        late = job.deadline is not None and outcome.at >= job.deadline
        if job.attempt >= job.max_attempts or late:
            failed = Failed(error=outcome.error, worker=worker, ledger=outcome.ledger)
            return _ended(job, failed, turns.now)
        state = State.SCHEDULED if outcome.at > turns.now else State.QUEUED
        new = with_error(job, outcome.error)
        return replace(new, state=state, run_after=outcome.at, worker=worker)
    return _ended(job, outcome, turns.now)


def _ended(job: Job, outcome: Completed | Failed | Cancelled, now: int) -> Job:
    state, result, error = State.CANCELLED, None, None
    if isinstance(outcome, Completed):
        state, result = State.COMPLETED, outcome.result
    elif isinstance(outcome, Failed):
        state, result, error = State.FAILED, outcome.result, outcome.error
    ledger = outcome.ledger
    return replace(
        with_error(job, error),
        state=state,
        ended=now,
        result=result,
        worker=outcome.worker or job.worker,
        prompt_tokens=ledger and ledger.prompt_tokens,
        completion_tokens=ledger and ledger.completion_tokens,
        cost=ledger and ledger.cost,
    )


async def _recognise(
    transaction: Transaction,
    endings: Sequence[Ending],
    now: int,
    reached: list[Changed | None],
) -> None:
    missed = [
        (i, (fence.job_id, fence.attempt))
        for i, (fence, _) in enumerate(endings)
        if reached[i] is None
    ]
    rows = await transaction.rows(_ENDED, *columns([name for _, name in missed], 2), now)
    ended = {(found.id, found.attempt): found for found in map(job, rows)}
    for i, name in missed:
        if (found := ended.pop(name, None)) is not None:
            reached[i] = changed(found, called_back=found.reply_to is not None)


async def cancel(
    database: Postgres, ids: Sequence[int], key_id: int | None, turns: Turns, *, sender: str
) -> CancelResult:
    result = CancelResult({}, [], [])
    wanted = [id for id in ids if 0 < id <= LARGEST_ID]
    async with database.transaction() as transaction:
        running: list[int] = []
        owners: set[str] = set()
        for found in map(job, await transaction.rows(_SOME, wanted)):
            if key_id is not None and found.key_id != key_id:
                continue
            if found.state.ended:
                result.outcomes[found.id] = CancelOutcome.ENDED
            elif found.state is State.STARTED:
                running.append(found.id)
                owners.add(found.owner or "")
                result.outcomes[found.id] = CancelOutcome.ASKED
            else:
                result.ended.append(turns.stop(found, None))
                result.outcomes[found.id] = CancelOutcome.CANCELLED
        for id, owned_by in await transaction.rows(_ARCHIVED, wanted):
            if key_id is None or owned_by == key_id:
                result.outcomes[id] = CancelOutcome.ENDED
        await turns.write(transaction)
        result.owners.extend(sorted(owners))
        if running:
            said = [payload(sender, Word.STOP, result.owners)]
            await transaction.rows(_ASK, running, turns.now, said)
    return result
