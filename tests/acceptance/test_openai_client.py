"""The official OpenAI SDK against the gateway: a real llama.cpp and a scripted upstream behind it."""

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from fakes.llama import MOOD, PATIENCE, Llama, running_llama
from fakes.upstream import FakeUpstream, Slow, scripted
from gateway import TestGateway

STREAMS = Path(__file__).parents[1] / "fixtures" / "streams"
ASKING: list[Any] = [{"role": "user", "content": "How is the weather?"}]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
AS_MOOD: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "mood", "strict": True, "schema": MOOD},
    },
    "max_tokens": 500,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Generator[Llama]:
    with running_llama(tmp_path_factory.mktemp("llama"), slots=2) as served:
        yield served


@asynccontextmanager
async def client_of(url: str, key: str) -> AsyncGenerator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE
    ) as client:
        yield client


@pytest.fixture
async def local(gateway: TestGateway, llama: Llama) -> AsyncGenerator[AsyncOpenAI]:
    """The SDK on a gateway that has one slot of a real llama.cpp, model `tiny`."""
    models = [{"model": "tiny"}]
    await gateway.provider("llama", llama.url, apiKey=llama.key, models=models, concurrency=1)
    async with client_of(gateway.url, await gateway.key()) as client:
        yield client


@pytest.fixture
async def client(serving: TestGateway) -> AsyncGenerator[AsyncOpenAI]:
    """The SDK on a gateway that has the scripted upstream, model `fake-model`."""
    async with client_of(serving.url, await serving.key()) as opened:
        yield opened


@pytest.fixture
async def direct() -> AsyncGenerator[FakeUpstream]:
    """What the SDK sends when nothing stands in between."""
    async with FakeUpstream() as fake:
        yield fake


async def streamed(client: AsyncOpenAI, model: str, **more: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model=model, messages=ASKING, stream=True, **more)
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def is_mood(text: str) -> bool:
    answer = json.loads(text)
    return (
        sorted(answer) == ["mood", "sure"]
        and answer["mood"] in ("good", "bad")
        and isinstance(answer["sure"], bool)
    )


async def test_llama_answers_with_usage(local: AsyncOpenAI) -> None:
    answer = await local.chat.completions.create(model="tiny", messages=ASKING, max_tokens=8)
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.prompt_tokens > 0
    total = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.total_tokens == total


async def test_llama_streams_an_answer_without_usage(local: AsyncOpenAI) -> None:
    chunks = await streamed(local, "tiny", **AS_MOOD)
    assert len(chunks) > 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert is_mood(text_of(chunks))
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_llama_streams_usage_when_asked(local: AsyncOpenAI) -> None:
    chunks = await streamed(local, "tiny", max_tokens=5, stream_options={"include_usage": True})
    *before, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 5
    assert all(chunk.usage is None for chunk in before)


async def test_llama_keeps_to_a_json_schema(local: AsyncOpenAI) -> None:
    answer = await local.chat.completions.create(model="tiny", messages=ASKING, **AS_MOOD)
    assert answer.choices[0].finish_reason == "stop"
    assert is_mood(answer.choices[0].message.content or "")


async def test_llama_serves_on_after_a_cancelled_stream(local: AsyncOpenAI) -> None:
    stream = await local.chat.completions.create(
        model="tiny", messages=ASKING, stream=True, max_tokens=1500
    )
    async with stream:
        await anext(stream)
        await anext(stream)
    # The provider has one slot: this waits until the cancelled stream has given it back.
    answer = await local.chat.completions.create(model="tiny", messages=ASKING, max_tokens=3)
    assert answer.choices[0].message.content


async def test_models_are_listed_and_retrieved(local: AsyncOpenAI) -> None:
    listed = [model async for model in local.models.list()]
    assert [(model.id, model.object) for model in listed] == [("tiny", "model")]
    assert await local.models.retrieve("tiny") == listed[0]
    with pytest.raises(openai.NotFoundError):
        await local.models.retrieve("nope")


async def test_model_with_a_slash_is_retrieved(gateway: TestGateway) -> None:
    models = [{"model": "org/tiny:1"}]
    await gateway.provider("fake", "http://127.0.0.1:9", models=models)
    async with client_of(gateway.url, await gateway.key()) as client:
        assert (await client.models.retrieve("org/tiny:1")).id == "org/tiny:1"


