"""Each fake provider is what its own official client takes for the real one."""

import base64
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import groq
import openai
import openrouter
import pytest
from mistralai.client import Mistral, errors
from mistralai.client import models as mistral_models
from openrouter import components
from openrouter import errors as router_errors

from aiserver.chat.flavours import flavour_of
from fakes.compatible import (
    COST,
    KEY,
    THOUGHT,
    FakeCompatible,
    FakeGroq,
    FakeMistral,
    FakeOpenAi,
    FakeOpenRouter,
)

QUESTION: list[Any] = [{"role": "user", "content": "how are you today"}]
RAINY: list[Any] = [{"role": "user", "content": "weather in Paris?"}]
PIXEL = base64.b64encode(b"not a picture, but bytes").decode()
PICTURES: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what differs?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ],
    }
]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
}
AS_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
PARIS = {"city": "Paris", "days": 2}


@pytest.fixture
async def openai_fake() -> AsyncIterator[FakeCompatible]:
    async with FakeOpenAi() as running:
        yield running


@pytest.fixture
async def groq_fake() -> AsyncIterator[FakeCompatible]:
    async with FakeGroq() as running:
        yield running


@pytest.fixture
async def mistral_fake() -> AsyncIterator[FakeCompatible]:
    async with FakeMistral() as running:
        yield running


@pytest.fixture
async def router_fake() -> AsyncIterator[FakeCompatible]:
    async with FakeOpenRouter() as running:
        yield running


