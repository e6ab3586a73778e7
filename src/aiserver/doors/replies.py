"""Writes answers: JSON or CSV, nothing, or a stream of events that ends with its reader."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from aiserver.contract.errors import ApiError
from aiserver.contract.operation import (
    Answer,
    Content,
    EventStream,
    JsonBytes,
    StreamForm,
    WithCookies,
    WithHeaders,
)
from aiserver.contract.trace import Trace
from aiserver.doors.body import ClientGone, Receive
from aiserver.doors.cookies import set_cookie
from aiserver.doors.encoding import Encode, to_json
from aiserver.doors.lifecycle import Stopping
from aiserver.doors.problems import Problem, body_of
from aiserver.doors.timing import server_timing

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Pairs = list[tuple[bytes, bytes]]
Fail = Callable[[ApiError], Problem]

_JSON = (b"Content-Type", b"application/json; charset=utf-8")
_TIMING = b"Server-Timing"
_CSV = (b"Content-Type", b"text/csv; charset=utf-8")
_UNBUFFERED: Pairs = [(b"Cache-Control", b"no-cache"), (b"X-Accel-Buffering", b"no")]
# A file may come from outside: a browser must not run what is in it.
_FILE: Pairs = [
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
# Below this a compressed answer is no smaller on the wire.
_WORTH_COMPRESSING = 1400


class Reply:
    """How to answer one request: its headers, its form, and whether it takes gzip."""

    def __init__(self, send: Send, receive: Receive, headers: Pairs) -> None:
        self._send = send
        self._receive = receive
        self.headers = headers
        self.encode: Encode = to_json
        self.csv = False
        self.gzip = False

    def timed(self, trace: Trace) -> None:
        """Tells what the call took; of a batch, the last of its calls."""
        self.headers = [pair for pair in self.headers if pair[0] != _TIMING]
        self.headers.append((_TIMING, server_timing(trace)))

    async def answer(self, answer: Answer, fail: Fail) -> None:
        """`fail` prints an error that comes when a stream has begun."""
        match answer:
            case None:
                await send_bytes(self._send, 204, self.headers, b"")
            case WithCookies(answer=inner, cookies=cookies):
                self.headers.extend((b"Set-Cookie", set_cookie(cookie)) for cookie in cookies)
                await self.values(inner)
            case WithHeaders(answer=inner, headers=own, status=status):
                self.headers.extend(own)
                body = inner.body if isinstance(inner, JsonBytes) else self.encode(inner)
                await self.json(status, body)
            case Content(body=body, media_type=kind, headers=own):
                about = [(b"Content-Type", kind.encode()), *_FILE, *own, *self.headers]
                await send_bytes(self._send, 200, about, body)
            case EventStream():
                await _send_events(self._send, self._receive, answer, self.headers, fail)
            case JsonBytes(body):
                # A chat's answer goes on as it came: compressing costs more than it saves.
                await send_bytes(self._send, 200, [_JSON, *self.headers], body)
            case _:
                await self.values(answer)

    async def values(self, answer: Any) -> None:
        """Any value of the wire, in the form that was asked for."""
        kind = _CSV if self.csv else _JSON
        await self._whole(200, [kind, *self.headers], self.encode(answer))

    async def json(self, status: int, body: bytes) -> None:
        await self._whole(status, [_JSON, *self.headers], body)

    async def _whole(self, status: int, headers: Pairs, body: bytes) -> None:
        if self.gzip and len(body) >= _WORTH_COMPRESSING:
            body = await asyncio.to_thread(gzip.compress, body, 5)
            headers = [*headers, (b"Content-Encoding", b"gzip"), (b"Vary", b"Accept-Encoding")]
        await send_bytes(self._send, status, headers, body)


async def send_bytes(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    sized = [*headers, (b"Content-Length", str(len(body)).encode())] if status != 204 else headers
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, headers: Pairs, body: bytes) -> None:
    await send_bytes(send, status, [_JSON, *headers], body)


async def _send_events(
    send: Send, receive: Receive, stream: EventStream, headers: Pairs, fail: Fail
) -> None:
    kind = (b"Content-Type", stream.form.value.encode())
    about = [kind, *_UNBUFFERED, *stream.headers, *headers]
    with suppress(ClientGone):
        try:
            await send({"type": "http.response.start", "status": 200, "headers": about})
            await _until_cut_off(send, receive, stream, fail)
        finally:
            stream.close()
        # Last of all, so that who has seen the end finds the slot free and the call settled.
        await send({"type": "http.response.body", "body": b""})


async def _until_cut_off(send: Send, receive: Receive, stream: EventStream, fail: Fail) -> None:
    try:
        await unless_gone(_pump(send, stream, fail), receive)
    except asyncio.CancelledError:
        # Nothing cancels a call but the end of its server.
        await _send_problem(send, stream.form, fail(Stopping()))


async def _pump(send: Send, stream: EventStream, fail: Fail) -> None:
    try:
        async with aclosing(stream.events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    except ApiError as error:
        await _send_problem(send, stream.form, fail(error))


async def _send_problem(send: Send, form: StreamForm, problem: Problem) -> None:
    body = body_of(problem)
    event = body + b"\n" if form is StreamForm.NDJSON else b"data: " + body + b"\n\n"
    await send({"type": "http.response.body", "body": event, "more_body": True})


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
