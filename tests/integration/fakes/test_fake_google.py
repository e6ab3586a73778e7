"""The fake Gemini speaks the protocol as Google's own client understands it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from fakes.google import KEY, MODELS, FakeGoogle
from fakes.upstream import status

MODEL = MODELS[0]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(name="get_weather", parameters_json_schema=SCHEMA)
    ]
)
ASKING = types.GenerateContentConfig(
    tools=[WEATHER],
    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
)


@pytest.fixture
async def fake() -> AsyncIterator[FakeGoogle]:
    async with FakeGoogle() as running:
        yield running


def client_of(fake: FakeGoogle, key: str = KEY) -> genai.Client:
    options = types.HttpOptions(base_url=fake.base_url, api_version="v1beta")
    return genai.Client(api_key=key, http_options=options)


@pytest.fixture
async def client(fake: FakeGoogle) -> AsyncIterator[genai.Client]:
    opened = client_of(fake)
    yield opened
    await opened.aio.aclose()
    opened.close()


def parts_of(answer: types.GenerateContentResponse) -> list[types.Part]:
    assert answer.candidates
    assert answer.candidates[0].content
    return answer.candidates[0].content.parts or []


async def streamed(
    client: genai.Client, contents: str, model: str = MODEL
) -> list[types.GenerateContentResponse]:
    stream = await client.aio.models.generate_content_stream(model=model, contents=contents)
    return [event async for event in stream]


async def test_plain_answer_echoes_question(fake: FakeGoogle, client: genai.Client):
    answer = await client.aio.models.generate_content(model=MODEL, contents="how are you")
    assert answer.text == "echo: how are you"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.candidates_token_count
    assert answer.model_version == MODEL
    [request] = fake.requests
    assert request.header("x-goog-api-key") == KEY
    assert KEY not in request.path


async def test_stream_grows_and_counts_last(client: genai.Client):
    *others, last = await streamed(client, "how are you today")
    assert len(others) > 1
    assert "".join(event.text or "" for event in others) == "echo: how are you today"
    assert last.candidates
    assert last.candidates[0].finish_reason is types.FinishReason.STOP
    assert last.usage_metadata is not None
    assert last.usage_metadata.candidates_token_count
    assert others[0].usage_metadata is not None
    assert others[0].usage_metadata.candidates_token_count is None


async def test_stream_without_sse_is_array(fake: FakeGoogle):
    fake.next("normal")
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{fake.base_url}/v1beta/models/{MODEL}:streamGenerateContent",
            headers={"x-goog-api-key": KEY},
            json={"contents": [{"parts": [{"text": "hi"}]}]},
        )
    assert [event["candidates"][0].get("finishReason") for event in answer.json()] == [None, "STOP"]


async def test_tool_is_called_and_answered(client: genai.Client):
    chat = client.aio.chats.create(model=MODEL, config=ASKING)
    answer = await chat.send_message("weather in Oslo and in Rome")
    calls = parts_of(answer)
    assert [part.function_call.args for part in calls if part.function_call] == [
        {"city": "Oslo"},
        {"city": "Rome"},
    ]
    assert [part.thought_signature is None for part in calls] == [False, True]
    result = await chat.send_message(
        [
            types.Part.from_function_response(name="get_weather", response={"sky": "blue"}),
            types.Part.from_function_response(name="get_weather", response={"sky": "grey"}),
        ]
    )
    assert result.text == ('get_weather said {"sky": "blue"}, get_weather said {"sky": "grey"}')


async def test_call_without_signature_is_refused(client: genai.Client):
    call = types.Part.from_function_call(name="get_weather", args={"city": "Oslo"})
    result = types.Part.from_function_response(name="get_weather", response={"sky": "blue"})
    contents = [
        types.Content(role="user", parts=[types.Part(text="weather in Oslo")]),
        types.Content(role="model", parts=[call]),
        types.Content(role="user", parts=[result]),
    ]
    with pytest.raises(errors.ClientError, match="missing a thought_signature"):
        await client.aio.models.generate_content(model=MODEL, contents=contents, config=ASKING)
    answer = await client.aio.models.generate_content(
        model="gemini-2.5-flash", contents=contents, config=ASKING
    )
    assert answer.text == 'get_weather said {"sky": "blue"}'


async def test_images_are_counted(client: genai.Client):
    images = [types.Part.from_bytes(data=b"x" * size, mime_type="image/png") for size in (10, 20)]
    answer = await client.aio.models.generate_content(
        model=MODEL, contents=["what is this?", *images]
    )
    assert answer.text == "saw 2 images of 10, 20 bytes: what is this?"


async def test_schema_shapes_answer(client: genai.Client):
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_json_schema=SCHEMA
    )
    answer = await client.aio.models.generate_content(model=MODEL, contents="where?", config=config)
    assert json.loads(answer.text or "") == {"city": "text"}


async def test_thoughts_come_when_asked(client: genai.Client):
    thinking = types.ThinkingConfig(include_thoughts=True, thinking_level=types.ThinkingLevel.LOW)
    answer = await client.aio.models.generate_content(
        model=MODEL, contents="hi", config=types.GenerateContentConfig(thinking_config=thinking)
    )
    thought, text = parts_of(answer)
    assert (thought.thought, thought.text, text.text) == (True, "Let me think.", "echo: hi")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.thoughts_token_count == 3


async def test_unsafe_prompt_is_blocked(client: genai.Client):
    answer = await client.aio.models.generate_content(model=MODEL, contents="something unsafe")
    assert answer.candidates is None
    assert answer.prompt_feedback is not None
    assert answer.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT


async def test_models_are_listed(client: genai.Client):
    names = [model.name async for model in await client.aio.models.list()]
    assert names == [*(f"models/{name}" for name in MODELS), "models/gemini-embedding-001"]


async def test_bad_key_is_invalid_argument(fake: FakeGoogle):
    client = client_of(fake, key="wrong")
    with pytest.raises(errors.ClientError, match="API key not valid") as caught:
        await client.aio.models.generate_content(model=MODEL, contents="hi")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    await client.aio.aclose()
    client.close()


async def test_rate_limit_names_delay(client: genai.Client):
    with pytest.raises(errors.ClientError) as caught:
        await client.aio.models.generate_content(model="fault:rate-limited", contents="hi")
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    details: Any = caught.value.details
    assert details["error"]["details"][0]["retryDelay"] == "34.07s"


async def test_overload_is_server_error(client: genai.Client):
    with pytest.raises(errors.ServerError) as caught:
        await streamed(client, "hi", model="fault:overloaded")
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")


async def test_error_in_stream_follows_text(client: genai.Client):
    answer = await client.aio.models.generate_content_stream(
        model="fault:error-in-stream", contents="how are you"
    )
    stream = aiter(answer)
    texts = [(await anext(stream)).text for _ in range(2)]
    assert texts == ["echo: ho", "w are yo"]
    with pytest.raises(errors.APIError, match="overloaded"):
        await anext(stream)


async def test_unknown_member_is_refused(client: genai.Client):
    options = types.HttpOptions(extra_body={"generationConfig": {"frequencyPenality": 1}})
    config = types.GenerateContentConfig(http_options=options)
    with pytest.raises(errors.ClientError, match='Unknown name "frequencyPenality"'):
        await client.aio.models.generate_content(model=MODEL, contents="hi", config=config)


async def test_more_than_five_stops_are_refused(client: genai.Client):
    config = types.GenerateContentConfig(stop_sequences=list("abcdef"))
    with pytest.raises(errors.ClientError, match="stop sequences"):
        await client.aio.models.generate_content(model=MODEL, contents="hi", config=config)


async def test_key_in_url_is_refused(fake: FakeGoogle):
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{fake.base_url}/v1beta/models?key={KEY}")
    assert answer.status_code == 400


async def test_queued_script_answers_once(fake: FakeGoogle, client: genai.Client):
    fake.next(status(404, {"error": {"code": 404, "message": "gone", "status": "NOT_FOUND"}}))
    with pytest.raises(errors.ClientError, match="gone"):
        await client.aio.models.generate_content(model=MODEL, contents="hi")
    answer = await client.aio.models.generate_content(model=MODEL, contents="hi")
    assert answer.text == "echo: hi"