@pytest.fixture
async def open_ai(openai_fake: FakeCompatible) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{openai_fake.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def groq_client(groq_fake: FakeCompatible) -> AsyncIterator[groq.AsyncGroq]:
    url = groq_fake.base_url.removesuffix("/openai")
    async with groq.AsyncGroq(base_url=url, api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def mistral(mistral_fake: FakeCompatible) -> AsyncIterator[Mistral]:
    async with Mistral(server_url=mistral_fake.base_url, api_key=KEY) as opened:
        yield opened


@pytest.fixture
async def router(router_fake: FakeCompatible) -> AsyncIterator[openrouter.OpenRouter]:
    url = f"{router_fake.base_url}/v1"
    # Without this the client tries again for an hour.
    async with openrouter.OpenRouter(server_url=url, api_key=KEY, retry_config=None) as opened:
        yield opened


def arguments_of(text: Any) -> Any:
    return json.loads(text)


async def test_openai_answers_plainly(
    openai_fake: FakeCompatible, open_ai: openai.AsyncOpenAI
) -> None:
    answer = await open_ai.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert answer.choices[0].message.content == "echo: how are you today"
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == openai_fake.stated[0]
    assert [model.id async for model in open_ai.models.list()] == ["gpt-4o", "o3-mini"]


async def test_openai_streams_with_usage_at_the_end(open_ai: openai.AsyncOpenAI) -> None:
    stream = await open_ai.chat.completions.create(
        model="gpt-4o", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "echo: how are you today"
    assert all(chunk.to_dict().get("obfuscation") for chunk in chunks)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens_details is not None
    assert last.usage.completion_tokens_details.reasoning_tokens == 0


async def test_openai_calls_tools(open_ai: openai.AsyncOpenAI) -> None:
    answer = await open_ai.chat.completions.create(model="gpt-4o", messages=RAINY, tools=[WEATHER])
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert arguments_of(call.function.arguments) == PARIS
    async with open_ai.chat.completions.stream(
        model="gpt-4o", messages=RAINY, tools=[WEATHER]
    ) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 2
    assert final.choices[0].finish_reason == "tool_calls"
    [call] = final.choices[0].message.tool_calls or []
    assert arguments_of(call.function.arguments) == PARIS


async def test_openai_sees_pictures_and_keeps_to_schemas(open_ai: openai.AsyncOpenAI) -> None:
    seen = await open_ai.chat.completions.create(model="gpt-4o", messages=PICTURES)
    assert seen.choices[0].message.content == "saw 2 images: what differs?"
    formed = await open_ai.chat.completions.create(
        model="gpt-4o", messages=QUESTION, response_format=AS_SCHEMA
    )
    assert json.loads(formed.choices[0].message.content or "") == {"mood": "good", "sure": True}


@pytest.mark.parametrize(
    ("more", "param", "code", "message"),
    [
        (
            {"max_tokens": 5},
            "max_tokens",
            "unsupported_parameter",
            "Use 'max_completion_tokens' instead",
        ),
        ({"temperature": 0.2}, "temperature", "unsupported_value", "Only the default"),
        ({"extra_body": {"top_k": 1}}, None, None, "argument supplied: top_k"),
        ({"extra_body": {"top_k": 1, "x": 1}}, None, None, "arguments supplied: top_k, x"),
    ],
)
async def test_openai_refuses_parameters(
    open_ai: openai.AsyncOpenAI,
    more: dict[str, Any],
    param: str | None,
    code: str | None,
    message: str,
) -> None:
    asked: Any = {"model": "o3-mini", "messages": QUESTION} | more
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        await open_ai.chat.completions.create(**asked)
    assert (raised.value.param, raised.value.code) == (param, code)


async def test_openai_errors_are_typed(
    openai_fake: FakeCompatible, open_ai: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        await open_ai.with_options(api_key="sk-wrong").models.list()
    assert raised.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        await open_ai.chat.completions.create(model="gpt-9", messages=QUESTION)
    for name in ("rate-limited", "no-quota"):
        with pytest.raises(openai.RateLimitError):
            await open_ai.chat.completions.create(model=f"fault:{name}", messages=QUESTION)
    openai_fake.next("refused")
    with pytest.raises(openai.BadRequestError):
        await open_ai.chat.completions.create(model="gpt-4o", messages=QUESTION)


async def test_groq_answers_plainly(groq_fake: FakeCompatible, groq_client: groq.AsyncGroq) -> None:
    raw = await groq_client.chat.completions.with_raw_response.create(
        model=groq_fake.model, messages=QUESTION
    )
    answer = await raw.parse()
    assert raw.headers["x-ratelimit-remaining-requests"] == "14370"
    assert answer.choices[0].message.content == "echo: how are you today"
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == groq_fake.stated[0]
    assert answer.x_groq is not None
    assert answer.x_groq.id == "req_fake"
    listed = await groq_client.models.list()
    assert groq_fake.model in [model.id for model in listed.data]


async def test_groq_streams_usage_beside_usage(
    groq_fake: FakeCompatible, groq_client: groq.AsyncGroq
) -> None:
    stream = await groq_client.chat.completions.create(
        model=groq_fake.model, messages=QUESTION, stream=True
    )
    first, *_, last = [chunk async for chunk in stream]
    assert first.x_groq is not None
    assert first.x_groq.id == "req_fake"
    assert last.usage is None
    assert last.x_groq is not None
    assert last.x_groq.usage is not None
    assert last.x_groq.usage.total_tokens == 9


async def test_groq_reasons_apart(groq_fake: FakeCompatible, groq_client: groq.AsyncGroq) -> None:
    answer = await groq_client.chat.completions.create(
        model=groq_fake.model, messages=QUESTION, reasoning_format="parsed"
    )
    assert answer.choices[0].message.reasoning == THOUGHT
    stream = await groq_client.chat.completions.create(
        model=groq_fake.model, messages=QUESTION, reasoning_format="parsed", stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.reasoning or "" for chunk in chunks) == THOUGHT


async def test_groq_calls_tools_whole(
    groq_fake: FakeCompatible, groq_client: groq.AsyncGroq
) -> None:
    stream = await groq_client.chat.completions.create(
        model=groq_fake.model, messages=RAINY, tools=[WEATHER], stream=True
    )
    deltas = [chunk.choices[0].delta.tool_calls async for chunk in stream]
    [[call]] = [each for each in deltas if each]
    assert call.function is not None
    assert arguments_of(call.function.arguments) == PARIS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n": 2}, "'n' : number must be at most 1"),
        ({"extra_body": {"top_k": 1}}, "property 'top_k' is unsupported"),
        ({"messages": [{"role": "user", "content": "x", "id": 1}]}, "property 'id' is unsupported"),
    ],
)
async def test_groq_refuses_what_it_does_not_know(
    groq_fake: FakeCompatible, groq_client: groq.AsyncGroq, more: dict[str, Any], message: str
) -> None:
    asked: Any = {"model": groq_fake.model, "messages": QUESTION} | more
    with pytest.raises(groq.BadRequestError, match=message):
        await groq_client.chat.completions.create(**asked)


async def test_groq_errors_are_typed(groq_client: groq.AsyncGroq) -> None:
    async def ask(model: str, **more: Any) -> Any:
        return await groq_client.chat.completions.create(model=model, messages=QUESTION, **more)

    with pytest.raises(groq.AuthenticationError):
        await groq_client.with_options(api_key="gsk_wrong").models.list()
    with pytest.raises(groq.NotFoundError):
        await ask("nope")
    with pytest.raises(groq.RateLimitError) as limited:
        await ask("fault:rate-limited")
    assert limited.value.response.headers["retry-after"] == "8"
    with pytest.raises(groq.BadRequestError, match="failed_generation"):
        await ask("fault:tool-failed")
    with pytest.raises(groq.APIStatusError) as full:
        await ask("fault:capacity")
    assert full.value.status_code == 498
    with pytest.raises(groq.APIError, match="the model fell over"):
        async for _ in await ask("fault:error-in-stream", stream=True):
            pass


async def ask_mistral(client: Mistral, model: str, messages: Any = None, **more: Any) -> Any:
    return await client.chat.complete_async(
        model=model, messages=QUESTION if messages is None else messages, retries=None, **more
    )


async def streamed_mistral(client: Mistral, model: str, messages: Any, **more: Any) -> list[Any]:
    stream = await client.chat.stream_async(model=model, messages=messages, retries=None, **more)
    async with stream:
        return [event.data async for event in stream]


async def test_mistral_answers_plainly(mistral_fake: FakeCompatible, mistral: Mistral) -> None:
    answer = await ask_mistral(mistral, mistral_fake.model)
    assert answer.choices[0].message.content == "echo: how are you today"
    assert answer.usage.total_tokens == mistral_fake.stated[0]["total_tokens"] == 9
    listed: Any = await mistral.models.list_async(retries=None)
    assert [model.id for model in listed.data or []] == list(mistral_fake.provider.models)


async def test_mistral_streams_usage_unasked(
    mistral_fake: FakeCompatible, mistral: Mistral
) -> None:
    *chunks, last = await streamed_mistral(mistral, mistral_fake.model, QUESTION)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "echo: how are you today"
    assert last.choices[0].finish_reason == "stop"
    assert last.usage.total_tokens == 9


async def test_mistral_thinks_in_chunks(mistral_fake: FakeCompatible, mistral: Mistral) -> None:
    thinker = mistral_fake.provider.models[1]
    answer = await ask_mistral(mistral, thinker)
    thought, text = answer.choices[0].message.content
    assert (thought.thinking[0].text, text.text) == (THOUGHT, "echo: how are you today")
    chunks = await streamed_mistral(mistral, thinker, QUESTION)
    lists = [
        c.choices[0].delta.content for c in chunks if isinstance(c.choices[0].delta.content, list)
    ]
    assert "".join(each[0].thinking[0].text for each in lists) == THOUGHT


async def test_mistral_calls_tools_whole(mistral_fake: FakeCompatible, mistral: Mistral) -> None:
    answer = await ask_mistral(mistral, mistral_fake.model, RAINY, tools=[WEATHER])
    [call] = answer.choices[0].message.tool_calls
    assert arguments_of(call.function.arguments) == PARIS
    *_, last = await streamed_mistral(mistral, mistral_fake.model, RAINY, tools=[WEATHER])
    [call] = last.choices[0].delta.tool_calls
    assert (len(call.id), last.choices[0].finish_reason) == (9, "tool_calls")
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turns = [*RAINY, {"role": "assistant", "tool_calls": [call.model_dump()]}, result]
    told = await ask_mistral(mistral, mistral_fake.model, turns)
    assert told.choices[0].message.content == "the tool said: rain"


async def test_mistral_refuses_foreign_ids(mistral_fake: FakeCompatible, mistral: Mistral) -> None:
    turns = [*RAINY, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
    with pytest.raises(errors.SDKError) as raised:
        await ask_mistral(mistral, mistral_fake.model, turns)
    assert raised.value.status_code == 400
    assert json.loads(raised.value.body)["code"] == "3280"


async def test_mistral_refuses_what_it_does_not_know(mistral_fake: FakeCompatible) -> None:
    url = f"{mistral_fake.base_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as foreign:
        named = {"role": "user", "content": "x", "name": "y"}
        cases: list[tuple[Any, list[Any]]] = [
            ({"seed": 1}, ["body", "seed"]),
            ({"messages": [named]}, ["body", "messages", 0, "user", "name"]),
            ({"messages": [{"role": "developer", "content": "x"}]}, ["body", "messages", 0]),
        ]
        for more, loc in cases:
            asked: Any = {"model": mistral_fake.model, "messages": QUESTION} | more
            with pytest.raises(openai.UnprocessableEntityError) as raised:
                await foreign.chat.completions.create(**asked)
            assert raised.value.response.json()["detail"][0]["loc"] == loc


async def test_mistral_errors_are_typed(mistral_fake: FakeCompatible, mistral: Mistral) -> None:
    for model, status in (("fault:rate-limited", 429), ("nope", 400), ("fault:refused", 400)):
        with pytest.raises(errors.SDKError) as raised:
            await ask_mistral(mistral, model)
        assert raised.value.status_code == status
    async with Mistral(server_url=mistral_fake.base_url, api_key="wrong") as stranger:
        with pytest.raises(errors.SDKError) as refused:
            await ask_mistral(stranger, mistral_fake.model)
    assert refused.value.status_code == 401
    cut = await ask_mistral(mistral, "fault:model-length")
    assert cut.choices[0].finish_reason == "model_length"


def test_row_of_mistral_is_what_its_client_may_send() -> None:
    row = flavour_of("Mistral AI")
    assert row.members == set(mistral_models.ChatCompletionRequest.model_fields)
    kinds = {
        "system": mistral_models.SystemMessage,
        "user": mistral_models.UserMessage,
        "assistant": mistral_models.AssistantMessage,
        "tool": mistral_models.ToolMessage,
    }
    assert row.messages == {role: set(kind.model_fields) for role, kind in kinds.items()}


async def ask_router(
    client: openrouter.OpenRouter, messages: Any, model: str = "acme/smart-1", **more: Any
) -> Any:
    return await client.chat.send_async(model=model, messages=messages, retries=None, **more)


async def test_openrouter_answers_plainly(
    router_fake: FakeCompatible, router: openrouter.OpenRouter
) -> None:
    answer = await ask_router(router, QUESTION)
    assert answer.choices[0].message.content == "echo: how are you today"
    assert answer.usage.total_tokens == router_fake.stated[0]["total_tokens"]
    assert answer.usage.cost == float(Decimal(COST))
    listed: Any = await router.models.list_async(retries=None)
    assert [model.id for model in listed.result.data] == ["acme/smart-1"]


async def test_openrouter_streams_after_comments(router: openrouter.OpenRouter) -> None:
    stream = await ask_router(router, QUESTION, stream=True)
    async with stream:
        *chunks, last = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "echo: how are you today"
    assert last.choices[0].finish_reason is None
    assert last.usage.prompt_tokens_details.cached_tokens == 3


async def test_openrouter_calls_tools_and_reasons(router: openrouter.OpenRouter) -> None:
    stream = await ask_router(router, RAINY, tools=[WEATHER], stream=True)
    text, opened = "", []
    async with stream:
        async for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or ():
                opened += [call.function.name] if call.id else []
                text += call.function.arguments or ""
    assert (opened, arguments_of(text)) == (["get_weather"], PARIS)
    thought = await ask_router(router, QUESTION, reasoning={"effort": "low"})
    assert thought.choices[0].message.reasoning == THOUGHT


async def test_openrouter_errors_are_typed(
    router_fake: FakeCompatible, router: openrouter.OpenRouter
) -> None:
    kinds: dict[str, Any] = {
        "fault:rate-limited": router_errors.TooManyRequestsResponseError,
        "fault:no-credits": router_errors.PaymentRequiredResponseError,
        "fault:provider-down": router_errors.BadGatewayResponseError,
        "fault:no-provider": router_errors.ServiceUnavailableResponseError,
        "nope": router_errors.BadRequestResponseError,
    }
    for model, kind in kinds.items():
        with pytest.raises(kind):
            await ask_router(router, QUESTION, model)
    url = f"{router_fake.base_url}/v1"
    async with openrouter.OpenRouter(server_url=url, api_key="wrong") as stranger:
        with pytest.raises(router_errors.UnauthorizedResponseError):
            await ask_router(stranger, QUESTION)


async def test_openrouter_fails_after_tokens(
    router_fake: FakeCompatible, router: openrouter.OpenRouter
) -> None:
    router_fake.next("error-in-stream")
    stream = await ask_router(router, QUESTION, stream=True)
    async with stream:
        *chunks, last = [chunk async for chunk in stream]
    assert chunks[1].choices[0].delta.content
    assert isinstance(last, components.ChatStreamChunk)
    assert last.error is not None
    assert (last.error.code, last.choices[0].finish_reason) == (502, "error")
