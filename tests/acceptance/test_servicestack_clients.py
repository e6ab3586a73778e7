"""The typed clients for Python and JavaScript against the gateway, with types as generated."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from servicestack import JsonServiceClient, WebServiceException

from clients.python_dtos import (
    AiProviderType,
    DeleteAiProvider,
    Hello,
    OpenAiChatCompletion,
    OpenAiMessage,
    QueryAiProviders,
)
from fakes.upstream import FakeUpstream
from gateway import SECRET, TestGateway

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "clients" / "chat.mjs"
PATIENCE = 20.0
MODEL = "mixtral:8x22b"
QUESTION = "What's the capital of France?"
WRONG = "ak-00000000000000000000000000000000"
# The call that every introduction shows, in OpenAI's spelling.
ON_THE_WIRE = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 50,
}


@pytest.fixture
async def mixtral(gateway: TestGateway, upstream: FakeUpstream) -> TestGateway:
    """A gateway whose one provider lists the model that introductions ask for."""
    await gateway.provider("fake", upstream.base_url, models=[{"model": MODEL}])
    return gateway


def send(url: str, key: str | None, request: Any) -> Any:
    """One call of the Python client, which blocks."""
    client: Any = JsonServiceClient(url)
    client.bearer_token = key
    try:
        return client.send(request)
    finally:
        client._session.close()


async def python(gateway: TestGateway, request: Any, *, key: str | None = SECRET) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(send, gateway.url, key, request)


async def failure(gateway: TestGateway, request: Any, *, key: str | None = SECRET) -> Any:
    """The exception that the Python client raises."""
    with pytest.raises(WebServiceException) as raised:
        await python(gateway, request, key=key)
    return raised.value


async def javascript(gateway: TestGateway, mode: str, *ids: int, key: str = SECRET) -> Any:
    """What chat.mjs prints: the outcome of JsonServiceClient and that of JsonApiClient."""
    process = await asyncio.create_subprocess_exec(
        "node",
        SCRIPT,
        gateway.url,
        key,
        mode,
        *map(str, ids),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaint.decode()
    told = json.loads(printed)
    return told["service"], told["api"]


def a_question(model: str = MODEL) -> OpenAiChatCompletion:
    message = OpenAiMessage(role="user", content=QUESTION)
    return OpenAiChatCompletion(model=model, messages=[message], max_tokens=50)


async def test_python_chat_arrives_and_is_read_typed(
    mixtral: TestGateway, upstream: FakeUpstream
) -> None:
    answer = await python(mixtral, a_question(), key=await mixtral.key())
    assert upstream.requests[-1].json() == ON_THE_WIRE
    assert answer.choices[0].message.content == f"echo: {QUESTION}"
    assert (answer.choices[0].index, answer.choices[0].finish_reason) == (0, "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.response_status is None


async def test_javascript_chat_arrives_and_is_read(
    mixtral: TestGateway, upstream: FakeUpstream
) -> None:
    service, api = await javascript(mixtral, "chat", key=await mixtral.key())
    assert [request.json() for request in upstream.requests] == [ON_THE_WIRE, ON_THE_WIRE]
    for answer in (service["response"], api["response"]):
        assert answer["choices"][0]["message"]["content"] == f"echo: {QUESTION}"
    assert (api["typed"], api["succeeded"], api["failed"]) == (True, True, False)


async def test_python_members_of_two_words_arrive(
    mixtral: TestGateway, upstream: FakeUpstream
) -> None:
    request = a_question()
    request.top_p, request.presence_penalty, request.stop = 0.5, 0.25, ["\n"]
    await python(mixtral, request)
    more = {"top_p": 0.5, "presence_penalty": 0.25, "stop": ["\n"]}
    assert upstream.requests[-1].json() == ON_THE_WIRE | more


async def test_wrong_key_raises_in_python(mixtral: TestGateway) -> None:
    for key in (WRONG, None):
        error = await failure(mixtral, a_question(), key=key)
        assert error.status_code == 401
        assert error.response_status.error_code == "Unauthorized"
        assert error.response_status.message


async def test_wrong_key_is_told_in_javascript(mixtral: TestGateway) -> None:
    service, api = await javascript(mixtral, "chat", key=WRONG)
    thrown = service["thrown"]["responseStatus"]
    assert thrown["errorCode"] == "Unauthorized"
    assert thrown["message"]
    assert api["error"] == thrown
    assert (api["failed"], api["errorCode"]) == (True, "Unauthorized")
    assert api["errorMessage"] == thrown["message"]


async def test_fields_are_named_to_python(mixtral: TestGateway) -> None:
    error = await failure(mixtral, OpenAiChatCompletion(max_tokens=5))
    assert error.status_code == 400
    status = error.response_status
    assert {e.field_name for e in status.errors} == {"Messages", "Model"}
    assert all(e.error_code and e.message for e in status.errors)
    assert (status.error_code, status.message) == (
        status.errors[0].error_code,
        status.errors[0].message,
    )


async def test_fields_are_named_to_javascript(mixtral: TestGateway) -> None:
    service, api = await javascript(mixtral, "invalid")
    status = service["thrown"]["responseStatus"]
    assert [e["fieldName"] for e in status["errors"]] == ["Messages"]
    assert status["errorCode"] == "NotEmpty"
    assert api["error"] == status
    assert api["messages"] == [status["errors"][0]["message"]]


async def test_unknown_model_is_not_found_in_both(mixtral: TestGateway) -> None:
    error = await failure(mixtral, a_question("nope"))
    assert (error.status_code, error.response_status.error_code) == (404, "NotFound")
    assert "nope" in error.response_status.message
    service, api = await javascript(mixtral, "unknown")
    assert service["thrown"]["responseStatus"]["errorCode"] == "NotFound"
    assert (api["errorCode"], api["errorMessage"]) == (
        "NotFound",
        error.response_status.message,
    )


async def test_hello_is_greeted_over_get(gateway: TestGateway) -> None:
    assert (await python(gateway, Hello(name="World & more"), key=None)).result == (
        "Hello, World & more!"
    )
    service, api = await javascript(gateway, "hello")
    for told in (service, api):
        assert told["response"] == {"result": "Hello, World & more!"}


@pytest.fixture
async def three(gateway: TestGateway) -> list[int]:
    """The ids of providers a, b and c."""
    nowhere = "http://127.0.0.1:9"
    return [await gateway.provider(name, nowhere) for name in ("a", "b", "c")]


async def test_providers_are_read_typed_in_python(gateway: TestGateway, three: list[int]) -> None:
    page = await python(gateway, QueryAiProviders(take=2, order_by="-name"))
    assert [p.name for p in page.results] == ["c", "b"]
    first = page.results[0]
    assert (first.id, first.enabled, first.api_key) == (three[2], True, None)
    assert first.ai_type.provider is AiProviderType.CUSTOM_OPEN_AI_PROVIDER
    assert first.models[0].model == "fake-model"
    assert first.created_date.year >= 2025
    assert first.offline_date is None
    assert (page.offset, page.response_status) == (0, None)


async def test_providers_are_read_in_javascript(gateway: TestGateway, three: list[int]) -> None:
    service, api = await javascript(gateway, "providers")
    for told in (service["response"], api["response"]):
        assert [p["name"] for p in told["results"]] == ["c"]
        assert told["results"][0]["id"] == three[2]


async def left(gateway: TestGateway) -> list[int]:
    page = await python(gateway, QueryAiProviders())
    return [p.id for p in page.results]


async def test_call_without_an_answer_returns_in_both(
    gateway: TestGateway, three: list[int]
) -> None:
    first, second, third = three
    assert await python(gateway, DeleteAiProvider(id=first)) is None
    assert await left(gateway) == [second, third]
    service, api = await javascript(gateway, "delete", second, third)
    assert service == {"response": None}
    assert (api["succeeded"], api["failed"]) == (True, False)
    assert await left(gateway) == []


async def test_call_without_an_answer_fails_typed(gateway: TestGateway) -> None:
    error = await failure(gateway, DeleteAiProvider(id=99))
    assert (error.status_code, error.response_status.error_code) == (404, "NotFound")
    service, api = await javascript(gateway, "delete", 98, 99)
    assert service["thrown"]["responseStatus"]["errorCode"] == "NotFound"
    assert (api["failed"], api["errorCode"]) == (True, "NotFound")
