"""Providers that name no models are asked for them; what goes wrong with one stays with it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiserver.contract.errors import UpstreamFailed
from aiserver.providers.discovery import MOST_AT_ONCE, Discovery
from aiserver.providers.store import Provider
from fakes.providers import FakeStore, pool_of, pool_on, provider, refreshed


def listing(**by_name: list[str] | Exception) -> Callable[[Provider], Awaitable[list[str]]]:
    async def list_models(asked: Provider) -> list[str]:
        listed = by_name.get(asked.name, [])
        if isinstance(listed, Exception):
            raise listed
        return listed

    return list_models


async def test_listed_models_are_served() -> None:
    pool = pool_of(provider(1), provider(2, "own"), provider(3, enabled=False))
    assert await Discovery(pool, listing(p1=["x"], p2=["no"], p3=["no"])).renew()
    assert sorted(pool.models()) == ["own", "x"]


@pytest.mark.parametrize("trouble", [UpstreamFailed("It fell over."), RuntimeError("sk-secret")])
async def test_trouble_with_one_keeps_nobody_from_the_rest(trouble: Exception) -> None:
    pool = pool_of(provider(1), provider(2))
    discovery = Discovery(pool, listing(p1=trouble, p2=["x"]))
    assert not await discovery.renew()
    assert sorted(pool.models()) == ["x"]
    [problem] = discovery.problems.values()
    assert "sk-secret" not in problem


async def test_answer_ends_a_problem_and_going_does_too() -> None:
    answers: dict[str, list[str] | Exception] = {"p1": UpstreamFailed(), "p2": UpstreamFailed()}

    async def list_models(asked: Provider) -> list[str]:
        return await listing(**answers)(asked)

    store = FakeStore(provider(1), provider(2))
    pool = pool_on(store)
    discovery = Discovery(pool, list_models)
    await discovery.renew()
    assert sorted(discovery.problems) == [1, 2]
    answers["p1"] = ["x"]
    store.put(provider(1))
    refreshed(pool)
    assert await discovery.renew()
    assert discovery.problems == {}


async def test_so_many_are_asked_at_once() -> None:
    free, asked, most = asyncio.Event(), 0, 0

    async def list_models(provider: Provider) -> list[str]:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        if asked == MOST_AT_ONCE:
            free.set()
        await free.wait()
        asked -= 1
        return []

    pool = pool_of(*(provider(number) for number in range(1, 3 * MOST_AT_ONCE)))
    assert await Discovery(pool, list_models).renew()
    assert most == MOST_AT_ONCE
