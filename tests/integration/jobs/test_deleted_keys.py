"""What becomes of the callbacks of an API key that is deleted while they are under way."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from fakes.receiver import BROKEN, Receiver
from gateway import TestGateway, running

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def calling_back(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, OUTBOUND_ALLOW="127.0.0.1") as gateway:
        await gateway.provider("fake", "http://127.0.0.1:1", models=[{"model": "m"}])
        yield gateway


async def cancelled(gateway: TestGateway, receiver: Receiver, *, key: str, then: int = 0) -> None:
    """A job of this key that is cancelled, after its key `then` was deleted where one is named."""
    body = {"request": REQUEST, "refId": "r", "replyTo": receiver.url}
    later = {"Job-Run-After": "500"}
    reply = await gateway.call(
        "POST", "/api/QueueOpenAiChatCompletion", body, key=key, headers=later
    )
    assert reply.status == 200, reply.body
    if then:
        await gateway.call("DELETE", f"/api/AdminDeleteApiKey?id={then}")
    await gateway.call("POST", "/api/CancelJob", {"id": reply.json()["id"]})


async def attempted(gateway: TestGateway, count: int) -> Any:
    """The only callback, once so many attempts of it are in its log."""
    async with asyncio.timeout(10):
        while True:
            reply = await gateway.call("GET", "/api/QueryDeliveries?refId=r")
            rows = reply.json()["results"]
            if rows and rows[0]["attempts"] >= count:
                return rows[0]
            await asyncio.sleep(0.005)


async def test_callback_of_a_deleted_key_verifies_with_its_secret(
    calling_back: TestGateway,
) -> None:
    made = (await calling_back.call("POST", "/api/AdminCreateApiKey", {"name": "app"})).json()
    async with Receiver(secret=made["callbackSecret"]) as receiver:
        receiver.next(BROKEN)
        await cancelled(calling_back, receiver, key=made["result"])
        row = await attempted(calling_back, 1)
        reply = await calling_back.call("DELETE", "/api/AdminDeleteApiKey?id=1")
        assert reply.status == 200
        await calling_back.call("POST", "/api/RedeliverCallback", {"id": row["id"]})
        await receiver.reach(2)
        assert [got.verified for got in receiver.received] == [True, True]


async def test_callback_that_nobody_can_verify_is_not_sent(calling_back: TestGateway) -> None:
    reply = await calling_back.call("POST", "/api/CreateApiKey", {"name": "app"})
    async with Receiver() as receiver:
        await cancelled(calling_back, receiver, key=reply.json()["key"], then=1)
        row = await attempted(calling_back, 1)
        assert "was deleted" in row["log"][0]["error"]
        assert receiver.received == []
    assert await calling_back.rows("SELECT key_id FROM callback_secrets") == []