async def test_wrong_key_is_an_authentication_error(serving: TestGateway) -> None:
    async with client_of(serving.url, "ak-00000000000000000000000000000000") as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            await client.chat.completions.create(model="fake-model", messages=ASKING)
        with pytest.raises(openai.AuthenticationError) as listing:
            await client.models.list()
    for error in (raised.value, listing.value):
        assert (error.status_code, error.code) == (401, "invalid_api_key")
        assert error.type == "authentication_error"
        assert error.request_id


async def test_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="nope", messages=ASKING)
    assert raised.value.code == "model_not_found"
    assert "nope" in raised.value.message
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nope", messages=ASKING, stream=True)


async def test_empty_messages_are_a_bad_request(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="fake-model", messages=[])
    assert (raised.value.param or "").lower() == "messages"
    assert raised.value.type == "invalid_request_error"


async def test_closed_stream_ends_the_upstream_call(
    client: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    slow = Slow()
    upstream.next(slow)
    slow.release(2)
    stream = await client.chat.completions.create(model="fake-model", messages=ASKING, stream=True)
    async with stream:
        await anext(stream)
    await upstream.cancelled.reach(1)
    assert text_of(await streamed(client, "fake-model")) == "echo: How is the weather?"


IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAAElFTkSuQmCC"
PICTURES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What differs between these?"},
            {"type": "image_url", "image_url": {"url": IMAGE}},
            {
                "type": "image_url",
                "image_url": {"url": "https://images.example/cat.jpg?w=1&h=2", "detail": "low"},
            },
        ],
    }
]
AFTER_TOOLS: list[Any] = [
    {"role": "developer", "content": "Answer in one line."},
    {"role": "user", "content": "Weather and time?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Tromsø", "days": 2}'},
            },
            {
                "id": "call_2",
                "type": "function",
                "function": {"name": "get_time", "arguments": '{"city": "Lima"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"max_temp": 3.0}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "12:00"},
]
CALLS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.1, "top_p": 1, "seed": 42, "stop": ["\n\n"], "n": 1, "user": "u-1"},
    "parallel tools": {"tools": [WEATHER, TIME], "parallel_tool_calls": True},
    "required tool": {
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    },
    "results of tools": {"messages": AFTER_TOOLS, "tools": [WEATHER, TIME], "tool_choice": "auto"},
    "images": {"messages": PICTURES, "max_completion_tokens": 64},
    "json schema": AS_MOOD,
    "logprobs": {"logprobs": True, "top_logprobs": 3, "logit_bias": {"50256": -100}},
    "reasoning": {"reasoning_effort": "low", "metadata": {"maxTokens": "1"}, "store": False},
    "unknown member": {"extra_body": {"future_member": {"maxTokens": [None, 1e-7, True]}}},
    "provider options": {"extra_body": {"provider": {"order": ["a"], "allow_fallbacks": False}}},
}


