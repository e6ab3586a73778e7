"""The gateway's queue with all its loops, and work that does nothing: what its processes run."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from aiserver.contract.trace import Trace
from aiserver.jobs.attempt import Attempt
from aiserver.jobs.job import Completed, Fence, NewJob, Outcome
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.store import Bounds, Changed, JobStore
from aiserver.jobs.store.postgres import PostgresJobs
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.worker import HEARTBEAT_SECONDS, MOST_AT_ONCE, Worker
from aiserver.kit.background import Background
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from aiserver.kit.ledger import row
from aiserver.kit.migrations import postgres, upgrade
from aiserver.kit.postgres import Postgres
from bench.jobs.lap import Tally

_PROGRESS_SECONDS, _SWEEP_SECONDS = 0.25, 2.0
_UNBOUND = Bounds(queued=0, queued_per_key=0)
_REQUEST, _RESULT = b'{"a":1}' * 30, b'{"r":1}' * 30
_PROVIDER, _KEYS = "bench", 20


def nothing() -> None: ...


class Slot:
    """Room at a provider that has no end of it."""

    worker = _PROVIDER

    def give(self, trace: Trace) -> None: ...

    def release(self) -> None: ...


class Room:
    """Of such slots."""

    def reserve(self, kind: str, model: str, provider: str) -> Slot | None:
        return Slot()

    def watch(self, names: Sequence[tuple[str, ...]], freed: Callable[[], None]) -> None: ...


class Counted(Queue):
    """Knows how many jobs were finished by this process."""

    def __init__(self, store: JobStore) -> None:
        super().__init__(store)
        self.done = Tally()

    async def finish(self, fence: Fence, outcome: Outcome) -> Changed | None:
        changed = await super().finish(fence, outcome)
        self.done.one_more()
        return changed


class Bell:
    """What the server joins: the worker hears of its queue."""

    def __init__(self, worker: Worker) -> None:
        self.ready = worker.ready
        self.stop = worker.stop

    def called_back(self) -> None: ...

    def planned(self) -> None: ...


class Desk:
    """A queue and its worker; `on_start` hears of each attempt as it begins."""

    def __init__(self, store: JobStore, *, most: int = MOST_AT_ONCE) -> None:
        self.queue, self._clock = Counted(store), SystemClock()
        self.on_start: Callable[[], None] = nothing
        self.worker = Worker(self.queue, Room(), self._do, self._clock, owner="bench", most=most)
        self.queue.bell, self.queue.starter = Bell(self.worker), self.worker
        # A ledger row has the number of its call, which no other process gives.
        self._calls = count(self._now() << 21)

    async def add(self, number: int, *, models: int = 1, answer: EarlyAnswer | None = None) -> int:
        """The id of a job of one of so many models, of one of twenty keys."""
        job = NewJob(
            operation="Noop",
            kind="chat",
            key_id=1 + number % _KEYS,
            request=_REQUEST,
            model=f"model-{number % models}",
        )
        return (await self.queue.add(job, answer)).id

    def start(self, background: Background) -> None:
        """The loops that the server has."""
        background.run("jobs", self.worker.run)
        background.every(HEARTBEAT_SECONDS, "job leases", self.worker.beat)
        background.every(_PROGRESS_SECONDS, "job progress", self.worker.tell_progress)
        background.every(_SWEEP_SECONDS, "job sweep", self._sweep)
        store = self.queue.store
        if isinstance(store, PostgresJobs):
            background.run("job news", store.listener(self._heard, again=self.worker.ready).run)

    def _heard(self, *_: object) -> None:
        self.worker.ready()

    async def _do(self, attempt: Attempt) -> Outcome:
        self.on_start()
        job = attempt.job
        ledger = row(
            next(self._calls),
            at=self._now(),
            key_id=job.key_id,
            provider=_PROVIDER,
            model=job.model,
            prompt_tokens=1,
            completion_tokens=1,
            cost=None,
        )
        return Completed(result=_RESULT, worker=_PROVIDER, ledger=ledger)

    async def _sweep(self) -> None:
        while (await self.queue.sweep()).more:
            pass

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


@asynccontextmanager
async def opened(
    place: str, *, working: bool = True, most: int = MOST_AT_ONCE
) -> AsyncGenerator[Desk]:
    """A desk over the folder or the PostgreSQL at `place`; its loops run unless told otherwise."""
    async with _store(place) as store:
        desk, background = Desk(store, most=most), Background()
        if working:
            desk.start(background)
        try:
            yield desk
        finally:
            await desk.worker.shut(grace=10)
            await background.stop()
            await store.close()


@asynccontextmanager
async def _store(place: str) -> AsyncGenerator[JobStore]:
    if place.startswith("postgresql://"):
        postgresql = await Postgres.open(place)
        try:
            await postgres.upgrade(postgresql)
            yield PostgresJobs(postgresql, SystemClock(), bounds=_UNBOUND)
        finally:
            await postgresql.close()
        return
    folder = Path(place)
    database = Database.open(folder / "app.db")
    try:
        await asyncio.to_thread(upgrade, database)
        yield await SqliteJobs.open(database, SystemClock(), folder / "jobs", bounds=_UNBOUND)
    finally:
        database.close()
