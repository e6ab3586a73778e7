"""The official OpenAI client through the gateway to every kind of provider: each must look alike."""

import base64
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from fakes import compatible, google
from fakes.anthropic import FakeAnthropic
from fakes.compatible import FakeCompatible, FakeGroq, FakeMistral, FakeOpenAi, FakeOpenRouter
from fakes.google import FakeGoogle
from fakes.ollama import FakeOllama
from fakes.upstream import FakeUpstream
from gateway import TestGateway

PATIENCE = 30.0


@dataclass(frozen=True)
class Column:
    """One kind of provider. `thinks`: the model that reasons and the members that make it do so.

    `limited` and `refused` name the fake's answers 429 and 400; `stranger` is a key it refuses.
    """

    fake: Callable[[], FakeUpstream]
    kind: str
    model: str
    key: str | None = compatible.KEY
    thinks: tuple[str, dict[str, Any]] = ("", {})
    limited: str = "rate-limited"
    refused: str = "refused"
    stranger: str | None = "wrong"
    odd: dict[str, Any] = field(default_factory=dict[str, Any])


COLUMNS = {
    "openai": Column(FakeOpenAi, "Open AI", "gpt-4o", thinks=("o3-mini", {})),
    "groq": Column(
        FakeGroq,
        "GroqCloud",
        "llama-3.3-70b-versatile",
        thinks=("openai/gpt-oss-20b", {"extra_body": {"reasoning_format": "parsed"}}),
    ),
    "mistral": Column(
        FakeMistral,
        "Mistral AI",
        "mistral-small-latest",
        thinks=("magistral-medium-latest", {}),
    ),
    "openrouter": Column(
        FakeOpenRouter,
        "OpenRouter",
        "acme/smart-1",
        thinks=("acme/smart-1", {"reasoning_effort": "low"}),
    ),
    "anthropic": Column(
        FakeAnthropic,
        "Anthropic",
        "claude-opus-4-7",
        thinks=("claude-opus-5", {"reasoning_effort": "low"}),
        refused="",
    ),
    "google": Column(
        FakeGoogle,
        "Google Cloud",
        "gemini-3-flash",
        key=google.KEY,
        thinks=("gemini-3-flash", {"reasoning_effort": "low"}),
        refused="",
    ),
    "ollama": Column(
        FakeOllama,
        "Ollama",
        "fake-model",
        key=None,
        thinks=("fake-model", {"reasoning_effort": "low"}),
        limited="",
        refused="too-long",
        stranger=None,
    ),
}
every = pytest.mark.parametrize("name", COLUMNS)

ASKING: list[Any] = [{"role": "user", "content": "how are you today"}]
RAINY: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": "Tells.", "parameters": parameters},
    }


WEATHER = tool("get_weather")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(PIXEL).decode()},
            },
        ],
    }
]
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"type": "string"}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}
AS_MOOD: Any = {
    "type": "json_schema",
    "json_schema": {"name": "mood", "strict": True, "schema": MOOD},
}