def exactly(body: dict[str, Any]) -> str:
    """Equal only for equal members: 1 is not 1.0, nor true."""
    return json.dumps(body, sort_keys=True)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_upstream_gets_what_the_sdk_sent(
    client: AsyncOpenAI, upstream: FakeUpstream, direct: FakeUpstream, call: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": "fake-model", "messages": ASKING} | call
    async with client_of(direct.base_url, "sk-direct") as alone:
        for each in (client, alone):
            await each.chat.completions.create(**asked)
            stream = await each.chat.completions.create(**asked, stream=True)
            async for _ in stream:
                pass
    arrived, arrived_streaming = (request.json() for request in upstream.requests)
    sent, sent_streaming = (request.json() for request in direct.requests)
    assert exactly(arrived) == exactly(sent)
    # Asked for by the gateway, to count tokens.
    assert arrived_streaming.pop("stream_options") == {"include_usage": True}
    assert exactly(arrived_streaming) == exactly(sent_streaming)


async def test_stream_options_of_the_caller_stay(
    client: AsyncOpenAI, upstream: FakeUpstream
) -> None:
    options = {"include_usage": False, "include_obfuscation": False}
    chunks = await streamed(client, "fake-model", stream_options=options)
    assert upstream.requests[-1].json()["stream_options"] == {**options, "include_usage": True}
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_provider_by_name_is_used_and_not_forwarded(
    serving: TestGateway, client: AsyncOpenAI, upstream: FakeUpstream, direct: FakeUpstream
) -> None:
    await serving.provider("other", direct.base_url)
    for name, reached in (("fake", upstream), ("other", direct)):
        await client.chat.completions.create(
            model="fake-model", messages=ASKING, extra_body={"provider": name}
        )
        assert reached.requests[-1].json() == {"model": "fake-model", "messages": ASKING}
    assert (len(upstream.requests), len(direct.requests)) == (1, 1)


CITIES = [{"city": "Tromsø", "days": 2}, {"city": "Lima"}]
IDS = {
    "openai": ["call_oSlo0001weather", "call_Lima0002time"],
    "groq": ["wq7e2k9ah", "n4c81zt5b"],
    "vllm": [
        "chatcmpl-tool-1f6c0a7be2d94d5c9c3a58e0b7d41f22",
        "chatcmpl-tool-8a2e4d1960bb47f3a5d7c3f1e08b9d64",
    ],
    "llama_cpp": ["v7PzR2kXw9JtLq4NsB0cHyF6gMdE1uAo", "K3nWb8QyTf5VxZ0jRc7LhSm2DpG9eUiA"],
}


def frames_of(name: str) -> list[bytes]:
    whole = (STREAMS / f"{name}_tool_calls.sse").read_bytes()
    return [frame + b"\n\n" for frame in whole.split(b"\n\n") if frame]


def without_usage(frame: bytes) -> bytes:
    """The frame as a caller gets it that did not ask for counts; nothing if it held no more."""
    if frame == b"data: [DONE]\n\n":
        return frame
    chunk = json.loads(frame.removeprefix(b"data: "))
    if not chunk["choices"]:
        return b""
    assert chunk.get("usage") is None
    return frame.replace(b',"usage":null', b"")


def in_pieces(frames: list[bytes]) -> list[bytes]:
    """The same bytes, torn where no frame ends."""
    whole = b"".join(frames)
    return [whole[at : at + 97] for at in range(0, len(whole), 97)]


@pytest.mark.parametrize("name", IDS)
async def test_sdk_reads_streamed_tool_calls(
    client: AsyncOpenAI, upstream: FakeUpstream, name: str
) -> None:
    upstream.next(scripted(in_pieces(frames_of(name))))
    finished: list[tuple[int, str, Any]] = []
    tools: list[Any] = [WEATHER, TIME]
    async with client.chat.completions.stream(
        model="fake-model", messages=ASKING, tools=tools
    ) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.done":
                finished.append((event.index, event.name, event.parsed_arguments))
        answer = await stream.get_final_completion()
    names = ["get_weather", "get_time"]
    assert finished == [(0, names[0], CITIES[0]), (1, names[1], CITIES[1])]
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [call.id for call in calls] == IDS[name]
    assert [call.function.name for call in calls] == names
    assert [json.loads(call.function.arguments) for call in calls] == CITIES
    assert answer.usage is None


@pytest.mark.parametrize("name", IDS)
async def test_deltas_of_tool_calls_keep_their_index(
    client: AsyncOpenAI, upstream: FakeUpstream, name: str
) -> None:
    upstream.next(scripted(frames_of(name)))
    chunks = await streamed(client, "fake-model", stream_options={"include_usage": True})
    arguments = {0: "", 1: ""}
    opened: list[tuple[int, str | None, str | None]] = []
    for chunk in chunks:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                if call.id is not None:
                    assert call.type == "function"
                    opened.append((call.index, call.id, call.function.name))
                arguments[call.index] += call.function.arguments or ""
    assert opened == [(0, IDS[name][0], "get_weather"), (1, IDS[name][1], "get_time")]
    assert [json.loads(arguments[at]) for at in (0, 1)] == CITIES
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 100


@pytest.mark.parametrize("name", IDS)
async def test_frames_come_as_they_were_sent(
    serving: TestGateway, upstream: FakeUpstream, name: str
) -> None:
    frames = frames_of(name)
    upstream.next(scripted(in_pieces(frames)), scripted(in_pieces(frames)))
    with_usage = await serving.chat(stream=True, stream_options={"include_usage": True})
    assert with_usage.body == b"".join(frames)
    plain = await serving.chat(stream=True)
    assert plain.body == b"".join(map(without_usage, frames))
