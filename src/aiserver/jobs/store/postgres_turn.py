"""Jobs that leave a state: decided here, row by locked row, and written in one statement."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections import Counter
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from aiserver.jobs.job import JOB_COLUMNS, WAITING, Job, JobError, State, with_error
from aiserver.jobs.store import Announce, Changed, NewDelivery, Word
from aiserver.jobs.store.postgres_line import TAG, Line
from aiserver.jobs.store.postgres_rows import (
    ALL_KEYS,
    NOTIFY,
    changed,
    columns,
    payload,
    text,
)
from aiserver.kit.ledger import COLUMNS as LEDGER_COLUMNS
from aiserver.kit.ledger import LedgerRow
from aiserver.kit.postgres import Transaction

_HEAVY = {"request": "NULL", "files": "NULL", "logs": "''"}
# What a callback's body is made of is read only where there is a callback to make.
LOCKED = ", ".join(
    f"CASE WHEN j.reply_to IS NULL THEN {_HEAVY[name]} ELSE j.{name} END AS {name}"
    if name in _HEAVY
    else f"j.{name}"
    for name in JOB_COLUMNS
)
_TYPES = {
    "id": "int",
    "state": "text",
    "run_after": "bigint",
    "deadline": "bigint",
    "max_attempts": "int",
    "started": "bigint",
    "ended": "bigint",
    "progress": "float8",
    "status": "text",
    "result": "bytea",
    "error_code": "text",
    "error_message": "text",
    "error_status": "int",
    "error_kind": "text",
    "worker": "text",
    "prompt_tokens": "bigint",
    "completion_tokens": "bigint",
    "cost": "bigint",
    "vtag": "bigint",
    "cancel_asked": "bigint",
    "notified": "bigint",
}
_VALUES = attrgetter(*_TYPES)
_TEXTS = [i for i, type in enumerate(_TYPES.values()) if type == "text"]
_NAMES = ", ".join(_TYPES)
_ARRAYS = ", ".join(f"${n}::{type}[]" for n, type in enumerate(_TYPES.values(), 1))
_SET = ", ".join(f"{name} = t.{name}" for name in list(_TYPES)[1:])
_W = len(_TYPES)
_TURN = f"""
WITH turned AS (
  UPDATE jobs j SET owner = NULL, lease_until = NULL, {_SET}
  FROM unnest({_ARRAYS}) AS t({_NAMES}) WHERE j.id = t.id
), settled AS (
  INSERT INTO ledger ({LEDGER_COLUMNS})
  SELECT * FROM unnest(${_W + 1}::bigint[], ${_W + 2}::bigint[], ${_W + 3}::int[],
    ${_W + 4}::text[], ${_W + 5}::text[], ${_W + 6}::bigint[], ${_W + 7}::bigint[],
    ${_W + 8}::bigint[], ${_W + 9}::int[])
  ON CONFLICT DO NOTHING
), counted AS (
  INSERT INTO job_waiting AS w (key_id, side, waiting)
  SELECT key_id, 1, more FROM unnest(${_W + 10}::int[], ${_W + 11}::int[]) AS n(key_id, more)
  ON CONFLICT (key_id, side) DO UPDATE SET waiting = w.waiting + excluded.waiting
), tagged AS (
  {TAG.format(*range(_W + 12, _W + 16))}
)
SELECT {NOTIFY.format(f"${_W + 16}")}"""
_DELIVER = """
INSERT INTO outbox (id, job_id, key_id, url, receiver, verb, body, due, created, attempt, state)
SELECT d.*, $9, 0, 'Pending' FROM unnest($1::text[], $2::int[], $3::int[], $4::text[], $5::text[],
  $6::text[], $7::bytea[], $8::bigint[]) d
ON CONFLICT DO NOTHING"""


class Turns:
    """The changes of one transaction; each job turns once, then `write`."""

    def __init__(self, now: int, announce: Announce, sender: str) -> None:
        self.now = now
        self.changed: list[Changed] = []
        self.turned: dict[int, Job] = {}
        self.ledger: list[LedgerRow] = []
        self._announce = announce
        self._sender = sender
        self._moves: Counter[int] = Counter()
        self._deliveries: list[NewDelivery] = []

    def turn(self, old: Job, new: Job) -> Changed:
        """From a locked row to the row it is to be."""
        more = (new.state in WAITING) - (old.state in WAITING)
        if more:
            self._moves[old.key_id] += more
            self._moves[ALL_KEYS] += more
        self.turned[new.id] = new
        delivery = None
        if new.state.ended and new.reply_to is not None:
            delivery = self._announce(replace(new, owner=None, lease_until=None))
        if delivery is not None:
            self._deliveries.append(delivery)
        self.changed.append(changed(new, called_back=delivery is not None))
        return self.changed[-1]

    def stop(self, job: Job, error: JobError | None) -> Changed:
        """Ends a job without its worker: Failed with the error, or Cancelled."""
        state = State.CANCELLED if error is None else State.FAILED
        ended = replace(with_error(job, error), state=state, ended=self.now)
        return self.turn(job, ended)

    async def write(self, transaction: Transaction, line: Line | None = None) -> None:
        if not self.turned:
            return
        await transaction.rows(
            _TURN,
            *columns([_row(job) for job in self.turned.values()], _W),
            *columns([_ledger(row) for row in self.ledger], 9),
            *columns(sorted(self._moves.items()), 2),
            *(line.tags() if line is not None else [[]] * 4),
            self._said(),
        )
        if self._deliveries:
            await add_deliveries(transaction, self._deliveries, self.now)

    def _said(self) -> list[str]:
        said: list[str] = []
        ended = [change.id for change in self.changed if change.state.ended]
        if ended:
            said.append(payload(self._sender, Word.ENDED, ended))
        if any(change.state is State.QUEUED for change in self.changed):
            said.append(payload(self._sender, Word.READY))
        if self._deliveries:
            said.append(payload(self._sender, Word.DELIVER))
        return said


async def add_deliveries(transaction: Transaction, deliveries: list[NewDelivery], now: int) -> None:
    """The same id again changes nothing."""
    rows = [
        (d.id, d.job_id, d.key_id, text(d.url), text(d.receiver), text(d.verb), d.body, d.due)
        for d in deliveries
    ]
    await transaction.execute(_DELIVER, *columns(rows, 8), now)


def _row(job: Job) -> list[Any]:
    values: list[Any] = list(_VALUES(job))
    for i in _TEXTS:
        values[i] = text(values[i])
    return values


def _ledger(row: LedgerRow) -> list[Any]:
    return list(row._replace(provider=text(row.provider) or "", model=text(row.model) or ""))
