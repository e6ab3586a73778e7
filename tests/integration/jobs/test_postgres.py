"""Jobs on PostgreSQL: several processes, a server that restarts, and answers that got lost."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from aiserver.contract.errors import TooBusy
from aiserver.jobs.job import Completed, State
from aiserver.jobs.store import (
    Bounds,
    Want,
    Word,
    postgres_claim,
    postgres_enqueue,
    postgres_finish,
)
from aiserver.jobs.store.postgres import PostgresJobs
from aiserver.jobs.store.postgres_enqueue import Entry
from aiserver.jobs.store.postgres_finish import Ending
from aiserver.jobs.store.postgres_rows import payload
from aiserver.jobs.store.postgres_turn import Turns
from aiserver.kit.db import StorageError
from aiserver.kit.postgres import ConnectionCut, Postgres
from fakes.calls import StillClock
from job_stores import LEASE, OWNER, Stores, announce, new_job
from postgres import server
from postgres_stores import opener

WANT = Want("chat", "model-a", "", 100)
DONE = Completed(result=b"{}")


class Cluster:
    """Processes on one database."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.url = server().fresh_database()
        self._stack = stack
        self._opened = opener(stack, StillClock(), self.url, announce, Stores)

    async def process(self, bounds: Bounds | None = None) -> Stores:
        return await self._opened(bounds=bounds or Bounds())

    async def database(self) -> Postgres:
        database = await Postgres.open(self.url)
        self._stack.push_async_callback(database.close)
        return database


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


class Ears:
    """What one process hears of the others."""

    def __init__(self, stores: Stores) -> None:
        assert isinstance(stores.jobs, PostgresJobs)
        self.heard: asyncio.Queue[tuple[Word, list[str]]] = asyncio.Queue()
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        listener = stores.jobs.listener(
            lambda word, named: self.heard.put_nowait((word, named)),
            again=lambda: self.begun.put_nowait(None),
        )
        self._task = asyncio.create_task(listener.run())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_restart_of_the_database_loses_nothing(cluster: Cluster) -> None:
    one, other = await cluster.process(), await cluster.process()
    ears = Ears(other)
    await ears.begun.get()
    before = await one.put()
    [running] = await one.claim()
    waiting = await one.put()
    await asyncio.to_thread(server().restart, "immediate")
    await ears.begun.get()
    assert (await one.jobs.heartbeat(OWNER, [running.fence], until=one.now + LEASE)).lost == []
    assert await one.jobs.finish(running.fence, DONE) is not None
    [claimed] = await other.claim()
    assert (running.id, claimed.id) == (before.id, waiting.id)
    while (await ears.heard.get())[0] is not Word.ENDED:
        pass
    await ears.close()


async def test_calls_during_a_restart_wait_or_fail_but_lie_never(cluster: Cluster) -> None:
    one = await cluster.process()
    restarting = asyncio.create_task(asyncio.to_thread(server().restart, "immediate"))
    acknowledged: list[int] = []
    while not restarting.done():
        answers = await asyncio.gather(*(one.put() for _ in range(20)), return_exceptions=True)
        assert all(not isinstance(a, Exception) or isinstance(a, StorageError) for a in answers)
        acknowledged += [answer.id for answer in answers if not isinstance(answer, BaseException)]
    await restarting
    acknowledged.append((await one.put()).id)
    assert len(set(acknowledged)) == len(acknowledged)
    ids = {id for (id,) in await one.rows("SELECT id FROM jobs")}
    assert set(acknowledged) <= ids
    assert await _waiting(one) == len(ids)


async def test_processes_never_claim_the_same_job(cluster: Cluster) -> None:
    processes = [await cluster.process() for _ in range(4)]
    await asyncio.gather(*(processes[0].put(key_id=n % 3) for n in range(200)))
    claims = await asyncio.gather(
        *(process.claim(10, owner=f"o{n}") for n, process in enumerate(processes * 6))
    )
    ids = [job.id for jobs in claims for job in jobs]
    assert len(ids) == len(set(ids)) == 200
    assert await _waiting(processes[0]) == 0


async def test_bounds_hold_for_all_processes_together(cluster: Cluster) -> None:
    bounds = Bounds(queued=10)
    processes = [await cluster.process(bounds) for _ in range(3)]
    answers = await asyncio.gather(
        *(process.put() for process in processes * 6), return_exceptions=True
    )
    assert sum(isinstance(answer, TooBusy) for answer in answers) == 8
    await processes[0].claim(4)
    await asyncio.gather(*(process.put() for process in processes))
    await processes[1].put()
    with pytest.raises(TooBusy):
        await processes[2].put()


async def test_same_idempotency_key_in_two_processes_is_one_job(cluster: Cluster) -> None:
    one, other = await cluster.process(), await cluster.process()
    same = {"idempotency_key": "k", "body_hash": b"1"}
    answers = await asyncio.gather(*(process.put(**same) for process in (one, other) * 10))
    assert len({answer.id for answer in answers}) == 1


async def test_other_processes_hear_what_changed(cluster: Cluster) -> None:
    one, other = await cluster.process(), await cluster.process()
    ears, own = Ears(other), Ears(one)
    await asyncio.gather(ears.begun.get(), own.begun.get())
    job = await one.started(reply_to="http://receiver.example")
    assert await ears.heard.get() == (Word.READY, [])
    await one.jobs.cancel([job.id])
    assert await ears.heard.get() == (Word.STOP, [OWNER])
    await one.jobs.finish(job.fence, DONE)
    assert await ears.heard.get() == (Word.ENDED, [str(job.id)])
    assert await ears.heard.get() == (Word.DELIVER, [])
    await other.put()
    assert await own.heard.get() == (Word.READY, [])
    assert ears.heard.empty()
    await asyncio.gather(ears.close(), own.close())


