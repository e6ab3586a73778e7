"""Jobs on SQLite: one file for what lives, one a month for what ended; for one process."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiserver.contract.conditions import stored
from aiserver.contract.errors import Conflict, TooBusy
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
    sqlite_archive,
    sqlite_claim,
    sqlite_enqueue,
    sqlite_find,
    sqlite_finish,
    sqlite_query,
    sqlite_sweep,
)
from aiserver.jobs.store.batches import Batches
from aiserver.jobs.store.depth import Depth
from aiserver.jobs.store.lost import NUMBER
from aiserver.jobs.store.refusals import replayed
from aiserver.jobs.store.sqlite_enqueue import Entry
from aiserver.jobs.store.sqlite_finish import Ending
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.jobs.store.sqlite_query import Read
from aiserver.jobs.store.sqlite_rows import Effects
from aiserver.kit.clock import Clock
from aiserver.kit.db import Connection, Database
from aiserver.kit.ids import CallIds, random_hex

T = TypeVar("T")
_RECOUNT_SECONDS = 600.0
_SEED = "UPDATE sequences SET last = max(last, ?) WHERE name = 'jobs'"


def _silent(_: Job) -> None:
    """For a store that nobody wants callbacks from."""


class SqliteJobs:
    """Implements `JobStore`, once `begin` has run; the database is closed by its owner.

    `folder` has the months' files. The bounds are counted by this process, and mended from time to
    time for what another one did.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        folder: Path,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        announce: Announce = _silent,
    ) -> None:
        self._db = database
        self._clock = clock
        self._files = MonthFiles(folder)
        self._announce = announce
        self._depth = Depth(bounds)
        self._job_ids = sqlite_enqueue.Numbers()
        self._enqueues = Batches(self._write_entries)
        self._finishes = Batches(self._write_endings)
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writes = 0
        self._flying = 0
        self._recounted = clock.monotonic()
        self._ids: CallIds | None = None

    @classmethod
    async def open(
        cls,
        database: Database,
        clock: Clock,
        folder: Path,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        announce: Announce = _silent,
    ) -> "SqliteJobs":
        """Raises StorageError."""
        store = cls(database, clock, folder, bounds=bounds, announce=announce)
        await store.begin()
        return store

    async def begin(self) -> None:
        """Takes over what is there, before anything else is asked of it. Raises StorageError."""
        largest = await asyncio.to_thread(self._files.largest_id)
        await self._db.write(lambda connection: connection.execute(_SEED, (largest,)))
        self._depth.reset(await self._apart(sqlite_query.waiting_by_key))

    def listener(self, heard: Heard, *, again: Callable[[], None]) -> None:
        """The command line writes here too; the sweep sees that."""

    async def enqueue(self, job: NewJob) -> Accepted:
        job = sqlite_enqueue.storable(job)
        try:
            self._depth.reserve(job.key_id)
        except TooBusy:
            if job.idempotency_key is None or job.body_hash is None:
                raise
            first = await self.replay(job.key_id, job.idempotency_key, job.body_hash)
            if first is None:
                raise
            return first
        self._begin()
        stored = self._enqueues.submit(Entry(job, job.ref_id or random_hex(), None, None))
        stored.add_done_callback(partial(self._stored, job.key_id))
        return await asyncio.shield(stored)

    def start(self, job: NewJob, *, owner: str, until: int) -> asyncio.Future[Accepted]:
        job = sqlite_enqueue.storable(job)
        return self._enqueues.submit(Entry(job, job.ref_id or random_hex(), owner, until))

    async def replay(self, key_id: int, idempotency_key: str, body_hash: bytes) -> Accepted | None:
        key = str(stored(idempotency_key))
        answer = replayed(self._db.read(*sqlite_enqueue.first(key_id, key)), body_hash)
        if isinstance(answer, Conflict):
            raise answer
        return answer

    async def groups(self) -> list[Group]:
        return sqlite_claim.groups(self._db)

    async def claim(
        self, owner: str, wants: Sequence[Want], *, until: int, most: int | None = None
    ) -> list[Job]:
        bound = MOST_ROWS if most is None else min(most, MOST_ROWS)
        if not wants or bound <= 0:
            return []
        return await self._write(
            lambda connection, effects: sqlite_claim.claim(
                connection, owner, wants, until=until, most=bound, effects=effects
            )
        )

    async def heartbeat(self, owner: str, held: Sequence[Fence], *, until: int) -> Beat:
        return await self._db.write(lambda c: sqlite_claim.heartbeat(c, owner, held, until))

    async def progress(self, updates: Sequence[Progress]) -> list[Fence]:
        return await self._db.write(lambda c: sqlite_claim.progress(c, updates))

    async def finish(self, fence: Fence, outcome: Outcome) -> Changed | None:
        return await self._finishes.add(Ending(fence, outcome))

    async def cancel(self, ids: Sequence[int], *, key_id: int | None = None) -> CancelResult:
        wanted = list(ids)[:MOST_ROWS]
        return await self._write(
            lambda c, effects: sqlite_finish.cancel(c, wanted, key_id, effects)
        )

    async def requeue(self, ids: Sequence[int]) -> Requeued:
        wanted = list(ids)[:MOST_ROWS]
        async with self._moving:
            found = await asyncio.to_thread(sqlite_archive.archived, self._db, self._files, wanted)
            room = self._depth.room()
            result = await self._write(
                lambda c, effects: sqlite_archive.requeue(c, wanted, found, room, effects)
            )
            for id in result.ids:
                if id in found:
                    await asyncio.to_thread(self._files.remove, found[id][0], [id])
        return result

    async def find(
        self, *, id: int | None = None, ref_id: str | None = None, key_id: int | None = None
    ) -> Job | None:
        live = sqlite_find.live(self._db, id=id, ref_id=ref_id, key_id=key_id)
        if live is not None:
            return live
        summary = sqlite_find.summary(self._db, id=id, ref_id=ref_id, key_id=key_id)
        if summary is None:
            return None
        found = await asyncio.to_thread(sqlite_find.archived, self._files, summary)
        # It may have been queued again while its month was read.
        return sqlite_find.live(self._db, id=summary.id) or found

    async def position(self, id: int) -> int | None:
        return sqlite_claim.position(self._db, id)

    async def sweep(self, *, spare_leases: bool = False) -> Swept:
        await self._mend_depth()
        due = sqlite_sweep.next_due(self._db)
        if due is None or due > self._now():
            return Swept([], 0, 0, due)
        ids = await self._numbers()
        return await self._write(
            lambda c, effects: sqlite_sweep.sweep(c, effects, ids, spare_leases=spare_leases)
        )

    async def owners(self) -> list[str]:
        sql = "SELECT DISTINCT owner FROM jobs WHERE state = 'Started' ORDER BY owner"
        return [owner for (owner,) in self._db.read(sql)]

    async def take_back(self, owners: Sequence[str]) -> Swept:
        ids = await self._numbers()
        return await self._write(lambda c, effects: sqlite_sweep.take_back(c, owners, effects, ids))

    async def counts(self) -> Counts:
        return await self._apart(sqlite_query.counts)

    async def tallies(self, *, since: int, until: int) -> list[Tally]:
        return await self._apart(lambda read: sqlite_query.tallies(read, since, until))

    async def jobs(self, filter: Filter, *, month: str | None = None) -> tuple[list[Job], int]:
        if month is None:
            return await self._apart(lambda read: sqlite_query.jobs(read, filter))
        read = partial(self._files.read, month)
        return await self._apart(lambda kept: sqlite_query.month_jobs(read, kept, filter))

    async def summaries(self, filter: Filter) -> tuple[list[Summary], int]:
        return await self._apart(lambda read: sqlite_query.summaries(read, filter))

    async def months(self) -> list[str]:
        return await asyncio.to_thread(self._files.months)

    async def archive(self, before: int) -> int:
        async with self._moving:
            months = await asyncio.to_thread(sqlite_archive.finished, self._db, before)
            for month, rows in months.items():
                await asyncio.to_thread(self._files.put, month, rows)
            moved = await self._db.write(lambda c: sqlite_archive.summarise(c, months, before))
            for month, ids in sqlite_archive.left_behind(months, moved).items():
                if ids:
                    await asyncio.to_thread(self._files.remove, month, ids)
            return len(moved)

    async def drop_months(self, before: str) -> list[str]:
        async with self._moving:
            while await self._db.write(lambda c: sqlite_archive.forget_before(c, before)):
                pass
            dropped = [month for month in await self.months() if month < before]
            for month in dropped:
                await asyncio.to_thread(self._files.drop, month)
        return dropped

    async def blank(self, before: int) -> Blanked:
        async with self._moving:
            return await asyncio.to_thread(sqlite_archive.blank, self._files, before)

    async def forget_keys(self, before: int) -> int:
        return await self._db.write(lambda c: sqlite_archive.forget_keys(c, before))

    async def tidy(self) -> int:
        idle = await self._apart(sqlite_archive.idle_places)
        return await self._db.write(lambda c: sqlite_archive.tidy(c, idle)) if idle else 0

    async def close(self) -> None:
        await self._enqueues.close()
        await self._finishes.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _numbers(self) -> CallIds:
        """For attempts that are lost; only the writer's thread takes any."""
        if self._ids is None:
            [(number,)] = await self._db.write(lambda connection: connection.rows(NUMBER))
            self._ids = self._ids or CallIds(number)
        return self._ids

    async def _write_entries(self, entries: Sequence[Entry]) -> Sequence[Accepted | Exception]:
        now, numbers = self._now(), self._job_ids
        alone = entries[0] if len(entries) == 1 and entries[0].plain else None
        id = numbers.one() if alone is not None else None
        try:
            if alone is not None and id is not None:
                return await self._db.write(
                    lambda c: sqlite_enqueue.begin(c, alone, id, now), single=True
                )
            return await self._db.write(lambda c: sqlite_enqueue.enqueue(c, entries, now, numbers))
        except BaseException:
            numbers.drop()
            raise

    async def _write_endings(self, endings: Sequence[Ending]) -> Sequence[Changed | None]:
        return await self._write(lambda c, effects: sqlite_finish.finish(c, endings, effects))

    async def _write(self, work: Callable[[Connection, Effects], T]) -> T:
        # Whoever stops waiting for it does not undo it, so it must be counted all the same.
        task = asyncio.create_task(self._counted(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _counted(self, work: Callable[[Connection, Effects], T]) -> T:
        effects = Effects(self._now(), self._announce)
        self._begin()
        try:
            result = await self._db.write(lambda connection: work(connection, effects))
            self._depth.apply(effects.moves)
        finally:
            self._flying -= 1
        return result

    def _stored(self, key_id: int, reserved: "asyncio.Future[Accepted]") -> None:
        self._flying -= 1
        if reserved.cancelled() or reserved.exception() or reserved.result().replayed:
            self._depth.move(key_id, -1)

    def _begin(self) -> None:
        self._flying += 1
        self._writes += 1

    async def _mend_depth(self) -> None:
        if self._clock.monotonic() - self._recounted < _RECOUNT_SECONDS or self._flying:
            return
        self._recounted = self._clock.monotonic()
        writes = self._writes
        counted = await self._apart(sqlite_query.waiting_by_key)
        if writes == self._writes:
            self._depth.reset(counted)

    async def _apart(self, work: Callable[[Read], T]) -> T:
        return await asyncio.to_thread(sqlite_query.apart, self._db, work)

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)
