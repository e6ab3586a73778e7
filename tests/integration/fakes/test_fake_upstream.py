"""The fake upstream speaks the protocol as the official client understands it."""

from collections.abc import AsyncIterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from fakes.upstream import DONE, FakeUpstream, Slow, scripted, sse, status

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "how are you today"}]


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest.fixture
async def client(fake: FakeUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=fake.base_url + "/v1", api_key="test", max_retries=0
    ) as opened:
        yield opened


async def test_plain_answer_echoes_question(fake: FakeUpstream, client: openai.AsyncOpenAI):
    answer = await client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].message.content == "echo: how are you today"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)
    [request] = fake.requests
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.header("authorization") == "Bearer test"
    assert request.json()["model"] == "m"


async def test_stream_echoes_question(client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "echo: how are you today"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_stream_ends_with_usage(client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *others, last = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 9


async def test_models_are_listed(client: openai.AsyncOpenAI):
    assert [model.id async for model in client.models.list()] == ["fake-model"]


async def test_rate_limit_raises_typed_error(client: openai.AsyncOpenAI):
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="fault:rate-limited", messages=QUESTION)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.code == "rate_limit_exceeded"


async def test_server_error_raises_typed_error(client: openai.AsyncOpenAI):
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="fault:server-error", messages=QUESTION)


async def test_queued_status_answers_once(fake: FakeUpstream, client: openai.AsyncOpenAI):
    fake.next(status(404, {"error": {"message": "no such model"}}))
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="m", messages=QUESTION)
    await client.chat.completions.create(model="m", messages=QUESTION)


async def test_error_frame_raises_midstream(client: openai.AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="fault:error-in-stream", messages=QUESTION, stream=True
    )
    with pytest.raises(openai.APIError, match="the model fell over"):
        async for _ in stream:
            pass


async def test_reset_raises_connection_error(client: openai.AsyncOpenAI):
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="fault:reset", messages=QUESTION)


async def test_scripted_frames_arrive_exactly(fake: FakeUpstream, client: openai.AsyncOpenAI):
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    fake.next(scripted([sse({"id": "x", "object": "chat.completion.chunk", "created": 1,
                             "model": "m", "choices": [choice]}), DONE]))  # fmt: skip
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    [chunk] = [chunk async for chunk in stream]
    assert chunk.choices[0].delta.tool_calls is not None
    assert chunk.choices[0].delta.tool_calls[0].id == "call_1"


async def test_slow_stream_notices_disconnect(fake: FakeUpstream, client: openai.AsyncOpenAI):
    slow = Slow()
    fake.next(slow)
    slow.release(2)
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].delta.role == "assistant"
    assert (await anext(chunks)).choices[0].delta.content == "echo: ho"
    await stream.close()
    await fake.cancelled.reach(1)