@dataclass(frozen=True)
class Cell:
    """`model`, `thinker`, `limited` and `refused` are names that the gateway serves."""

    client: AsyncOpenAI
    fake: FakeUpstream
    gateway: TestGateway

    async def ask(self, model: str = "model", messages: Any = None, **more: Any) -> Any:
        return await self.client.chat.completions.create(
            model=model, messages=ASKING if messages is None else messages, **more
        )

    async def stream(
        self, model: str = "model", messages: Any = None, **more: Any
    ) -> list[ChatCompletionChunk]:
        chunks = await self.ask(model, messages, stream=True, **more)
        return [chunk async for chunk in chunks]

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of what the upstream was asked, oldest first."""
        return [request.json() for request in self.fake.requests if request.method == "POST"]


@asynccontextmanager
async def cell(gateway: TestGateway, name: str, **more: Any) -> AsyncGenerator[Cell]:
    column = COLUMNS[name]
    async with column.fake() as fake:
        key = more.pop("key", column.key)
        models = [
            {"model": "model", "apiModel": column.model},
            {"model": "thinker", "apiModel": column.thinks[0]},
            {"model": "limited", "apiModel": f"fault:{column.limited}"},
            {"model": "refused", "apiModel": f"fault:{column.refused}"},
        ]
        with_key = {} if key is None else {"apiKey": key}
        await gateway.provider(name, fake.base_url, aiTypeId=column.kind, models=models, **with_key)
        async with AsyncOpenAI(
            base_url=f"{gateway.url}/v1",
            api_key=await gateway.key(),
            max_retries=0,
            timeout=PATIENCE,
            # Nothing here speaks TLS, and reading certificates takes longer than a cell.
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            yield Cell(client, fake, gateway)


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def finishes(chunks: list[ChatCompletionChunk]) -> list[str]:
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    return [end for end in ends if end is not None]


def check_usage(usage: Any, fake: FakeUpstream) -> None:
    """The numbers are those that the upstream stated, where its fake keeps them."""
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if isinstance(fake, FakeCompatible):
        stated = fake.stated[-1]
        assert usage.prompt_tokens == stated["prompt_tokens"]
        assert usage.completion_tokens == stated["completion_tokens"]


@every
async def test_plain_answer(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        answer = await at.ask()
        assert (answer.object, answer.choices[0].message.role) == ("chat.completion", "assistant")
        assert answer.choices[0].message.content == "echo: how are you today"
        assert answer.choices[0].finish_reason == "stop"
        check_usage(answer.usage, at.fake)


@every
async def test_stream_has_no_usage_unasked(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        chunks = await at.stream()
    assert text_of(chunks) == "echo: how are you today"
    assert finishes(chunks) == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


@every
async def test_stream_ends_with_usage_when_asked(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        chunks = await at.stream(stream_options={"include_usage": True})
        assert text_of(chunks) == "echo: how are you today"
        *before, last = chunks
        assert all(chunk.usage is None for chunk in before)
        check_usage(last.usage, at.fake)


@every
async def test_tool_is_called_and_told(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        # Ollama cannot make a model call, and says so.
        choice = "auto" if name == "ollama" else "required"
        answer = await at.ask(messages=RAINY, tools=[WEATHER], tool_choice=choice)
        [said] = answer.choices
        assert said.finish_reason == "tool_calls"
        [call] = said.message.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        assert json.loads(call.function.arguments)["city"]
        check_usage(answer.usage, at.fake)
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky":"rainy"}'}
        turns = [*RAINY, said.message.model_dump(exclude_none=True), result]
        told = await at.ask(messages=turns, tools=[WEATHER])
        assert "rainy" in told.choices[0].message.content


@every
async def test_calls_of_another_provider_are_understood(gateway: TestGateway, name: str) -> None:
    """A conversation may have begun elsewhere: its ids are another provider's."""
    function = {"name": "get_weather", "arguments": '{"city":"Lima","days":1}'}
    calls = [
        {"id": f"call_{each}_of_another", "type": "function", "function": function}
        for each in (1, 2)
    ]
    turns: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        *RAINY,
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "rainy"},
        {"role": "tool", "tool_call_id": calls[1]["id"], "content": "sunny"},
    ]
    async with cell(gateway, name) as at:
        told = await at.ask(messages=turns, tools=[WEATHER])
    assert "sunny" in told.choices[0].message.content


@every
async def test_streamed_tool_calls_come_whole(gateway: TestGateway, name: str) -> None:
    wanted = [WEATHER] if name == "google" else [WEATHER, tool("get_time")]
    names = [each["function"]["name"] for each in wanted]
    opened: list[tuple[int, str | None]] = []
    arguments = dict.fromkeys(range(len(names)), "")
    ids: set[str] = set()
    async with cell(gateway, name) as at:
        chunks = await at.stream(messages=RAINY, tools=wanted)
    for chunk in chunks:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                if call.id:
                    ids.add(call.id)
                    assert call.type == "function"
                    opened.append((call.index, call.function.name))
                arguments[call.index] += call.function.arguments or ""
    assert opened == list(enumerate(names))
    assert len(ids) == len(names)
    assert all(json.loads(text)["city"] for text in arguments.values())
    assert finishes(chunks) == ["tool_calls"]


