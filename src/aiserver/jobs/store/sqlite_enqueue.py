"""Puts new jobs into SQLite, many in one transaction, each with its key's fair place in line."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from aiserver.contract.conditions import stored
from aiserver.contract.errors import Conflict
from aiserver.jobs.job import LARGEST_ID, NewJob, State
from aiserver.jobs.store import Accepted
from aiserver.jobs.store.refusals import ref_id_used, replayed
from aiserver.kit.db import Connection, Row, StorageError, in_blocks

_COLUMNS = (
    *("id", "ref_id", "key_id", "operation", "kind", "model", "provider", "priority"),
    *("run_after", "deadline", "max_attempts", "attempt", "state", "request", "files", "tag"),
    *("reply_to", "echo", "request_id", "idempotency_key", "body_hash", "created", "started"),
    *("owner", "lease_until", "logs", "vtag"),
)
_TEXTS = (
    *("model", "provider", "ref_id", "files", "tag", "reply_to", "echo", "request_id"),
    "idempotency_key",
)
_INSERT = f"INSERT INTO jobs ({', '.join(_COLUMNS)})"
_FIRST = """
SELECT id, ref_id, state, body_hash FROM jobs WHERE key_id = ? AND idempotency_key = ?
UNION ALL
SELECT id, ref_id, state, body_hash FROM job_summary WHERE key_id = ? AND idempotency_key = ?"""
_USED = """
SELECT 1 FROM jobs WHERE ref_id = ? AND key_id = ?
UNION ALL SELECT 1 FROM job_summary WHERE ref_id = ? AND key_id = ?"""
# What a process takes at once, so that most jobs need no write for their number.
IDS_AT_ONCE = 64
_IDS = "UPDATE sequences SET last = last + ? WHERE name = 'jobs' RETURNING last"
_SMALLEST = """
SELECT vtag FROM jobs INDEXED BY jobs_fair
WHERE state = 'Queued' AND kind = ? AND model = ? AND priority = ? ORDER BY vtag LIMIT 1"""
_LAST = "SELECT tag FROM fair WHERE kind = ? AND model = ? AND key_id = ?"
_REMEMBER = "INSERT OR REPLACE INTO fair (kind, model, key_id, tag)"
# Who comes to an empty line begins behind all that was ever in it, else a key that is new would
# pass by one that was there often.
_HIGHEST = -1
_BEGIN = f"""{_INSERT} VALUES ({", ".join("?" * (len(_COLUMNS) - 1))},
  (SELECT coalesce(max(tag), 0) + 1 FROM fair
   WHERE kind = ? AND model = ? AND key_id = {_HIGHEST}))"""


class Entry(NamedTuple):
    """A job to be stored; `owner` and `until` for one that begins at once."""

    job: NewJob
    ref_id: str
    owner: str | None
    until: int | None

    @property
    def plain(self) -> bool:
        """Whether it begins at once, under no name that another could have."""
        job = self.job
        return self.owner is not None and job.ref_id is None and job.idempotency_key is None


def storable(job: NewJob) -> NewJob:
    """With text as SQLite takes it: no lone surrogates."""
    for name in _TEXTS:
        text: str | None = getattr(job, name)
        if text is not None and not text.isascii():
            return msgspec.structs.replace(job, **{n: stored(getattr(job, n)) for n in _TEXTS})
    return job


class Line(NamedTuple):
    """Where a job waits."""

    kind: str
    model: str
    priority: int


class Numbers:
    """Job ids of one process, in the order of the jobs; what it leaves over, nobody gets."""

    def __init__(self) -> None:
        self._left: deque[int] = deque()

    def take(self, connection: Connection, count: int) -> list[int]:
        """Raises StorageError where none are left."""
        missing = count - len(self._left)
        if missing > 0:
            wanted = max(missing, IDS_AT_ONCE)
            [(last,)] = connection.rows(_IDS, (wanted,))
            if last > LARGEST_ID:
                raise StorageError("All job numbers below 2,147,483,648 are used up.")
            self._left.extend(range(last - wanted + 1, last + 1))
        return [self._left.popleft() for _ in range(count)]

    def one(self) -> int | None:
        """One that needs no look at the table, if there is such."""
        return self._left.popleft() if self._left else None

    def drop(self) -> None:
        """After a transaction that failed: what it took is not its own."""
        self._left.clear()


class Tags:
    """The next places in line of keys, for one transaction; `save` at its end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._smallest: dict[Line, int] = {}
        self._last: dict[tuple[str, str, int], int] = {}
        self._changed: set[tuple[str, str, int]] = set()

    def behind_all(self, line: Line) -> int:
        """For what begins at once and takes nobody's place, should it come back to the line."""
        return self._of(line.kind, line.model, _HIGHEST) + 1

    def next(self, line: Line, key_id: int) -> int:
        kind, model, _ = line
        smallest = self._smallest.get(line)
        if smallest is None:
            found = self._connection.rows(_SMALLEST, line)
            smallest = found[0][0] if found else self._of(kind, model, _HIGHEST)
            self._smallest[line] = smallest
        tag = max(smallest, self._of(kind, model, key_id)) + 1
        self._set(kind, model, key_id, tag)
        if tag > self._of(kind, model, _HIGHEST):
            self._set(kind, model, _HIGHEST, tag)
        return tag

    def save(self) -> None:
        rows: list[Row] = [(*place, self._last[place]) for place in sorted(self._changed)]
        for sql, values in in_blocks(_REMEMBER, rows):
            self._connection.execute(sql, values)

    def _of(self, kind: str, model: str, key_id: int) -> int:
        place = (kind, model, key_id)
        if place not in self._last:
            found = self._connection.rows(_LAST, place)
            self._last[place] = found[0][0] if found else 0
        return self._last[place]

    def _set(self, kind: str, model: str, key_id: int, tag: int) -> None:
        self._last[kind, model, key_id] = tag
        self._changed.add((kind, model, key_id))


