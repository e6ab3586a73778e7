"""Slots for queued chats: one caller in the providers' line, who waits for what is not known yet."""

import asyncio

from aiserver.chat.slots import ChatSlot, ChatSlots
from aiserver.providers.pool import ProviderPool
from fakes.providers import pool_of, provider

A, B = ("a", ""), ("b", "")


class Job:
    """What a worker does with slots, for the groups of jobs that it has."""

    def __init__(self, pool: ProviderPool, *names: tuple[str, str]) -> None:
        self.slots, self.names = ChatSlots(pool), list(names)
        self.told = asyncio.Event()
        self.held: list[ChatSlot] = []

    def look(self) -> int:
        """How many slots it got, one a group at most; it watches for the rest."""
        self.told.clear()
        got = [self.slots.reserve(*name) for name in self.names]
        self.held += [slot for slot in got if slot is not None]
        blocked = [n for n, slot in zip(self.names, got, strict=True) if slot is None]
        self.slots.watch(blocked, self.told.set)
        return len(got) - len(blocked)

    async def turn(self) -> None:
        await asyncio.wait_for(self.told.wait(), 10)


async def test_job_has_its_turn_among_callers_that_never_end() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    lease = pool.choose("a")
    assert lease is not None
    job = Job(pool, A)
    before = [asyncio.create_task(pool.acquire("a", wait=10)) for _ in range(2)]
    await asyncio.sleep(0)
    assert job.look() == 0
    after = [asyncio.create_task(pool.acquire("a", wait=10)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in before:
        lease.release()
        lease = await task
    assert not job.told.is_set()
    lease.release()
    await job.turn()
    assert job.look() == 1
    job.held.pop().release()
    for task in after:
        (await task).release()
    assert pool.running(1) == 0


async def test_jobs_of_one_provider_stand_in_line_as_one() -> None:
    pool = pool_of(provider(1, "a", "b", concurrency=1))
    lease = pool.choose("a")
    assert lease is not None
    job = Job(pool, A, B)
    assert job.look() == 0
    assert pool.waiting == 1
    lease.release()
    await job.turn()
    assert job.look() == 1
    assert pool.waiting == 1


async def test_more_urgent_job_has_the_turn_that_another_stood_for() -> None:
    pool = pool_of(provider(1, "a", "b", concurrency=1))
    lease = pool.choose("a")
    assert lease is not None
    job = Job(pool, A)
    assert job.look() == 0
    direct = asyncio.create_task(pool.acquire("a", wait=10))
    await asyncio.sleep(0)
    job.names = [B, A]
    assert job.look() == 0
    lease.release()
    await job.turn()
    assert job.slots.reserve(*A) is None
    slot = job.slots.reserve(*B)
    assert slot is not None
    slot.release()
    (await direct).release()


async def test_job_of_another_provider_stands_beside() -> None:
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "b", concurrency=1))
    held = [pool.choose(model) for model in ("a", "b")]
    job = Job(pool, A, B)
    assert (job.look(), pool.waiting) == (0, 2)
    for lease, name in zip(held, ("b", "a"), strict=True):
        assert lease is not None
        lease.release()
        await job.turn()
        assert job.look() == 1
        job.names = [(name, "")]


async def test_slot_that_nobody_wants_any_more_is_given_back() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    for told in (True, False):
        lease = pool.choose("a")
        assert lease is not None
        job = Job(pool, A)
        job.look()
        lease.release()
        if told:
            await job.turn()
        assert pool.running(1) == 1
        job.names.clear()
        job.look()
        assert (pool.running(1), pool.waiting) == (0, 0)


async def test_model_that_is_not_known_yet_is_waited_for() -> None:
    pool = pool_of(provider(1))
    job = Job(pool, A)
    assert job.look() == 0
    pool.learn(1, ["a"])
    await job.turn()
    assert job.look() == 1


async def test_wish_for_a_provider_that_is_gone_is_waited_for() -> None:
    pool = pool_of(provider(1, "a"))
    job = Job(pool, ("a", "other"))
    assert job.look() == 0
    assert not job.told.is_set()


async def test_turn_that_comes_to_nothing_is_looked_at_again() -> None:
    pool = pool_of(provider(1, concurrency=1))
    pool.learn(1, ["a"])
    lease = pool.choose("a")
    job = Job(pool, A)
    assert job.look() == 0
    pool.learn(1, [])
    await job.turn()
    assert job.look() == 0
    pool.learn(1, ["a"])
    await job.turn()
    assert lease is not None
    lease.release()
    assert job.look() == 1
