"""Ollama servers tell what they have loaded, and a call goes where its model is."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from aiserver.contract.errors import UpstreamFailed
from aiserver.kit.upstream import UpstreamError
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider
from aiserver.providers.warmth import MOST_AT_ONCE, Warmth
from fakes.ollama import LISTED, MODEL, FakeOllama
from fakes.providers import NOW, FakeStore, pool_of, pool_on, provider
from fakes.upstream import FakeUpstream, Script, status
from gateway import TestGateway

NOTHING = status(200, {"models": []})
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def loads(model: str) -> Script:
    return status(200, {"models": [{**LISTED, "name": model, "model": model}]})


@pytest.fixture
async def boxes() -> AsyncGenerator[tuple[FakeOllama, FakeOllama]]:
    async with FakeOllama() as first, FakeOllama() as second:
        yield first, second


async def test_loaded_model_is_where_the_call_goes(
    gateway: TestGateway, boxes: tuple[FakeOllama, FakeOllama]
) -> None:
    models = [{"model": "m", "apiModel": MODEL}]
    for name, box in zip(("cold", "warm"), boxes, strict=True):
        await gateway.provider(name, box.base_url, aiTypeId="Ollama", models=models)
    cold, warm = boxes
    cold.next(NOTHING)
    await gateway.app._warmth.round()
    assert [box.requests[-1].path for box in boxes] == ["/api/ps", "/api/ps"]
    for _ in range(3):
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT)).status == 200
    assert (len(cold.requests), len(warm.requests)) == (1, 4)
    warm.next(NOTHING)
    cold.next(loads(MODEL))
    await gateway.app._warmth.round()
    for _ in range(3):
        await gateway.call("POST", "/v1/chat/completions", CHAT)
    assert (len(cold.requests), len(warm.requests)) == (5, 5)


@pytest.mark.parametrize("answer", ["server-error", "garbage", "invalid-json", status(200, [])])
async def test_trouble_clears_the_hint_and_blames_nobody(
    gateway: TestGateway, boxes: tuple[FakeOllama, FakeOllama], answer: Script | str
) -> None:
    box = boxes[0]
    models = [{"model": "m", "apiModel": MODEL}]
    number = await gateway.provider("box", box.base_url, aiTypeId="Ollama", models=models)
    await gateway.app._warmth.round()
    candidate = gateway.app._pool._candidates[number]
    assert MODEL in candidate.warm
    box.next(answer)
    await gateway.app._warmth.round()
    assert candidate.warm == frozenset()
    assert gateway.app._pool.state(number).value == "ready"


async def test_other_upstreams_are_not_asked(
    gateway: TestGateway, serving: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.app._warmth.round()
    assert upstream.requests == []


def ollama(number: int, **more: object) -> Provider:
    return provider(number, "m", ai_type_id="Ollama", **more)


def warm(pool: ProviderPool) -> set[int]:
    return {number for number, each in pool._candidates.items() if each.warm}


async def test_nothing_is_known_of_who_is_away() -> None:
    async def loaded(provider: Provider) -> list[str]:
        return ["m"]

    pool = pool_of(ollama(1), ollama(2, enabled=False), ollama(3, offline=NOW))
    pool.warm(2, ["m"])
    pool.warm(3, ["m"])
    await Warmth(pool, loaded, dialects=("ollama",)).round()
    assert warm(pool) == {1}


async def test_answer_of_a_changed_provider_counts_no_more() -> None:
    store = FakeStore(ollama(1))
    pool = pool_on(store)

    async def loaded(asked: Provider) -> list[str]:
        store.put(ollama(1, api_base_url="http://127.0.0.1:1"))
        await pool.refresh()
        return ["m"]

    await Warmth(pool, loaded, dialects=("ollama",)).round()
    assert warm(pool) == set()


async def test_so_many_are_asked_at_once() -> None:
    free, asked, most = asyncio.Event(), 0, 0

    async def loaded(provider: Provider) -> list[str]:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        if asked == MOST_AT_ONCE:
            free.set()
        await free.wait()
        asked -= 1
        raise UpstreamFailed()

    numbers = range(1, 3 * MOST_AT_ONCE)
    pool = pool_of(*(ollama(number) for number in numbers))
    await Warmth(pool, loaded, dialects=("ollama",)).round()
    assert most == MOST_AT_ONCE


async def test_slow_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiserver.providers.warmth.ASK_SECONDS", 0.01)

    async def loaded(provider: Provider) -> list[str]:
        await asyncio.Event().wait()
        raise UpstreamError

    pool = pool_of(ollama(1))
    pool.warm(1, ["m"])
    await Warmth(pool, loaded, dialects=("ollama",)).round()
    assert warm(pool) == set()
