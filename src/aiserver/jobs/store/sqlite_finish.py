"""Ends attempts and jobs in SQLite: row, ledger and outbox in the transaction of one write."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence
from typing import NamedTuple

from aiserver.contract.conditions import Stored, stored
from aiserver.jobs.job import (
    Cancelled,
    Completed,
    Failed,
    Fence,
    JobError,
    Outcome,
    Released,
    Retry,
    State,
)
from aiserver.jobs.store import CancelOutcome, CancelResult, Changed
from aiserver.jobs.store.sqlite_rows import AMONG, CHANGED, Effects, listed, state_of
from aiserver.kit.db import Connection, Row, in_blocks
from aiserver.kit.ledger import COLUMNS as LEDGER_COLUMNS
from aiserver.kit.ledger import LedgerRow

_HELD = "id = ? AND owner = ? AND attempt = ? AND state = 'Started'"
_END = f"""
UPDATE jobs SET state = ?, ended = ?, owner = NULL, lease_until = NULL, result = ?,
  error_code = ?, error_message = ?, error_status = ?, error_kind = ?,
  worker = ifnull(?, worker), prompt_tokens = ?, completion_tokens = ?, cost = ?
WHERE {_HELD} RETURNING {CHANGED}"""
_ASKED = f"SELECT cancel_asked, max_attempts, deadline FROM jobs WHERE {_HELD}"
_AGAIN = f"""
UPDATE jobs SET state = ?, run_after = ?, owner = NULL, lease_until = NULL,
  error_code = ?, error_message = ?, error_status = ?, error_kind = ?, worker = ifnull(?, worker)
WHERE {_HELD} RETURNING {CHANGED}"""
_RELEASE = f"""
UPDATE jobs SET state = 'Queued', max_attempts = max_attempts + 1, owner = NULL, lease_until = NULL
WHERE {_HELD} RETURNING {CHANGED}"""
_STOP = f"""
UPDATE jobs SET state = ?, ended = ?, owner = NULL, lease_until = NULL,
  error_code = ?, error_message = ?, error_status = ?, error_kind = ?
