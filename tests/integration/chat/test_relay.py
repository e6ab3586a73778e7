"""What routing leaves to see: dropped members, kept prompts, listed pages, freed slots."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from aiserver.chat.adapters.dialects import ADAPTERS
from aiserver.chat.failures import Failure
from aiserver.chat.upstreams import Upstreams
from aiserver.history.store import MOST_KEPT
from aiserver.kit.upstream import UpstreamPool
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.endpoints import Endpoint
from aiserver.providers.health import FailureKind
from fakes.ollama import MODEL, FakeOllama
from fakes.upstream import FakeUpstream, status
from gateway import TestGateway, running

NO_USAGE = status(
    400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}
)
NO_SEED = status(400, {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}})
GENERATE = {"model": "m", "prompt": "hello there"}


def dropped(entry: Any) -> list[list[str]]:
    return [attempt["dropped"] for attempt in entry["attempts"]]


async def ask(gateway: TestGateway, id: str, **members: Any) -> int:
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "x"}], **members}
    headers = {"x-request-id": id}
    return (await gateway.call("POST", "/v1/chat/completions", body, headers=headers)).status


async def test_dropped_members_are_in_the_request_log(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(NO_SEED)
    assert await ask(serving, "first", seed=1) == 200
    assert dropped(await serving.recorded("first")) == [[], ["seed"]]


async def test_changed_provider_is_asked_for_everything_again(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    [provider] = serving.app._pool.providers()
    upstream.next(NO_SEED)
    await ask(serving, "learned", seed=1)
    await ask(serving, "known", seed=1)
    assert "seed" not in upstream.requests[-1].json()
    body = {"id": provider.id, "priority": 3}
    assert (await serving.call("PATCH", "/api/UpdateAiProvider", body)).status == 200
    await ask(serving, "afresh", seed=1)
    assert upstream.requests[-1].json()["seed"] == 1


async def test_stream_goes_on_without_the_usage_that_we_asked_for(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(NO_USAGE)
    for _ in range(2):
        reply = await serving.chat(stream=True)
        assert (reply.status, reply.events()[-1]) == (200, "[DONE]")
    asked = ["stream_options" in request.json() for request in upstream.requests]
    assert asked == [True, False, False]


@pytest.fixture
async def keeping(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, KEEP_PROMPTS="true") as opened:
        yield opened


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("native", [False, True])
async def test_what_ollamas_callers_say_is_kept_where_told(
    keeping: TestGateway, upstream: FakeUpstream, stream: bool, native: bool
) -> None:
    async with FakeOllama() as box:
        if native:
            models = [{"model": "m", "apiModel": MODEL}]
            await keeping.provider("box", box.base_url, aiTypeId="Ollama", models=models)
        else:
            await keeping.provider("fake", upstream.base_url, models=[{"model": "m"}])
        body = {**GENERATE, "stream": stream}
        headers = {"x-request-id": "kept"}
        reply = await keeping.call("POST", "/api/generate", body, headers=headers)
        assert reply.status == 200
    entry = await keeping.recorded("kept")
    assert json.loads(entry["requestBody"])["prompt"] == "hello there"
    assert entry["responseDto"] == reply.body.decode()


async def test_nothing_of_ollamas_callers_is_kept_untold(
    serving: TestGateway,
) -> None:
    body = {**GENERATE, "model": "fake-model", "stream": False}
    headers = {"x-request-id": "private"}
    await serving.call("POST", "/api/generate", body, headers=headers)
    entry = await serving.recorded("private")
    assert "requestBody" not in entry
    assert "responseDto" not in entry


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_kept_is_bounded(
    keeping: TestGateway, upstream: FakeUpstream, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    settlement = keeping.app.settlement
    end = settlement.end

    def ended(trace: Any) -> None:
        if trace.prompt is not None:
            kept.append((len(trace.prompt), len(trace.answer)))
        end(trace)

    monkeypatch.setattr(settlement, "end", ended)
    await keeping.provider("fake", upstream.base_url)
    assert (await keeping.chat(stream=stream, content="x" * 2 * MOST_KEPT)).status == 200
    assert kept == [(MOST_KEPT, MOST_KEPT)]


@pytest.mark.parametrize("over", [0, 1])
async def test_history_has_all_that_chat_keeps(
    keeping: TestGateway, upstream: FakeUpstream, over: int
) -> None:
    await keeping.provider("fake", upstream.base_url)
    body = {"model": "fake-model", "messages": [{"role": "user", "content": ""}]}
    short = len(json.dumps(body, separators=(",", ":")))
    body["messages"] = [{"role": "user", "content": "x" * (MOST_KEPT - short + over)}]
    headers = {"x-request-id": "long"}
    reply = await keeping.call("POST", "/v1/chat/completions", body, headers=headers)
    entry = await keeping.recorded("long")
    said = json.dumps(body, separators=(",", ":"))
    assert (len(said), entry["requestBody"]) == (MOST_KEPT + over, said[:MOST_KEPT])
    assert entry["responseDto"] == reply.body.decode()[:MOST_KEPT]


async def test_provider_that_stopped_answering_serves_nothing(serving: TestGateway) -> None:
    pool = serving.app._pool
    [provider] = pool.providers()

    async def active() -> list[str]:
        return (await serving.call("GET", "/api/ActiveAiModels")).json()["results"]

    assert await active() == ["fake-model"]
    for _ in range(3):
        lease = pool.choose("fake-model")
        assert lease is not None
        lease.failed(FailureKind.UNREACHABLE)
        lease.release()
    assert await active() == []
    assert (await serving.call("GET", "/api/GetActiveProviders")).json()["results"] == []
    assert provider.enabled


def page(number: int, following: str | None) -> Any:
    body = {"data": [{"id": f"model-{number}"}], "links": {"next": following}}
    return status(200, body)


async def listed(upstream: FakeUpstream) -> list[str]:
    pool = UpstreamPool()
    try:
        endpoint = Endpoint(f"{upstream.base_url}/api/v1", (), BY_ID["OpenRouter"])
        return await Upstreams(pool, ADAPTERS).list_models(endpoint, "router")
    finally:
        await pool.aclose()


async def test_pages_of_a_list_are_followed(upstream: FakeUpstream) -> None:
    upstream.next(
        page(1, "/api/v1/models?offset=1&limit=1"),
        page(2, "https://elsewhere.invalid/x?offset=2&limit=1"),
        page(3, None),
    )
    assert await listed(upstream) == ["model-1", "model-2", "model-3"]
    assert [request.path for request in upstream.requests] == [
        "/api/v1/models",
        "/api/v1/models?offset=1&limit=1",
        "/api/v1/models?offset=2&limit=1",
    ]


@pytest.mark.parametrize("link", ["", "/api/v1/models", "?", "?a b\r\nHost: x", 5])
async def test_link_to_no_page_ends_a_list(upstream: FakeUpstream, link: Any) -> None:
    upstream.next(page(1, link), page(2, None))
    if link == 5:
        with pytest.raises(Failure, match="no known form"):
            await listed(upstream)
    else:
        names = await listed(upstream)
        assert names[0] == "model-1"
    assert len(upstream.requests) <= 2
    assert all("\r" not in request.path for request in upstream.requests)


async def test_list_without_an_end_is_bounded(upstream: FakeUpstream) -> None:
    upstream.next(*(page(number, f"/models?offset={number}") for number in range(1, 40)))
    assert len(await listed(upstream)) == 20
    upstream.queue.clear()
    upstream.next(*[page(1, "/models?offset=1")] * 5)
    assert len(await listed(upstream)) == 2
