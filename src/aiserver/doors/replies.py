"""Writes answers: JSON, nothing, or a stream of events that ends with its reader."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec

from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Answer, EventStream, JsonBytes
from aiserver.doors.body import ClientGone, Receive
from aiserver.doors.problems import body_of

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Pairs = list[tuple[bytes, bytes]]
Fail = Callable[[ApiError], dict[str, Any]]

_JSON = (b"Content-Type", b"application/json; charset=utf-8")
_EVENTS: Pairs = [
    (b"Content-Type", b"text/event-stream; charset=utf-8"),
    (b"Cache-Control", b"no-cache"),
    (b"X-Accel-Buffering", b"no"),
]
_encoder = msgspec.json.Encoder()


async def send_bytes(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    sized = [*headers, (b"Content-Length", str(len(body)).encode())] if status != 204 else headers
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    await send_bytes(send, status, [_JSON, *headers], body)


async def send_answer(
    send: Send, receive: Receive, answer: Answer, headers: Pairs, fail: Fail
) -> None:
    """`fail` prints an error that comes when the stream has begun."""
    match answer:
        case None:
            await send_bytes(send, 204, headers, b"")
        case EventStream():
            await _send_events(send, receive, answer, headers, fail)
        case JsonBytes(body):
            await send_json(send, 200, headers, body)
        case _:
            await send_json(send, 200, headers, _encoder.encode(answer))


async def _send_events(
    send: Send, receive: Receive, stream: EventStream, headers: Pairs, fail: Fail
) -> None:
    try:
        with suppress(ClientGone):
            await unless_gone(_pump(send, stream, headers, fail), receive)
    finally:
        stream.close()


async def _pump(send: Send, stream: EventStream, headers: Pairs, fail: Fail) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*_EVENTS, *headers]})
    try:
        async with aclosing(stream.events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    except ApiError as error:
        event = b"data: " + body_of(fail(error)) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`; it is cancelled and ClientGone raised when the caller hangs up.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
