"""The fake speaks the Messages API as the official client understands it."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from fakes.anthropic import MODELS, SIGNATURE, FakeAnthropic

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n-not-really").decode()
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CLOCK: Any = {"name": "get_time", "input_schema": {"type": "object"}}


@pytest.fixture
async def fake() -> AsyncIterator[FakeAnthropic]:
    async with FakeAnthropic() as running:
        yield running


@pytest.fixture
async def client(fake: FakeAnthropic) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=fake.base_url, api_key="test", max_retries=0, timeout=5
    ) as opened:
        yield opened


def said(text: str, **members: Any) -> Any:
    return {
        "model": "claude-opus-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": text}],
        **members,
    }


async def test_plain_answer_echoes_question(client: anthropic.AsyncAnthropic):
    answer = await client.messages.create(**said("how are you"))
    [block] = answer.content
    assert block.type == "text"
    assert block.text == "echo: how are you"
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 3)


async def test_stream_adds_up_to_the_answer(client: anthropic.AsyncAnthropic):
    plain = await client.messages.create(**said("how are you"))
    async with client.messages.stream(**said("how are you")) as stream:
        streamed = await stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict() for block in plain.content
    ]
    assert streamed.stop_reason == "end_turn"
    assert streamed.usage.output_tokens == plain.usage.output_tokens


async def test_tools_are_called_for_the_weather(client: anthropic.AsyncAnthropic):
    asked = said("the weather?", tools=[WEATHER, CLOCK])
    async with client.messages.stream(**asked) as stream:
        answer = await stream.get_final_message()
    calls = [(block.name, block.input) for block in answer.content if block.type == "tool_use"]
    assert calls == [("get_weather", {"city": "word"}), ("get_time", {})]
    assert answer.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
        for block in answer.content
        if block.type == "tool_use"
    ]
    turns: list[Any] = [
        *asked["messages"],
        {"role": "assistant", "content": [block.to_dict() for block in answer.content]},
        {"role": "user", "content": results},
    ]
    after = await client.messages.create(**(asked | {"messages": turns}))
    assert after.content[0].to_dict()["text"] == "echo: result rain result rain"


async def test_images_are_counted_and_measured(client: anthropic.AsyncAnthropic):
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    linked = {"type": "url", "url": "https://example.com/a.png"}
    content = [{"type": "image", "source": source}, {"type": "image", "source": linked}]
    asked = said("") | {"messages": [{"role": "user", "content": content}]}
    answer = await client.messages.create(**asked)
    assert answer.content[0].to_dict()["text"] == (
        "echo: [image image/png of 19 bytes] [image https://example.com/a.png]"
    )


async def test_schema_shapes_the_answer(client: anthropic.AsyncAnthropic):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    answer = await client.messages.create(**said("who", output_config=config))
    assert answer.content[0].to_dict()["text"] == '{"age": 7}'


async def test_thinking_comes_first_and_signed(client: anthropic.AsyncAnthropic):
    asked = said("hm", thinking={"type": "adaptive"})
    async with client.messages.stream(**asked) as stream:
        answer = await stream.get_final_message()
    thought, text = answer.content
    assert thought.type == "thinking"
    assert (thought.thinking, thought.signature) == ("thinking of: hm", SIGNATURE)
    assert text.type == "text"


async def test_models_are_listed(client: anthropic.AsyncAnthropic):
    listed = [model.id async for model in client.models.list(limit=1000)]
    assert listed == list(MODELS)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("unauthorized", anthropic.AuthenticationError),
        ("rate-limited", anthropic.RateLimitError),
        ("no-credit", anthropic.BadRequestError),
        ("overloaded", anthropic.InternalServerError),
        ("server-error", anthropic.InternalServerError),
    ],
)
async def test_faults_raise_the_clients_errors(
    client: anthropic.AsyncAnthropic, fault: str, error: type[anthropic.APIStatusError]
):
    with pytest.raises(error) as raised:
        await client.messages.create(**said("x", model=f"fault:{fault}"))
    if fault == "rate-limited":
        assert raised.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("fault", ["overloaded-first", "error-mid-stream"])
async def test_error_events_raise_in_streams(client: anthropic.AsyncAnthropic, fault: str):
    with pytest.raises(anthropic.APIStatusError):
        async with client.messages.stream(**said("x", model=f"fault:{fault}")) as stream:
            await stream.get_final_message()


async def test_queued_faults_come_first(fake: FakeAnthropic, client: anthropic.AsyncAnthropic):
    fake.next("overloaded")
    with pytest.raises(anthropic.InternalServerError):
        await client.messages.create(**said("x"))
    assert (await client.messages.create(**said("x"))).stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"extra_body": {"seed": 1}}, "seed: Extra inputs are not permitted"),
        ({"extra_body": {"temperature": 1}}, "temperature: Extra inputs"),
        ({"stop_sequences": [" "]}, "non-whitespace"),
        ({"model": "claude-haiku-4-5", "output_config": {"effort": "low"}}, "effort parameter"),
        ({"model": "claude-haiku-4-5", "thinking": {"type": "adaptive"}}, "not supported"),
        ({"tool_choice": {"type": "any"}}, "while providing tools"),
        ({"messages": [{"role": "system", "content": "x"}]}, "Unexpected role"),
        ({"messages": [{"role": "user", "content": " "}]}, "non-whitespace text"),
    ],
)
async def test_strictness_of_the_real_one(
    client: anthropic.AsyncAnthropic, members: dict[str, Any], words: str
):
    with pytest.raises(anthropic.BadRequestError, match=words):
        await client.messages.create(**said("x", **members))


async def test_newer_models_take_no_temperature(fake: FakeAnthropic):
    headers = {"anthropic-version": "2023-06-01"}
    async with anthropic.AsyncAnthropic(
        base_url=fake.base_url, api_key="test", max_retries=0, default_headers=headers
    ) as client:
        older = said("x", model="claude-opus-4-6", extra_body={"temperature": 0.5})
        assert (await client.messages.create(**older)).stop_reason == "end_turn"
        newer = said("x", model="claude-opus-4-7", extra_body={"temperature": 0.5})
        with pytest.raises(anthropic.BadRequestError, match="deprecated for this model"):
            await client.messages.create(**newer)


async def test_missing_limit_is_refused(fake: FakeAnthropic, client: anthropic.AsyncAnthropic):
    body = {"model": "claude-opus-5", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        await client.post("/v1/messages", body=body, cast_to=object)


async def test_unknown_model_is_not_found(client: anthropic.AsyncAnthropic):
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(**said("x", model="claude-missing"))


async def test_caller_that_leaves_is_noticed(fake: FakeAnthropic, client: anthropic.AsyncAnthropic):
    async with client.messages.stream(**said("x", model="fault:stall-mid-stream")) as stream:
        await anext(aiter(stream))
    await fake.cancelled.reach()
