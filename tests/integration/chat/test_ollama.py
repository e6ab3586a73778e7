"""OpenAI's SDK on a gateway whose provider speaks Ollama's own protocol."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from fakes.ollama import MODEL, THOUGHT, FakeOllama
from fakes.upstream import FakeUpstream
from gateway import TestGateway

ASKING: list[Any] = [{"role": "user", "content": "how are you today"}]
WEATHER: list[Any] = [{"role": "user", "content": "How is the weather?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture
async def box() -> AsyncGenerator[FakeOllama]:
    async with FakeOllama() as fake:
        yield fake


@pytest.fixture
async def client(gateway: TestGateway, box: FakeOllama) -> AsyncGenerator[AsyncOpenAI]:
    models = [{"model": "m", "apiModel": MODEL}, {"model": "gone", "apiModel": "gone"}]
    await gateway.provider("box", box.base_url, aiTypeId="Ollama", models=models)
    async with AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=await gateway.key(), max_retries=0, timeout=10
    ) as opened:
        yield opened


async def streamed(
    client: AsyncOpenAI, messages: list[Any] = ASKING, **more: Any
) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True, **more)
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def second(gateway: TestGateway, upstream: FakeUpstream, model: str) -> None:
    """Another provider of the model, asked when the first one fails."""
    models = [{"model": model, "apiModel": "fake-model"}]
    await gateway.provider("second", upstream.base_url, models=models, priority=-1)


async def test_answer_comes_with_usage(client: AsyncOpenAI, box: FakeOllama) -> None:
    answer = await client.chat.completions.create(
        model="m", messages=ASKING, max_tokens=3, extra_body={"options": {"num_ctx": 64}}
    )
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("echo: how are", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3)
    [request] = box.requests
    assert request.path == "/api/chat"
    assert request.json()["options"] == {"num_predict": 3, "num_ctx": 64}
    assert request.json()["truncate"] is False


async def test_cached_prompt_has_no_count(client: AsyncOpenAI, box: FakeOllama) -> None:
    box.cached = True
    answer = await client.chat.completions.create(model="m", messages=ASKING)
    assert answer.usage is None
    chunks = await streamed(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)


async def test_stream_says_words_thoughts_and_usage(client: AsyncOpenAI) -> None:
    chunks = await streamed(client, reasoning_effort="low", stream_options={"include_usage": True})
    assert text_of(chunks) == "echo: how are you today"
    assert getattr(chunks[0].choices[0].delta, "reasoning_content", None) == THOUGHT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9


async def test_tool_turns_go_round(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="m", messages=WEATHER, tools=TOOLS) as stream:
        async for _ in stream:
            pass
        choice = (await stream.get_final_completion()).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert json.loads(calls[1].function.arguments) == {"city": "Paris", "days": 2}
    turns: list[Any] = [*WEATHER, choice.message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    answer = await client.chat.completions.create(model="m", messages=turns, tools=TOOLS)
    assert answer.choices[0].message.content == "get_time said: sunny"


async def test_image_arrives_whole(client: AsyncOpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,MTIzNA=="}}
    content = [{"type": "text", "text": "look"}, image]
    messages: list[Any] = [{"role": "user", "content": content}]
    answer = await client.chat.completions.create(model="m", messages=messages)
    assert answer.choices[0].message.content == "echo: look (images of 4 bytes)"


async def test_forced_tool_is_a_bad_request(client: AsyncOpenAI, box: FakeOllama) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(
            model="m", messages=WEATHER, tools=TOOLS, tool_choice="required"
        )
    assert raised.value.param == "tool_choice"
    assert box.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["busy", "server-error", "missing", "reset", "error-first"])
async def test_failure_goes_to_the_next_provider(
    gateway: TestGateway,
    client: AsyncOpenAI,
    box: FakeOllama,
    upstream: FakeUpstream,
    fault: str,
    stream: bool,
) -> None:
    await second(gateway, upstream, "m")
    box.next("error-in-answer" if fault == "error-first" and not stream else fault)
    if stream:
        assert text_of(await streamed(client)) == "echo: how are you today"
    else:
        answer = await client.chat.completions.create(model="m", messages=ASKING)
        assert answer.choices[0].message.content == "echo: how are you today"
    assert (len(box.requests), len(upstream.requests)) == (1, 1)


@pytest.mark.parametrize(
    "fault", ["error-in-stream", "error-at-end", "no-done", "truncated-stream"]
)
async def test_broken_stream_is_never_a_finished_one(
    client: AsyncOpenAI, box: FakeOllama, fault: str
) -> None:
    box.next(fault)
    chunks: list[ChatCompletionChunk] = []

    async def read() -> None:
        async for chunk in await client.chat.completions.create(
            model="m", messages=ASKING, stream=True
        ):
            chunks.append(chunk)

    with pytest.raises(openai.APIError):
        await read()
    assert len(chunks) >= 2
    assert not any(chunk.choices[0].finish_reason for chunk in chunks)


async def test_too_long_chat_is_the_callers_to_shorten(
    client: AsyncOpenAI, box: FakeOllama
) -> None:
    box.next("too-long")
    with pytest.raises(openai.BadRequestError, match="context size") as raised:
        await client.chat.completions.create(model="m", messages=ASKING)
    assert raised.value.code == "context_length_exceeded"


async def test_model_that_ollama_lacks_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'gone' not found") as raised:
        await client.chat.completions.create(model="gone", messages=ASKING)
    assert raised.value.code == "model_not_found"
