"""The fake Ollama speaks the protocol as the official client understands it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest

from fakes.ollama import MODEL, THOUGHT, FakeOllama

ASKING: list[dict[str, Any]] = [{"role": "user", "content": "how are you today"}]
WEATHER: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather in Paris?"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeOllama]:
    async with FakeOllama() as running:
        yield running


@pytest.fixture
async def client(fake: FakeOllama) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=fake.base_url) as opened:
        yield opened


async def test_plain_chat_echoes_question(fake: FakeOllama, client: ollama.AsyncClient) -> None:
    answer = await client.chat(model="fake-model", messages=ASKING)
    assert answer.message.content == "echo: how are you today"
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (4, 5)
    [request] = fake.requests
    assert (request.method, request.path) == ("POST", "/api/chat")
    assert request.json()["stream"] is False


async def test_streamed_chat_echoes_question(client: ollama.AsyncClient) -> None:
    parts = [part async for part in await client.chat("fake-model", ASKING, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "echo: how are you today"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_stream_is_the_default(fake: FakeOllama) -> None:
    async with httpx.AsyncClient() as http:
        body = {"model": MODEL, "messages": ASKING}
        answer = await http.post(f"{fake.base_url}/api/chat", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.text.count("\n") > 2


async def test_generate_echoes_prompt(client: ollama.AsyncClient) -> None:
    answer = await client.generate(model=MODEL, prompt="hello there", options={"num_predict": 2})
    assert (answer.response, answer.done_reason) == ("echo: hello", "length")
    assert answer.context == [1, 2, 3]
    parts = [part async for part in await client.generate(MODEL, "hello there", stream=True)]
    assert "".join(part.response or "" for part in parts) == "echo: hello there"


async def test_thoughts_come_apart(client: ollama.AsyncClient) -> None:
    answer = await client.chat(MODEL, ASKING, think="low")
    assert answer.message.thinking == THOUGHT
    assert answer.message.content == "echo: how are you today"


async def test_tools_are_called_about_the_weather(client: ollama.AsyncClient) -> None:
    for answer in (
        await client.chat(MODEL, WEATHER, tools=[TOOL]),
        [part async for part in await client.chat(MODEL, WEATHER, tools=[TOOL], stream=True)][-2],
    ):
        assert answer.message.tool_calls is not None
        [call] = answer.message.tool_calls
        assert call.function.name == "get_weather"
        assert call.function.arguments == {"city": "Paris", "days": 2}


async def test_result_of_a_tool_is_repeated(client: ollama.AsyncClient) -> None:
    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny"}
    answer = await client.chat(MODEL, [*WEATHER, result])
    assert answer.message.content == "get_weather said: sunny"


async def test_images_are_measured(client: ollama.AsyncClient) -> None:
    answer = await client.generate(model=MODEL, prompt="look", images=[b"1234", b"123456"])
    assert answer.response == "echo: look (images of 4, 6 bytes)"


@pytest.mark.parametrize("path", ["chat", "generate"])
async def test_image_with_a_prefix_is_refused(fake: FakeOllama, path: str) -> None:
    image = ["data:image/png;base64,MTIz"]
    body: dict[str, Any] = {"model": MODEL, "prompt": "look", "images": image}
    body["messages"] = [{"role": "user", "content": "look", "images": image}]
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{fake.base_url}/api/{path}", json=body)
    assert answer.status_code == 400
    assert "illegal base64" in answer.json()["error"]


async def test_formats_are_kept_to(client: ollama.AsyncClient) -> None:
    answer = await client.chat(MODEL, ASKING, format="json")
    assert answer.message.content == '{"echo": "how are you today"}'
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}}
    answer = await client.chat(MODEL, ASKING, format=schema)
    assert answer.message.content == '{"mood": "good"}'


async def test_models_are_listed_shown_and_loaded(client: ollama.AsyncClient) -> None:
    assert [model.model for model in (await client.list()).models] == [MODEL]
    assert [model.model for model in (await client.ps()).models] == [MODEL]
    assert "tools" in ((await client.show(MODEL)).capabilities or [])


async def test_version_and_root_answer(fake: FakeOllama) -> None:
    async with httpx.AsyncClient(base_url=fake.base_url) as http:
        assert (await http.get("/")).text == "Ollama is running"
        assert (await http.get("/api/version")).json()["version"]
        assert (await http.get("/api/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("fault:busy", 503, "server busy"),
        ("fault:server-error", 500, "terminated"),
        ("nope", 404, "model 'nope' not found"),
        ("fault:too-long", 400, "context size"),
    ],
)
async def test_refusals_raise_typed_errors(
    client: ollama.AsyncClient, model: str, status: int, words: str
) -> None:
    with pytest.raises(ollama.ResponseError, match=words) as raised:
        await client.chat(model=model, messages=ASKING)
    assert raised.value.status_code == status


async def test_error_line_raises_midstream(client: ollama.AsyncClient) -> None:
    parts = aiter(await client.chat("fault:error-in-stream", ASKING, stream=True))
    assert [(await anext(parts)).done, (await anext(parts)).done] == [False, False]
    with pytest.raises(ollama.ResponseError, match="fell over"):
        await anext(parts)


async def test_cut_stream_raises(client: ollama.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        async for _ in await client.chat("fault:truncated-stream", ASKING, stream=True):
            pass


async def test_queued_fault_answers_once(fake: FakeOllama, client: ollama.AsyncClient) -> None:
    fake.next("busy")
    with pytest.raises(ollama.ResponseError):
        await client.chat(MODEL, ASKING)
    assert (await client.chat(MODEL, ASKING)).done
