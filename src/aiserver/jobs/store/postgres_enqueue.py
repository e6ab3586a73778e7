"""Stores jobs that were asked for at the same time in one transaction."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.errors import Conflict, TooBusy
from aiserver.jobs.job import NewJob, State
from aiserver.jobs.store import Accepted, Bounds, Word
from aiserver.jobs.store.postgres_line import IN_TURN, TAG, Line, place_of
from aiserver.jobs.store.postgres_rows import NOTIFY, columns, payload
from aiserver.jobs.store.refusals import ref_id_used, replayed
from aiserver.kit.postgres import Postgres, Transaction

# Two looks through an index for each; a join with both tables' union would read them whole.
_SAME_REF = """
SELECT r.i, j.id, j.state, j.created
FROM unnest($1::text[], $2::int[]) WITH ORDINALITY r(ref_id, key_id, i)
CROSS JOIN LATERAL (
  SELECT id, state, created FROM jobs WHERE ref_id = r.ref_id AND key_id = r.key_id
  UNION ALL
  SELECT id, state, created FROM job_summary WHERE ref_id = r.ref_id AND key_id = r.key_id
) j
"""

_SAME_KEY = """
SELECT r.i, j.id, j.ref_id, j.state, j.body_hash
FROM unnest($1::int[], $2::text[]) WITH ORDINALITY r(key_id, idempotency_key, i)
CROSS JOIN LATERAL (
  SELECT id, ref_id, state, body_hash FROM jobs
  WHERE key_id = r.key_id AND idempotency_key = r.idempotency_key
  UNION ALL
  SELECT id, ref_id, state, body_hash FROM job_summary
  WHERE key_id = r.key_id AND idempotency_key = r.idempotency_key
) j
"""

_TYPES = {
    "ref_id": "text",
    "key_id": "int",
    "operation": "text",
    "kind": "text",
    "model": "text",
    "provider": "text",
    "priority": "int",
    "run_after": "bigint",
    "deadline": "bigint",
    "max_attempts": "int",
    "attempt": "int",
    "state": "text",
    "request": "bytea",
    "files": "text",
    "tag": "text",
    "reply_to": "text",
    "echo": "text",
    "request_id": "text",
    "idempotency_key": "text",
    "body_hash": "bytea",
    "created": "bigint",
    "started": "bigint",
    "owner": "text",
    "lease_until": "bigint",
    "vtag": "bigint",
}
_NAMES = ", ".join(_TYPES)
_ARRAYS = ", ".join(f"${n}::{type}[]" for n, type in enumerate(_TYPES.values(), 1))
_W = len(_TYPES)
_INSERT = f"""
WITH stored AS (
  INSERT INTO jobs (id, {_NAMES}, logs)
  SELECT nextval('job_ids'), n.*, '' FROM unnest({_ARRAYS}) AS n({_NAMES})
  RETURNING id, key_id, ref_id, state
), counted AS (
  INSERT INTO job_waiting AS w (key_id, side, waiting)
  SELECT key_id, 0, more FROM unnest(${_W + 1}::int[], ${_W + 2}::int[]) AS n(key_id, more)
  ON CONFLICT (key_id, side) DO UPDATE SET waiting = w.waiting + excluded.waiting
), tagged AS (
  {TAG.format(*range(_W + 3, _W + 7))}
)
SELECT id, key_id, ref_id, state, {NOTIFY.format(f"${_W + 7}")} FROM stored
"""


class Entry(msgspec.Struct, frozen=True):
    """One call of `enqueue`: `ref_id` is given or made, its texts fit for the database."""

    job: NewJob
    ref_id: str
    owner: str | None
    until: int | None
    now: int

    @property
    def state(self) -> State:
        if self.owner is not None:
            return State.STARTED
        later = self.job.run_after is not None and self.job.run_after > self.now
        return State.SCHEDULED if later else State.QUEUED


class _Stored(NamedTuple):
    """Answered once the rows of the batch have their ids."""

    ref_id: str
    key_id: int
    replayed: bool = False

    @property
    def name(self) -> tuple[str, int]:
        return self.ref_id, self.key_id


async def enqueue(
    database: Postgres, entries: Sequence[Entry], *, bounds: Bounds, sender: str, again: bool
) -> list[Accepted | Exception]:
    """Each entry's answer, or why it was refused."""
    async with database.transaction(IN_TURN) as transaction:
        line = Line(bounds)
        await line.learn(transaction, [place_of(entry.job) for entry in entries])
        names = _Names(again=again)
        await names.learn(transaction, entries)
        answers: list[Accepted | Exception | _Stored] = []
        rows: list[list[Any]] = []
        for entry in entries:
            try:
                answer = names.used(entry)
                if answer is None:
                    rows.append(_join(line, entry))
                    answer = names.take(entry)
            except (Conflict, TooBusy) as refusal:
                answer = refusal
            answers.append(answer)
        stored = await _store(transaction, rows, line, sender) if rows else {}
    return [_answer(answer, stored) for answer in answers]


