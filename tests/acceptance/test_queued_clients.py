"""The queued chats that introductions show, through the typed client for Python."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from servicestack import JsonServiceClient

from clients.python_dtos import (
    BackgroundJobState,
    GetOpenAiChatStatus,
    OpenAiChat,
    OpenAiMessage,
    QueueOpenAiChatCompletion,
)
from fakes.receiver import Receiver
from fakes.upstream import FakeUpstream, status
from gateway import TestGateway, running

MODEL = "gpt-4-turbo"
QUESTION = "What's the capital of France?"
WAITING = (BackgroundJobState.QUEUED, BackgroundJobState.STARTED)


def a_chat(**more: Any) -> QueueOpenAiChatCompletion:
    messages = [
        OpenAiMessage(role="system", content="You are a helpful assistant."),
        OpenAiMessage(role="user", content=QUESTION),
    ]
    return QueueOpenAiChatCompletion(
        request=OpenAiChat(model=MODEL, messages=messages, max_tokens=50), **more
    )


def queued_and_polled(url: str, key: str, request: QueueOpenAiChatCompletion) -> tuple[Any, Any]:
    """The example as it stands: queue, then ask for the status while the job is not done."""
    client: Any = JsonServiceClient(url)
    client.bearer_token = key
    try:
        queued = client.post(request)
        while True:
            found = client.get(GetOpenAiChatStatus(ref_id=queued.ref_id))
            if found.job_state not in WAITING:
                return queued, found
    finally:
        client._session.close()


async def test_queued_chat_is_polled_to_its_answer(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.provider("fake", upstream.base_url, models=[{"model": MODEL}])
    key = await gateway.key()
    queued, found = await asyncio.to_thread(queued_and_polled, gateway.url, key, a_chat())
    assert found.job_state == BackgroundJobState.COMPLETED
    assert (found.job_id, found.ref_id) == (queued.id, queued.ref_id)
    assert found.result.choices[0].message.content == f"echo: {QUESTION}"


async def test_failed_chat_says_why(gateway: TestGateway, upstream: FakeUpstream) -> None:
    await gateway.provider("fake", upstream.base_url, models=[{"model": MODEL}])
    upstream.next(status(400, {"error": {"message": "too long", "type": "invalid_request_error"}}))
    key = await gateway.key()
    _, found = await asyncio.to_thread(queued_and_polled, gateway.url, key, a_chat())
    assert found.job_state == BackgroundJobState.FAILED
    assert "too long" in found.response_status.message


async def test_callback_reaches_its_address_with_its_query(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with running(tmp_path / "data", migrated, OUTBOUND_ALLOW="127.0.0.1") as gateway:
        await gateway.provider("fake", upstream.base_url, models=[{"model": MODEL}])
        key = await gateway.key()
        path = "/api/OpenAiChatResponseCallback?CorrelationId=b5c1"
        async with Receiver() as receiver:
            request = a_chat(reply_to=f"http://127.0.0.1:{receiver.port}{path}")
            await asyncio.to_thread(queued_and_polled, gateway.url, key, request)
            await receiver.reach(1)
            [call] = receiver.received
    assert (call.verb, call.path) == ("POST", path)
    body = msgspec.json.decode(call.body)
    assert body["choices"][0]["message"]["content"] == f"echo: {QUESTION}"