@every
async def test_picture_is_seen(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        answer = await at.ask(messages=PICTURE)
    assert "image" in answer.choices[0].message.content
    assert "what is this?" in answer.choices[0].message.content


@every
async def test_answer_keeps_to_a_schema(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        answer = await at.ask(response_format=AS_MOOD)
        chunks = await at.stream(response_format=AS_MOOD)
    for text in (answer.choices[0].message.content, text_of(chunks)):
        formed = json.loads(text)
        assert sorted(formed) == ["mood", "sure"]
        assert isinstance(formed["sure"], bool)


def thoughts(message: Any) -> str:
    extra = message.model_extra or {}
    return extra.get("reasoning_content") or extra.get("reasoning") or ""


@every
async def test_reasoning_is_apart_from_the_answer(gateway: TestGateway, name: str) -> None:
    more = COLUMNS[name].thinks[1]
    async with cell(gateway, name) as at:
        answer = await at.ask("thinker", **more)
        chunks = await at.stream("thinker", **more)
    message = answer.choices[0].message
    assert message.content == text_of(chunks) == "echo: how are you today"
    if name == "openai":
        assert answer.usage.completion_tokens_details.reasoning_tokens > 0
        return
    assert thoughts(message)
    told = "".join(thoughts(chunk.choices[0].delta) for chunk in chunks if chunk.choices)
    assert told == thoughts(message)


@pytest.mark.parametrize("name", [name for name, each in COLUMNS.items() if each.stranger])
async def test_refused_key_is_the_servers_fault(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name, key=COLUMNS[name].stranger) as at:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as raised:
                await at.ask(stream=stream)
            assert raised.value.status_code in (502, 503)
            assert "wrong" not in raised.value.message
            if not stream:
                assert raised.value.code == "provider_credentials"


@pytest.mark.parametrize("name", [name for name, each in COLUMNS.items() if each.limited])
async def test_limit_is_a_limit(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        with pytest.raises(openai.RateLimitError) as raised:
            await at.ask("limited")
    assert raised.value.status_code == 429
    if name in ("openai", "groq"):
        assert float(raised.value.response.headers["retry-after"]) > 0


@pytest.mark.parametrize("name", [name for name, each in COLUMNS.items() if each.refused])
async def test_refused_request_is_the_callers(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        with pytest.raises(openai.BadRequestError) as raised:
            await at.ask("refused")
        with pytest.raises(openai.BadRequestError):
            await at.ask("refused", stream=True)
        assert raised.value.message
        assert len(at.chats) == 2


@pytest.mark.parametrize("name", ["openai", "groq"])
async def test_unknown_parameter_is_dropped_once(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        for _ in range(2):
            answer = await at.ask(extra_body={"top_k": 5}, temperature=0.5)
            assert answer.choices[0].message.content == "echo: how are you today"
        chunks = await at.stream(extra_body={"top_k": 5})
        assert text_of(chunks) == "echo: how are you today"
        assert [("top_k" in body) for body in at.chats] == [True, False, False, False]
        assert at.chats[1]["temperature"] == 0.5


@pytest.mark.parametrize("name", ["mistral", "openrouter", "anthropic", "google", "ollama"])
async def test_foreign_tuning_costs_no_second_attempt(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        answer = await at.ask(
            extra_body={"top_k": 5, "store": False}, seed=7, user="u-1", max_completion_tokens=50
        )
        assert answer.choices[0].message.content == "echo: how are you today"
        assert len(at.chats) == 1


async def test_unsupported_sampling_is_known_beforehand(gateway: TestGateway) -> None:
    async with cell(gateway, "anthropic") as at:
        await at.ask(temperature=0.2, top_p=0.9)
        [body] = at.chats
    assert "temperature" not in body
    assert "top_p" not in body


async def test_reasoning_model_gets_its_own_spelling(gateway: TestGateway) -> None:
    async with cell(gateway, "openai") as at:
        await at.ask("thinker", max_tokens=50, temperature=0.2)
        [body] = at.chats
    assert body["max_completion_tokens"] == 50
    assert not {"max_tokens", "temperature"} & body.keys()


async def test_meaning_is_never_dropped(gateway: TestGateway) -> None:
    async with cell(gateway, "openai") as at:
        with pytest.raises(openai.BadRequestError, match="grammar"):
            await at.ask(extra_body={"grammar": "root ::= x"})
        assert len(at.chats) == 1
    async with cell(gateway, "groq") as at:
        with pytest.raises(openai.APIStatusError) as raised:
            await at.client.chat.completions.create(
                model="model", messages=ASKING, n=2, extra_body={"provider": "groq"}
            )
        assert at.chats == []
    assert raised.value.status_code == 400


@pytest.mark.parametrize("name", ["openrouter", "groq"])
async def test_error_after_tokens_ends_the_stream(gateway: TestGateway, name: str) -> None:
    async with cell(gateway, name) as at:
        at.fake.next("error-in-stream")
        stream = await at.ask(stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_cut_answer_says_so_in_openais_words(gateway: TestGateway) -> None:
    async with cell(gateway, "mistral") as at:
        at.fake.next("model-length", "model-length")
        answer = await at.ask()
        chunks = await at.stream()
    assert answer.choices[0].finish_reason == "length"
    assert finishes(chunks) == ["length"]


async def test_answer_given_up_is_an_error(gateway: TestGateway) -> None:
    async with cell(gateway, "mistral") as at:
        at.fake.next("finish-error")
        with pytest.raises(openai.InternalServerError):
            await at.ask()
