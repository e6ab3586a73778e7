"""Jobs on PostgreSQL, for any number of processes."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from aiserver.contract.errors import Conflict
from aiserver.jobs.job import Fence, Job, NewJob, Outcome, Summary
from aiserver.jobs.store import (
    MOST_ROWS,
    Accepted,
    Announce,
    Beat,
    Blanked,
    Bounds,
    CancelResult,
    Changed,
    Counts,
    Filter,
    Group,
    Heard,
    Progress,
    Requeued,
    Swept,
    Tally,
    Want,
    Word,
    postgres_archive,
    postgres_claim,
    postgres_enqueue,
    postgres_finish,
    postgres_query,
    postgres_sweep,
)
from aiserver.jobs.store.batches import Batches
from aiserver.jobs.store.lost import NUMBER
from aiserver.jobs.store.postgres_enqueue import Entry
from aiserver.jobs.store.postgres_rows import CHANNEL, text
from aiserver.jobs.store.postgres_turn import Turns
from aiserver.jobs.store.sqlite_finish import Ending
from aiserver.kit.clock import Clock
from aiserver.kit.ids import CallIds, random_hex
from aiserver.kit.postgres import ConnectionCut, Listener, Postgres

_TEXTS = ("operation", "kind", "model", "provider", "ref_id", "files", "tag", "reply_to", "echo")


def _silent(_: Job) -> None:
    """For a store that nobody wants callbacks from."""


class PostgresJobs:
    """Implements `JobStore`. The database is migrated and closed by its owner."""

    def __init__(
        self,
        database: Postgres,
        clock: Clock,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        announce: Announce = _silent,
    ) -> None:
        self._db = database
        self._clock = clock
        self._bounds = bounds
        self._announce = announce
        self._name = random_hex(8)
        self._enqueues = Batches(self._write_entries)
        self._finishes = Batches(self._write_endings)
        self._ids: CallIds | None = None

    async def begin(self) -> None:
        """Nothing: it is all in the database."""

    def listener(self, heard: Heard, *, again: Callable[[], None]) -> Listener:

        def told(_: str, payload: str) -> None:
            sender, word, named = [*payload.split(" "), ""][:3]
            if sender != self._name:
                heard(Word(word), named.split(",") if named else [])

        return Listener(self._db, (CHANNEL,), heard=told, again=again)

    async def enqueue(self, job: NewJob) -> Accepted:
        return await self._stored(job, None, None)

    def start(self, job: NewJob, *, owner: str, until: int) -> asyncio.Future[Accepted]:
        return self._stored(job, owner, until)

    def _stored(
        self, job: NewJob, owner: str | None, until: int | None
    ) -> asyncio.Future[Accepted]:
        clean = _clean(job)
        entry = Entry(clean, clean.ref_id or random_hex(), owner, until, self._now())
        return self._enqueues.submit(entry)

    async def replay(self, key_id: int, idempotency_key: str, body_hash: bytes) -> Accepted | None:
        key = text(idempotency_key) or ""
        answer = await postgres_enqueue.replay(self._db, key_id, key, body_hash)
        if isinstance(answer, Conflict):
            raise answer
        return answer

    async def groups(self) -> list[Group]:
        return await postgres_claim.groups(self._db)

    async def claim(
        self, owner: str, wants: Sequence[Want], *, until: int, most: int | None = None
    ) -> list[Job]:
        bound = MOST_ROWS if most is None else min(most, MOST_ROWS)
        if not wants or bound <= 0:
            return []
        now = self._now()
        return await postgres_claim.claim(self._db, owner, wants, now=now, until=until, most=bound)

    async def heartbeat(self, owner: str, held: Sequence[Fence], *, until: int) -> Beat:
        return await postgres_claim.heartbeat(self._db, owner, held, until=until)

    async def progress(self, updates: Sequence[Progress]) -> list[Fence]:
        return await postgres_claim.progress(self._db, updates)

    async def finish(self, fence: Fence, outcome: Outcome) -> Changed | None:
        return await self._finishes.add(Ending(fence, outcome))

    async def cancel(self, ids: Sequence[int], *, key_id: int | None = None) -> CancelResult:
        wanted = list(ids)[:MOST_ROWS]
        turns = self._turns(self._now())
        return await postgres_finish.cancel(self._db, wanted, key_id, turns, sender=self._name)

    async def requeue(self, ids: Sequence[int]) -> Requeued:
        wanted = list(ids)[:MOST_ROWS]
        turns = self._turns(self._now())
        return await postgres_archive.requeue(self._db, wanted, turns, self._bounds)

    async def find(
        self, *, id: int | None = None, ref_id: str | None = None, key_id: int | None = None
    ) -> Job | None:
        return await postgres_query.find(self._db, id=id, ref_id=ref_id, key_id=key_id)

    async def position(self, id: int) -> int | None:
        return await postgres_claim.position(self._db, id)

    async def sweep(self, *, spare_leases: bool = False) -> Swept:
        now = self._now()
        due = await postgres_sweep.next_due(self._db)
        if due is None or due > now:
            return Swept([], 0, 0, due)
        turns, ids = self._turns(now), await self._numbers()
        return await postgres_sweep.sweep(self._db, turns, ids, spare_leases=spare_leases)

    async def owners(self) -> list[str]:
        return await postgres_query.owners(self._db)

    async def take_back(self, owners: Sequence[str]) -> Swept:
        turns, ids = self._turns(self._now()), await self._numbers()
        return await postgres_sweep.take_back(self._db, owners, turns, ids)

    async def counts(self) -> Counts:
        return await postgres_query.counts(self._db)

    async def tallies(self, *, since: int, until: int) -> list[Tally]:
        return await postgres_query.tallies(self._db, since=since, until=until)

    async def jobs(self, filter: Filter, *, month: str | None = None) -> tuple[list[Job], int]:
        return await postgres_query.jobs(self._db, filter, month=month)

    async def summaries(self, filter: Filter) -> tuple[list[Summary], int]:
        return await postgres_query.summaries(self._db, filter)

    async def months(self) -> list[str]:
        return await postgres_archive.months(self._db)

    async def archive(self, before: int) -> int:
        return await postgres_archive.archive(self._db, before)

    async def drop_months(self, before: str) -> list[str]:
        return await postgres_archive.drop_months(self._db, before)

    async def blank(self, before: int) -> Blanked:
        return await postgres_archive.blank(self._db, before)

    async def forget_keys(self, before: int) -> int:
        return await postgres_archive.forget_keys(self._db, before)

    async def tidy(self) -> int:
        return await postgres_archive.tidy(self._db)

    async def close(self) -> None:
        await self._enqueues.close()
        await self._finishes.close()

    async def _numbers(self) -> CallIds:
        """For attempts that are lost."""
        if self._ids is None:
            [(number,)] = await self._db.rows(NUMBER)
            self._ids = self._ids or CallIds(number)
        return self._ids

    async def _write_entries(self, entries: Sequence[Entry]) -> Sequence[Accepted | Exception]:
        write = partial(
            postgres_enqueue.enqueue, self._db, entries, bounds=self._bounds, sender=self._name
        )
        try:
            return await write(again=False)
        except ConnectionCut:
            return await write(again=True)

    async def _write_endings(self, endings: Sequence[Ending]) -> Sequence[Changed | None]:
        now = self._now()
        try:
            return await postgres_finish.finish(self._db, endings, self._turns(now), again=False)
        except ConnectionCut:
            return await postgres_finish.finish(self._db, endings, self._turns(now), again=True)

    def _turns(self, now: int) -> Turns:
        return Turns(now, self._announce, self._name)

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _clean(job: NewJob) -> NewJob:
    """With texts that PostgreSQL takes; most are fine as they are."""
    mended = {name: text(getattr(job, name)) for name in (*_TEXTS, "request_id", "idempotency_key")}
    bad = {name: value for name, value in mended.items() if value is not getattr(job, name)}
    return replace(job, **bad) if bad else job