def first(key_id: int, idempotency_key: str | None) -> tuple[str, Row]:
    """SQL for the job that has this idempotency key."""
    return _FIRST, (key_id, idempotency_key) * 2


def enqueue(
    connection: Connection, entries: Sequence[Entry], now: int, numbers: Numbers
) -> list[Accepted | Conflict]:
    """Stores those that may be; the answers in their order."""
    answers: list[Accepted | Conflict | None] = []
    new: dict[tuple[str, int], int] = {}
    keyed: dict[tuple[int, str], int] = {}
    copies: dict[int, int] = {}
    for index, entry in enumerate(entries):
        job, name = entry.job, (entry.ref_id, entry.job.key_id)
        key = None if job.idempotency_key is None else (job.key_id, job.idempotency_key)
        if key is not None and key in keyed:
            copies[index] = keyed[key]
            answers.append(None)
            continue
        answer = None if key is None else replayed(connection.rows(*first(*key)), job.body_hash)
        if answer is None and job.ref_id is not None:
            answer = _taken(connection, name, new)
        answers.append(answer)
        if answer is None:
            new[name] = index
            if key is not None:
                keyed[key] = index
    accepted = _insert(connection, [(i, entries[i]) for i in new.values()], now, numbers)
    for index, original in copies.items():
        row = (accepted[original].id, accepted[original].ref_id, accepted[original].state.value)
        kept, asked = entries[original].job.body_hash, entries[index].job.body_hash
        copy = replayed([(*row, kept)], asked)
        answers[index] = copy
    return [answer or accepted[index] for index, answer in enumerate(answers)]


def begin(connection: Connection, entry: Entry, id: int, now: int) -> list[Accepted]:
    """As `enqueue` of one that begins at once and has no names of its caller's, in a statement."""
    row = _row(id, entry, State.STARTED, now, 0)
    connection.execute(_BEGIN, (*row[:-1], entry.job.kind, entry.job.model))
    return [Accepted(id, entry.ref_id, State.STARTED)]


def _taken(
    connection: Connection, name: tuple[str, int], new: dict[tuple[str, int], int]
) -> Conflict | None:
    if name not in new and not connection.rows(_USED, name * 2):
        return None
    return ref_id_used()


def _insert(
    connection: Connection, new: list[tuple[int, Entry]], now: int, numbers: Numbers
) -> dict[int, Accepted]:
    if not new:
        return {}
    ids = numbers.take(connection, len(new))
    tags = Tags(connection)
    rows: list[Row] = []
    accepted: dict[int, Accepted] = {}
    for id, (index, entry) in zip(ids, new, strict=True):
        state = _begins(entry, now)
        rows.append(_row(id, entry, state, now, _tag(entry, state, tags)))
        accepted[index] = Accepted(id, entry.ref_id, state)
    tags.save()
    for sql, values in in_blocks(_INSERT, rows):
        connection.execute(sql, values)
    return accepted


def _begins(entry: Entry, now: int) -> State:
    if entry.owner is not None:
        return State.STARTED
    after = entry.job.run_after
    return State.QUEUED if after is None or after <= now else State.SCHEDULED


def _tag(entry: Entry, state: State, tags: Tags) -> int:
    job = entry.job
    line = Line(job.kind, job.model, job.priority)
    if state is State.STARTED:
        return tags.behind_all(line)
    return 0 if state is State.SCHEDULED else tags.next(line, job.key_id)


def _row(id: int, entry: Entry, state: State, now: int, vtag: int) -> Row:
    job, started = entry.job, state is State.STARTED
    return (
        *(id, entry.ref_id, job.key_id, job.operation, job.kind, job.model, job.provider),
        *(job.priority, job.run_after, job.deadline, job.max_attempts, int(started)),
        *(state.value, job.request, job.files, job.tag, job.reply_to, job.echo, job.request_id),
        *(job.idempotency_key, job.body_hash, now, now if started else None),
        *(entry.owner, entry.until, "", vtag),
    )