WHERE id {AMONG} AND ended IS NULL RETURNING {CHANGED}"""
_LEDGER = f"INSERT OR IGNORE INTO ledger ({LEDGER_COLUMNS})"
_KNOWN = f"SELECT id, key_id, state, owner FROM jobs WHERE id {AMONG}"
_ARCHIVED = f"SELECT id, key_id FROM job_summary WHERE id {AMONG}"
_ASK = f"UPDATE jobs SET cancel_asked = ifnull(cancel_asked, ?) WHERE id {AMONG}"
_NO_ERROR = (None, None, None, None)


class Ending(NamedTuple):
    """An attempt that ended."""

    fence: Fence
    outcome: Outcome


def finish(
    connection: Connection, endings: Sequence[Ending], effects: Effects
) -> list[Changed | None]:
    """None for those whose fence does not hold."""
    reached: list[Changed | None] = []
    ledger: list[LedgerRow] = []
    for ending in endings:
        changed = _finish(connection, ending, effects)
        reached.append(changed)
        if changed is not None and ending.outcome.ledger is not None:
            ledger.append(ending.outcome.ledger)
    settle(connection, ledger)
    return reached


def settle(connection: Connection, ledger: Sequence[LedgerRow]) -> None:
    """Writes rows of the ledger; the same id again changes nothing."""
    for sql, values in in_blocks(_LEDGER, ledger):
        connection.execute(sql, values)


def _finish(connection: Connection, ending: Ending, effects: Effects) -> Changed | None:
    fence, outcome = ending
    match outcome:
        case Retry():
            return _retry(connection, fence, outcome, effects)
        case Released():
            return _release(connection, fence, effects)
        case _:
            return _end(connection, fence, outcome, effects)


def _end(
    connection: Connection, fence: Fence, outcome: Completed | Failed | Cancelled, effects: Effects
) -> Changed | None:
    state, result, error = State.CANCELLED, None, _NO_ERROR
    if isinstance(outcome, Completed):
        state, result = State.COMPLETED, outcome.result
    elif isinstance(outcome, Failed):
        state, result, error = State.FAILED, outcome.result, error_columns(outcome.error)
    ledger = outcome.ledger
    spent = (None, None, None)
    if ledger is not None:
        spent = (ledger.prompt_tokens, ledger.completion_tokens, ledger.cost)
    what = (state.value, effects.now, result, *error, outcome.worker, *spent)
    rows = connection.rows(_END, (*what, fence.job_id, fence.owner, fence.attempt))
    return effects.reached(connection, rows[0], state) if rows else None


def _retry(
    connection: Connection, fence: Fence, outcome: Retry, effects: Effects
) -> Changed | None:
    held = (fence.job_id, fence.owner, fence.attempt)
    found = connection.rows(_ASKED, held)
    if not found:
        return None
    [(asked, max_attempts, deadline)] = found
    if asked is not None:
        ended = Cancelled(worker=outcome.worker, ledger=outcome.ledger)
        return _end(connection, fence, ended, effects)
    if fence.attempt >= max_attempts or (deadline is not None and outcome.at >= deadline):
        ended = Failed(error=outcome.error, worker=outcome.worker, ledger=outcome.ledger)
        return _end(connection, fence, ended, effects)
    state = State.SCHEDULED if outcome.at > effects.now else State.QUEUED
    what = (state.value, outcome.at, *error_columns(outcome.error), outcome.worker)
    [row] = connection.rows(_AGAIN, (*what, *held))
    return _waits(connection, row, state, effects)


def _release(connection: Connection, fence: Fence, effects: Effects) -> Changed | None:
    rows = connection.rows(_RELEASE, (fence.job_id, fence.owner, fence.attempt))
    return _waits(connection, rows[0], State.QUEUED, effects) if rows else None


def _waits(connection: Connection, row: Row, state: State, effects: Effects) -> Changed:
    changed = effects.reached(connection, row, state)
    effects.moves[changed.key_id] += 1
    return changed


def error_columns(error: JobError) -> tuple[Stored, Stored, int, str]:
    return stored(error.code), stored(error.message), error.status, error.kind.value


def stop(
    connection: Connection,
    ids: Sequence[int],
    error: JobError | None,
    effects: Effects,
    *,
    waiting: bool,
) -> list[Changed]:
    """Ends jobs without their worker: Failed with the error, or Cancelled.

    `waiting`: whether they did.
    """
    if not ids:
        return []
    state = State.CANCELLED if error is None else State.FAILED
    columns = _NO_ERROR if error is None else error_columns(error)
    ended: list[Changed] = []
    for row in connection.rows(_STOP, (state.value, effects.now, *columns, listed(ids))):
        ended.append(effects.reached(connection, row, state))
        if waiting:
            effects.moves[ended[-1].key_id] -= 1
    return ended


def cancel(
    connection: Connection, ids: Sequence[int], key_id: int | None, effects: Effects
) -> CancelResult:
    result = CancelResult({}, [], [])
    waiting: list[int] = []
    running: list[int] = []
    owners: set[str] = set()
    asked = listed(ids)
    for id, owned_by, word, owner in connection.rows(_KNOWN, (asked,)):
        state = state_of(word)
        if key_id is not None and owned_by != key_id:
            continue
        if state.ended:
            result.outcomes[id] = CancelOutcome.ENDED
        elif state is State.STARTED:
            running.append(id)
            owners.add(owner)
            result.outcomes[id] = CancelOutcome.ASKED
        else:
            waiting.append(id)
            result.outcomes[id] = CancelOutcome.CANCELLED
    for id, owned_by in connection.rows(_ARCHIVED, (asked,)):
        if key_id is None or owned_by == key_id:
            result.outcomes[id] = CancelOutcome.ENDED
    if running:
        connection.execute(_ASK, (effects.now, listed(running)))
    result.ended.extend(stop(connection, waiting, None, effects, waiting=True))
    result.owners.extend(sorted(owners))
    return result
