"""Ollama's generate through the gateway: passed on to Ollama, translated for everybody else."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import ollama
import pytest

from fakes.ollama import CREATED, LISTED, MODEL, THOUGHT, FakeOllama
from fakes.upstream import FakeUpstream, closed_port
from gateway import Reply, TestGateway

SHARED = "/api/generate"
TYPED = "/api/OllamaGeneration"


@pytest.fixture
async def box() -> AsyncGenerator[FakeOllama]:
    async with FakeOllama() as fake:
        yield fake


@pytest.fixture
async def native(gateway: TestGateway, box: FakeOllama) -> TestGateway:
    """A gateway whose provider speaks Ollama; it calls the model `m`."""
    models = [{"model": "m", "apiModel": MODEL}]
    await gateway.provider("box", box.base_url, aiTypeId="Ollama", models=models)
    return gateway


@pytest.fixture
async def client(native: TestGateway) -> AsyncGenerator[ollama.AsyncClient]:
    headers = {"Authorization": f"Bearer {await native.key()}"}
    async with ollama.AsyncClient(host=native.url, headers=headers) as opened:
        yield opened


async def generate(gateway: TestGateway, path: str = SHARED, **members: Any) -> Reply:
    return await gateway.call("POST", path, {"model": "m", "prompt": "hello there", **members})


def lines(reply: Reply) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reply.body.splitlines()]


async def test_ollama_answers_in_its_own_words(client: ollama.AsyncClient, box: FakeOllama) -> None:
    answer = await client.generate(
        "m", "hello there", images=[b"1234"], think=True, options={"num_ctx": 64}, keep_alive="5m"
    )
    assert answer.response == "echo: hello there (images of 4 bytes)"
    assert (answer.thinking, answer.context, answer.created_at) == (THOUGHT, [1, 2, 3], CREATED)
    assert (answer.total_duration, answer.prompt_eval_count) == (5_043_500_667, 2)
    [request] = box.requests
    assert request.path == "/api/generate"
    sent = request.json()
    assert (sent["model"], sent["stream"]) == (MODEL, False)
    assert (sent["options"], sent["keep_alive"]) == ({"num_ctx": 64}, "5m")


async def test_ollama_streams_its_own_lines(client: ollama.AsyncClient) -> None:
    parts = [part async for part in await client.generate("m", "hello there", stream=True)]
    assert "".join(part.response or "" for part in parts) == "echo: hello there"
    assert (parts[-1].done, parts[-1].total_duration) == (True, 5_043_500_667)


async def test_typed_clients_read_numbers(native: TestGateway) -> None:
    for reply in (await generate(native), await generate(native, TYPED, stream=False)):
        answer = reply.json()
        assert answer["response"] == "echo: hello there"
        assert answer["created_at"] == 1787338102
        assert "total_duration" not in answer
        assert answer["load_duration"] == 25_026_458
        assert answer["prompt_tokens"] == answer["prompt_eval_count"] == 2


async def test_our_own_members_stay_here(native: TestGateway, box: FakeOllama) -> None:
    reply = await generate(native, refId="r", provider="box", tag="t", replyTo="http://h/")
    assert reply.status == 200
    assert set(box.requests[0].json()) == {"model", "prompt", "stream"}


async def test_others_are_asked_for_a_chat(serving: TestGateway, upstream: FakeUpstream) -> None:
    reply = await generate(serving, model="fake-model", system="be brief", stream=False)
    answer = reply.json()
    assert (answer["response"], answer["done"]) == ("echo: hello there", True)
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (4, 3)
    assert answer["total_duration"] > 0
    [request] = upstream.requests
    assert request.path == "/v1/chat/completions"
    assert request.json() == {
        "model": "fake-model",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello there"},
        ],
    }


async def test_others_stream_lines(serving: TestGateway) -> None:
    reply = await generate(serving, model="fake-model", stream=True)
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    *words, last = lines(reply)
    assert "".join(line["response"] for line in words) == "echo: hello there"
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert (last["prompt_eval_count"], last["eval_count"]) == (2, 3)


async def test_broken_stream_ends_with_an_error(
    native: TestGateway, serving: TestGateway, box: FakeOllama, upstream: FakeUpstream
) -> None:
    box.next("error-in-stream")
    upstream.next("error-in-stream")
    for model in ("m", "fake-model"):
        *words, last = lines(await generate(native, model=model, stream=True))
        assert words
        assert not any(line.get("done") for line in (*words, last))
        assert isinstance(last["error"], str)


async def test_failed_provider_is_passed_over(
    native: TestGateway, upstream: FakeUpstream, box: FakeOllama
) -> None:
    models = [{"model": "m", "apiModel": "fake-model"}]
    await native.provider("second", upstream.base_url, models=models, priority=-1)
    for stream in (False, True):
        box.next("busy-in-stream" if stream else "busy")
        answer = lines(await generate(native, stream=stream))
        assert "".join(line["response"] for line in answer) == "echo: hello there"
        assert answer[-1]["done"]


@pytest.mark.parametrize("image", ["http://127.0.0.1:9/a.png", "https://h/a.png"])
async def test_images_are_not_fetched(native: TestGateway, box: FakeOllama, image: str) -> None:
    reply = await generate(native, images=[image])
    assert reply.status == 400
    assert "send the image itself" in reply.problem()["message"]
    assert box.requests == []


async def test_empty_prompt_is_refused(native: TestGateway) -> None:
    for path in (SHARED, TYPED):
        reply = await generate(native, path, prompt="")
        assert reply.status == 400
        [problem] = reply.problem()["errors"]
        assert (problem["errorCode"], problem["fieldName"]) == ("NotEmpty", "Prompt")


async def test_unknown_model_is_not_found(native: TestGateway) -> None:
    reply = await generate(native, model="nope")
    assert reply.status == 404
    assert "nope" in reply.problem()["message"]


async def test_errors_are_told_in_both_forms(
    native: TestGateway, client: ollama.AsyncClient
) -> None:
    answer = (await generate(native, model="nope")).json()
    assert answer["error"] == answer["responseStatus"]["message"]
    with pytest.raises(ollama.ResponseError, match="nope") as raised:
        await client.generate("nope", "hello")
    assert raised.value.status_code == 404


async def test_what_others_cannot_carry_needs_ollama(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    reply = await generate(serving, model="fake-model", raw=True)
    assert reply.status == 400
    assert "ollama" in reply.problem()["message"].lower()
    assert upstream.requests == []


async def test_models_at_an_address_are_listed(gateway: TestGateway, box: FakeOllama) -> None:
    address = box.base_url.removeprefix("http://")
    for base in (box.base_url, f"{address}/", f"{box.base_url}/api", f"{box.base_url}/v1"):
        reply = await gateway.call("GET", f"/api/GetOllamaModels?apiBaseUrl={base}")
        [model] = reply.json()["results"]
        assert (model["name"], model["size"]) == (MODEL, LISTED["size"])
        assert model["modified_at"].startswith("2025-05-05T00:37:44.706015")
        assert model["details"]["families"] == ["llama"]


async def test_only_administrators_name_an_address(gateway: TestGateway, box: FakeOllama) -> None:
    path = f"/api/GetOllamaModels?apiBaseUrl={box.base_url}"
    for key in (None, await gateway.key()):
        assert (await gateway.call("GET", path, key=key)).status == 401
    assert box.requests == []


@pytest.mark.parametrize("base", ["", "ftp://h", "http://u:p@h", "http://h:0"])
async def test_address_that_is_none_is_refused(gateway: TestGateway, base: str) -> None:
    reply = await gateway.call("GET", f"/api/GetOllamaModels?apiBaseUrl={base}")
    assert reply.status == 400
    assert reply.problem()["errors"][0]["fieldName"] == "ApiBaseUrl"


async def test_address_without_ollama_is_told(
    gateway: TestGateway, upstream: FakeUpstream, box: FakeOllama
) -> None:
    for base in (f"http://127.0.0.1:{closed_port()}", upstream.base_url):
        reply = await gateway.call("GET", f"/api/GetOllamaModels?apiBaseUrl={base}")
        assert reply.status == 502
        assert "check the address" in reply.problem()["message"]
    box.next("garbage")
    reply = await gateway.call("GET", f"/api/GetOllamaModels?apiBaseUrl={box.base_url}")
    assert reply.status == 502
    assert "no form of Ollama's" in reply.problem()["message"]
