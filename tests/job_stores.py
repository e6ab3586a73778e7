"""Stores of jobs on each engine, each with its outbox and a clock that only the test moves."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from aiserver.jobs.job import FailureKind, Fence, Job, JobError, NewJob
from aiserver.jobs.store import Accepted, Bounds, JobStore, NewDelivery, Outbox, Want
from aiserver.jobs.store.postgres import PostgresJobs
from aiserver.jobs.store.postgres_outbox import PostgresOutbox
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.store.sqlite_outbox import SqliteOutbox
from aiserver.kit.db import Database
from aiserver.kit.ids import random_hex
from aiserver.kit.ledger import LedgerRow
from aiserver.kit.postgres import Postgres
from fakes.calls import StillClock
from postgres import server

ENGINES = ("sqlite", "postgres")
OWNER = "host:1:100:aa"
LEASE = 15_000
BROKEN = JobError(code="UpstreamFailed", message="It broke.", status=502, kind=FailureKind.UPSTREAM)

Rows = Callable[[str], Coroutine[Any, Any, list[tuple[Any, ...]]]]


class Stores:
    """One engine's store and what tests do with it."""

    def __init__(self, jobs: JobStore, outbox: Outbox, clock: StillClock, rows: Rows) -> None:
        self.jobs = jobs
        self.outbox = outbox
        self.clock = clock
        self.rows = rows

    @property
    def now(self) -> int:
        return int(self.clock.now().timestamp() * 1000)

    def tick(self, milliseconds: int) -> None:
        self.clock.moment += timedelta(milliseconds=milliseconds)

    async def put(self, **members: Any) -> Accepted:
        return await self.jobs.enqueue(new_job(**members))

    async def claim(
        self, count: int = 1, *, model: str = "model-a", provider: str = "", owner: str = OWNER
    ) -> list[Job]:
        wants = [Want("chat", model, provider, count)]
        return await self.jobs.claim(owner, wants, until=self.now + LEASE)

    async def started(self, **members: Any) -> Job:
        """A job that was put and claimed."""
        await self.put(**members)
        [job] = await self.claim()
        return job

    async def job(self, id: int) -> Job:
        found = await self.jobs.find(id=id)
        assert found is not None
        return found

    async def ledger(self) -> list[int]:
        return [id for (id,) in await self.rows("SELECT id FROM ledger ORDER BY id")]


class OpenStores(Protocol):
    """Opens a store on the test's own database; again for what another process sees."""

    async def __call__(self, *, bounds: Bounds = ...) -> Stores: ...


def new_job(**members: Any) -> NewJob:
    given: dict[str, Any] = {
        "operation": "OpenAiChatCompletion",
        "kind": "chat",
        "key_id": 1,
        "model": "model-a",
        "request": b'{"model":"model-a"}',
    }
    return NewJob(**given | members)


def settled(id: int, fence: Fence) -> LedgerRow:
    return LedgerRow(id, 1, 1, "fake", "model-a", 10, 20, 5_000, fence.attempt - 1)


def announce(job: Job) -> NewDelivery | None:
    """The callback of a job: its state is the body."""
    if job.ended is None or job.reply_to == "nobody":
        return None
    return NewDelivery(
        id=f"msg_{random_hex()}",
        key_id=job.key_id,
        url=job.reply_to or "",
        receiver="https://receiver.example:443",
        body=job.state.value.encode(),
        due=job.ended,
        job_id=job.id,
    )


def opener(
    engine: str, stack: AsyncExitStack, folder: Path, migrated: bytes, *, synchronous: str = "FULL"
) -> OpenStores:
    """For one new database of an engine; what is opened closes with the stack."""
    clock = StillClock()
    if engine == "postgres":
        return _on_postgres(server().fresh_database(), stack, clock)
    path = folder / "app.db"
    path.write_bytes(migrated)

    async def opened(*, bounds: Bounds = Bounds()) -> Stores:  # noqa: B008 - frozen
        database = Database.open(path, synchronous=synchronous)
        stack.callback(database.close)
        jobs = await SqliteJobs.open(database, clock, folder, bounds=bounds, announce=announce)
        stack.push_async_callback(jobs.close)

        async def rows(sql: str) -> list[tuple[Any, ...]]:
            return database.read(sql)

        return Stores(jobs, SqliteOutbox(database, clock), clock, rows)

    return opened


def _on_postgres(url: str, stack: AsyncExitStack, clock: StillClock) -> OpenStores:
    async def opened(*, bounds: Bounds = Bounds()) -> Stores:  # noqa: B008 - frozen
        database = await Postgres.open(url)
        stack.push_async_callback(database.close)
        jobs = PostgresJobs(database, clock, bounds=bounds, announce=announce)
        stack.push_async_callback(jobs.close)

        async def rows(sql: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await database.rows(sql)]

        return Stores(jobs, PostgresOutbox(database, clock), clock, rows)

    return opened
