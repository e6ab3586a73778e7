"""The choice of a provider: who serves, who is free, who waits and for how long."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from aiserver.contract.errors import ModelNotFound, NotFound, TooBusy
from aiserver.providers.operations import AiProviderModel
from aiserver.providers.pool import MOST_WAITING, ProviderPool
from aiserver.providers.store import Provider

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class FakeStore:
    def __init__(self, *providers: Provider) -> None:
        self.providers = list(providers)
        self.number = 0

    def all(self) -> list[Provider]:
        return list(self.providers)

    def revision(self) -> int:
        return self.number


def provider(number: int, *models: str, **more: Any) -> Provider:
    listed = [
        AiProviderModel(model=m.split("=")[0], api_model=m.partition("=")[2] or None)
        for m in models
    ]
    return Provider(
        id=number,
        name=more.pop("name", f"p{number}"),
        source="admin",
        ai_type_id="Custom",
        created=NOW,
        models=listed,
        **more,
    )


def pool_of(*providers: Provider) -> ProviderPool:
    pool = ProviderPool(FakeStore(*providers))  # pyright: ignore[reportArgumentType]
    pool.refresh()
    return pool


def test_provider_that_serves_the_model_is_chosen() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "b=upstream-b"))
    lease = pool.choose("b")
    assert lease is not None
    assert (lease.provider.id, lease.api_model) == (2, "upstream-b")


def test_higher_priority_comes_first() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a", priority=5))
    chosen = [lease.provider.id for _ in range(3) if (lease := pool.choose("a"))]
    assert chosen == [2, 2, 2]


def test_load_is_shared_by_capacity() -> None:
    pool = pool_of(provider(1, "a", concurrency=2), provider(2, "a", concurrency=4))
    chosen = [lease.provider.id for _ in range(6) if (lease := pool.choose("a"))]
    assert sorted(chosen) == [1, 1, 2, 2, 2, 2]
    assert chosen[:3] == [1, 2, 2]
    assert pool.choose("a") is None


def test_named_provider_is_used_in_any_case() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a", name="Mine"))
    lease = pool.choose("a", provider="mine")
    assert lease is not None
    assert lease.provider.id == 2


def test_unknown_provider_lists_the_known() -> None:
    with pytest.raises(NotFound, match=r"no provider 'x'. Known providers: p1, p2"):
        pool_of(provider(1, "a"), provider(2, "b")).choose("a", provider="x")


def test_unknown_model_is_named() -> None:
    with pytest.raises(ModelNotFound, match="Model x not found"):
        pool_of(provider(1, "a")).choose("x")
    with pytest.raises(ModelNotFound, match="at provider p1"):
        pool_of(provider(1, "a"), provider(2, "b")).choose("b", provider="p1")


def test_disabled_provider_takes_nothing() -> None:
    pool = pool_of(provider(1, "a", enabled=False))
    assert pool.models() == {}
    with pytest.raises(ModelNotFound):
        pool.choose("a")


def test_listed_models_count_only_without_own_ones() -> None:
    pool = pool_of(provider(1), provider(2, "own"))
    pool.learn(1, ["x", "y"])
    pool.learn(2, ["z"])
    assert pool.models() == {"x": "p1", "y": "p1", "own": "p2"}


def test_released_slot_is_free_again() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    lease = pool.choose("a")
    assert lease is not None
    assert pool.choose("a") is None
    lease.release()
    lease.release()
    assert pool.running(1) == 0
    assert pool.choose("a") is not None


async def test_caller_waits_for_a_slot() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    first = await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    assert (await waiting).provider.id == 1


async def test_wait_ends_with_what_was_full() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    await pool.acquire("a", provider=None, wait=1)
    with pytest.raises(TooBusy, match="Every provider of a is busy") as caught:
        await pool.acquire("a", provider=None, wait=0.01)
    assert caught.value.retry_after


async def test_waiting_callers_are_bounded() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    await pool.acquire("a", provider=None, wait=1)
    waiting = [
        asyncio.create_task(pool.acquire("a", provider=None, wait=30)) for _ in range(MOST_WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooBusy, match=f"{MOST_WAITING} calls are waiting"):
        await pool.acquire("a", provider=None, wait=30)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_caller_that_gave_up_takes_no_slot() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    first = await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.release()
    assert pool.running(1) == 0


async def test_new_provider_is_seen_by_those_who_wait() -> None:
    store = FakeStore(provider(1, "a", concurrency=1))
    pool = ProviderPool(store)  # pyright: ignore[reportArgumentType]
    pool.refresh()
    await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    store.providers.append(provider(2, "a"))
    store.number += 1
    pool.refresh()
    assert (await waiting).provider.id == 2


def test_running_calls_outlive_a_change() -> None:
    store = FakeStore(provider(1, "a", concurrency=2))
    pool = ProviderPool(store)  # pyright: ignore[reportArgumentType]
    pool.refresh()
    lease = pool.choose("a")
    assert lease is not None
    store.providers = [provider(1, "a", concurrency=1)]
    store.number += 1
    pool.refresh()
    assert pool.choose("a") is None
    lease.release()
    assert pool.choose("a") is not None