def test_many_names_are_said_as_none() -> None:
    assert payload("x", Word.ENDED, range(10**6, 10**6 + 900)) == "x ended 1000000" + "".join(
        f",{n}" for n in range(10**6 + 1, 10**6 + 900)
    )
    assert payload("x", Word.ENDED, range(10**6, 10**6 + 1000)) == "x ended"


async def test_planned_jobs_do_not_ring(cluster: Cluster) -> None:
    one, other = await cluster.process(), await cluster.process()
    ears = Ears(other)
    await ears.begun.get()
    await one.put(run_after=one.now + 1000)
    await one.put(model="now")
    assert await ears.heard.get() == (Word.READY, [])
    assert ears.heard.empty()
    await ears.close()


async def test_enqueue_repeated_after_a_lost_answer_is_stored_once(cluster: Cluster) -> None:
    stores, database = await cluster.process(), await cluster.database()
    entries = [
        Entry(new_job(ref_id=ref_id), ref_id or "made", None, None, stores.now)
        for ref_id in ("given", "given", None)
    ]

    async def write(*, again: bool) -> list[object]:
        bounds = Bounds()
        return list(
            await postgres_enqueue.enqueue(
                database, entries, bounds=bounds, sender="x", again=again
            )
        )

    first, second = await write(again=False), await write(again=True)
    assert [str(answer) for answer in second] == [str(answer) for answer in first]
    assert await _waiting(stores) == 2
    assert [str(type(answer).__name__) for answer in first] == ["Accepted", "Conflict", "Accepted"]


async def test_finish_repeated_after_a_lost_answer_knows_its_job(cluster: Cluster) -> None:
    stores, database = await cluster.process(), await cluster.database()
    job = await stores.started(reply_to="http://receiver.example")

    async def write(*, again: bool) -> object:
        turns = Turns(stores.now, announce, "x")
        endings = [Ending(job.fence, DONE)]
        return await postgres_finish.finish(database, endings, turns, again=again)

    first = await write(again=False)
    assert await write(again=True) == first
    assert await write(again=False) == [None]
    assert len(await stores.rows("SELECT 1 FROM outbox")) == 1


class Cutting:
    """A database that does what it is told, and loses the first answer."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self.read = database.read

    async def rows(self, sql: str, *parameters: object) -> object:
        await self._database.rows(sql, *parameters)
        raise ConnectionCut("PostgreSQL cannot be reached: cut.")


async def test_claim_whose_answer_was_lost_is_read_again(cluster: Cluster) -> None:
    stores, database = await cluster.process(), await cluster.database()
    await asyncio.gather(*(stores.put(key_id=n) for n in range(3)))
    jobs = await postgres_claim.claim(
        Cutting(database),  # pyright: ignore[reportArgumentType]
        OWNER,
        [WANT],
        now=stores.now,
        until=stores.now + LEASE,
        most=100,
    )
    assert [(job.id, job.attempt) for job in jobs] == [(1, 1), (2, 1), (3, 1)]


async def test_text_that_no_database_takes_is_mended(cluster: Cluster) -> None:
    stores = await cluster.process()
    bad = "a\x00b\udc00"
    await asyncio.gather(stores.put(tag=bad, ref_id=bad), stores.put(tag="fine"))
    [job] = await stores.claim()
    assert (job.tag, job.ref_id) == ("a\ufffdb?", "a\ufffdb?")
    found = await stores.jobs.find(ref_id=bad)
    assert found is not None
    assert found.id == job.id


async def test_value_that_no_column_holds_hurts_its_caller_alone(cluster: Cluster) -> None:
    stores = await cluster.process()
    answers = await asyncio.gather(
        stores.put(), stores.put(priority=2**40), stores.put(), return_exceptions=True
    )
    assert [isinstance(answer, ValueError) for answer in answers] == [False, True, False]
    assert await _waiting(stores) == 2


async def test_used_up_numbers_are_told(cluster: Cluster) -> None:
    stores = await cluster.process()
    await stores.rows("SELECT setval('job_ids', 2147483646)")
    assert (await stores.put()).id == 2**31 - 1
    with pytest.raises(StorageError, match="maximum value of sequence"):
        await stores.put()


async def test_processes_that_archive_together_move_each_job_once(cluster: Cluster) -> None:
    processes = [await cluster.process() for _ in range(3)]
    one = processes[0]
    await asyncio.gather(*(one.put() for _ in range(30)))
    for job in await one.claim(30):
        await one.jobs.finish(job.fence, DONE)
    moved = await asyncio.gather(*(process.jobs.archive(one.now + 1) for process in processes))
    assert sum(moved) == 30
    assert len(await one.rows("SELECT 1 FROM job_archive")) == 30
    assert {(await one.job(id)).state for id in range(1, 31)} == {State.COMPLETED}


async def _waiting(stores: Stores) -> int:
    """As the counters have it, which is what the table has."""
    [(counted,)] = await stores.rows(
        "SELECT coalesce(sum(waiting), 0)::int FROM job_waiting WHERE key_id = -1"
    )
    [(real,)] = await stores.rows(
        "SELECT count(*)::int FROM jobs WHERE state IN ('Queued', 'Scheduled')"
    )
    by_key = await stores.rows(
        "SELECT key_id, sum(waiting) FROM job_waiting WHERE key_id >= 0 GROUP BY 1"
    )
    assert counted == real == sum(waiting for _, waiting in by_key)
    return real