async def replay(
    database: Postgres, key_id: int, idempotency_key: str, body_hash: bytes
) -> Accepted | Conflict | None:
    """As `refusals.replayed` has it."""
    rows = await database.read(_SAME_KEY, [key_id], [idempotency_key])
    return replayed([tuple(row)[1:] for row in rows], body_hash)


class _Names:
    """The refIds and idempotency keys that were used, as far as one batch needs to know them."""

    def __init__(self, *, again: bool) -> None:
        self._again = again
        self._refs: dict[tuple[str, int], tuple[int, Accepted] | None] = {}
        self._keyed: dict[tuple[int, str], list[tuple[Any, ...]]] = {}
        self._keyed_here: dict[tuple[int, str], tuple[Entry, _Stored]] = {}

    async def learn(self, transaction: Transaction, entries: Sequence[Entry]) -> None:
        # A name that was made here is new, unless this is the second try.
        refs = [(e.ref_id, e.job.key_id) for e in entries if e.job.ref_id or self._again]
        if refs:
            for i, id, state, created in await transaction.rows(_SAME_REF, *columns(refs, 2)):
                ref_id, key_id = refs[int(i) - 1]
                self._refs[ref_id, key_id] = created, Accepted(id, ref_id, State(state))
        keyed = [(e.job.key_id, e.job.idempotency_key) for e in entries if e.job.idempotency_key]
        if keyed:
            for row in await transaction.rows(_SAME_KEY, *columns(keyed, 2)):
                key_id, key = keyed[int(row[0]) - 1]
                self._keyed[key_id, key or ""] = [tuple(row)[1:]]

    def used(self, entry: Entry) -> Accepted | Exception | _Stored | None:
        """The answer for a job that is there already; None for one to be stored."""
        job, name = entry.job, (entry.ref_id, entry.job.key_id)
        mine = self._refs.get(name)
        if self._again and mine is not None and mine[0] == entry.now:
            # Stored by the try whose answer was lost; a second one of this name is another's.
            self._refs[name] = None
            return mine[1]
        if job.idempotency_key is not None:
            key = (job.key_id, job.idempotency_key)
            if (here := self._keyed_here.get(key)) is not None:
                first, stored = here
                refused = replayed([(0, "", State.QUEUED, first.job.body_hash)], job.body_hash)
                return refused if isinstance(refused, Conflict) else stored._replace(replayed=True)
            if (found := replayed(self._keyed.get(key, []), job.body_hash)) is not None:
                return found
        if name in self._refs:
            return ref_id_used()
        return None

    def take(self, entry: Entry) -> _Stored:
        stored = _Stored(entry.ref_id, entry.job.key_id)
        self._refs[stored.name] = None
        if entry.job.idempotency_key is not None:
            self._keyed_here[entry.job.key_id, entry.job.idempotency_key] = entry, stored
        return stored


def _join(line: Line, entry: Entry) -> list[Any]:
    place = place_of(entry.job)
    if entry.state is State.STARTED:
        return _row(entry, line.behind_all(place))
    line.enter(entry.job.key_id)
    return _row(entry, line.next(place) if entry.state is State.QUEUED else 0)


def _row(entry: Entry, vtag: int) -> list[Any]:
    job, started = entry.job, entry.state is State.STARTED
    return [
        *(entry.ref_id, job.key_id, job.operation, job.kind, job.model, job.provider),
        *(job.priority, job.run_after, job.deadline, job.max_attempts, int(started)),
        *(entry.state.value, job.request, job.files, job.tag, job.reply_to, job.echo),
        *(job.request_id, job.idempotency_key, job.body_hash, entry.now),
        *(entry.now if started else None, entry.owner, entry.until, vtag),
    ]


async def _store(
    transaction: Transaction, rows: list[list[Any]], line: Line, sender: str
) -> dict[tuple[str, int], tuple[int, State]]:
    ready = [payload(sender, Word.READY)] if line.tagged else []
    stored = await transaction.rows(
        _INSERT,
        *columns(rows, len(_TYPES)),
        *columns(sorted(line.entered.items()), 2),
        *line.tags(),
        ready,
    )
    return {(row["ref_id"], row["key_id"]): (row["id"], State(row["state"])) for row in stored}


def _answer(
    answer: Accepted | Exception | _Stored, stored: dict[tuple[str, int], tuple[int, State]]
) -> Accepted | Exception:
    if not isinstance(answer, _Stored):
        return answer
    id, state = stored[answer.name]
    return Accepted(id, answer.ref_id, state, replayed=answer.replayed)
