"""The receiver of callbacks does to a plain client what the tests believe it does."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook

from fakes.receiver import BROKEN, GONE, SILENT, Answer, Receiver, busy, redirect

SECRET = "whsec_" + "c2VjcmV0" * 5
BODY = b'{"a": 1}'


async def post(
    receiver: Receiver, body: bytes = BODY, *, signed_with: str = SECRET, at: float | None = None
) -> bytes:
    """The raw answer of one request."""
    moment = datetime.fromtimestamp(time.time() if at is None else at, tz=UTC)
    signature = Webhook(signed_with).sign("msg_1", moment, body.decode())
    reader, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
    head = [
        *("POST /hook?a=1 HTTP/1.1", "Host: a.test", f"Content-Length: {len(body)}"),
        *("Webhook-Id: msg_1", f"Webhook-Timestamp: {int(moment.timestamp())}"),
        f"Webhook-Signature: {signature}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_requests_are_kept_and_thanked() -> None:
    async with Receiver() as receiver:
        answer = await post(receiver)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nthanks")
        [got] = receiver.received
        assert (got.verb, got.path, got.id) == ("POST", "/hook?a=1", "msg_1")
        assert json.loads(got.body) == {"a": 1}
        assert not got.verified


async def test_signatures_are_checked() -> None:
    async with Receiver(secret=SECRET) as receiver:
        await post(receiver)
        await post(receiver, signed_with="whsec_" + "b3RoZXIh" * 5)
        await post(receiver, at=time.time() - 301)
        assert [got.verified for got in receiver.received] == [True, False, False]


async def test_signatures_are_checked_at_the_time_of_the_test() -> None:
    later = datetime.now(UTC) + timedelta(days=3)
    async with Receiver(secret=SECRET, now=lambda: later) as receiver:
        await post(receiver)
        await post(receiver, at=later.timestamp())
        assert [got.verified for got in receiver.received] == [False, True]


@pytest.mark.parametrize(
    ("answer", "head", "line"),
    [
        (BROKEN, b"HTTP/1.1 500 ", b""),
        (GONE, b"HTTP/1.1 410 ", b""),
        (busy("7"), b"HTTP/1.1 429 ", b"\r\nRetry-After: 7\r\n"),
        (busy("7", 503), b"HTTP/1.1 503 ", b"\r\nRetry-After: 7\r\n"),
        (redirect("/x"), b"HTTP/1.1 302 ", b"\r\nLocation: /x\r\n"),
    ],
)
async def test_queued_answer_comes_once(answer: Answer, head: bytes, line: bytes) -> None:
    async with Receiver() as receiver:
        receiver.next(answer)
        said = await post(receiver)
        assert said.startswith(head)
        assert line in said
        assert (await post(receiver)).startswith(b"HTTP/1.1 200 ")


async def test_silent_receiver_reads_and_says_nothing() -> None:
    async with Receiver() as receiver:
        receiver.next(SILENT)
        waiting = asyncio.create_task(post(receiver))
        await receiver.reach(1)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_receiver_comes_back_on_its_port() -> None:
    async with Receiver() as receiver:
        receiver.next(SILENT)
        dropped = asyncio.create_task(post(receiver))
        await receiver.reach(1)
        await receiver.down()
        assert await dropped == b""
        with pytest.raises(ConnectionRefusedError):
            await post(receiver)
        await receiver.up()
        assert (await post(receiver)).startswith(b"HTTP/1.1 200 ")
