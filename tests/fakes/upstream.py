"""An OpenAI-compatible upstream on a loopback socket that can fail in every way we must survive.

A script answers one request. Tests queue scripts with `FakeUpstream.next`, or name one in the
request's model as `fault:NAME` (the names are the keys of `FAULTS`).
"""

import asyncio
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

PATIENCE = 10.0


class Occurrences:
    """Counts something that happens in the fake; tests await the count instead of sleeping."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        self.count += 1
        self._changed.set()

    async def reach(self, count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


class Disconnected(Exception):
    """The client went away while its request was being answered."""


class Exchange(asyncio.Protocol):
    """One connection; for a script, the request in hand and the means to answer it."""

    transport: asyncio.Transport
    request: Request

    def __init__(self, fake: "FakeUpstream") -> None:
        self.fake = fake
        self.gone = asyncio.Event()
        self.written = 0
        self._keep = True
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast(asyncio.Transport, transport)
        # Every byte has left when `send` returns, so that a reset cannot overtake the answer.
        opened.set_write_buffer_limits(high=1, low=0)
        self.transport = opened
        self.fake.connected(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()

    def eof_received(self) -> None:
        self.gone.set()
        self._arrived.set()
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof_received()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        if self.gone.is_set():
            raise Disconnected
        self.transport.write(data)
        self.written += len(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self.gone.is_set():
                raise Disconnected

    async def head(self, status: int, *headers: str, reason: str = "Answer") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", *headers]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def answer(self, status: int, body: bytes, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Answer", *headers, f"Content-Length: {len(body)}"]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def start_stream(self) -> None:
        await self.head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked")

    async def chunk(self, data: bytes, extension: bytes = b"") -> None:
        await self.send(b"%x%b\r\n%b\r\n" % (len(data), extension, data))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def until_gone(self) -> None:
        await self.gone.wait()
        raise Disconnected

    def close(self) -> None:
        """After what was written has left."""
        self._keep = False
        self.transport.close()

    def reset(self) -> None:
        self._keep = False
        handle = self.transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def serve(self) -> None:
        try:
            while self._keep and not self.gone.is_set():
                await self._serve_one()
        except Disconnected:
            self.transport.abort()
        except BaseException:
            self.transport.abort()
            raise

    async def _serve_one(self) -> None:
        try:
            head = await self._take_head()
        except Disconnected:
            self.transport.close()
            return
        line, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = [
            (name, value.strip()) for name, _, value in (item.partition(":") for item in rest)
        ]
        self.request = Request(method, path, headers, b"")
        length = int(self.request.header("content-length") or 0)
        queued = self.fake.queue.popleft() if self.fake.queue else None
        self.fake.started.add()
        if isinstance(queued, EarlyAnswer):
            await self._run(queued)
            return
        self.request = Request(method, path, headers, await self._take(length))
        self.fake.requests.append(self.request)
        self.fake.received.add()
        await self._run(queued or self._named_script())

    def _named_script(self) -> "Script":
        if self.request.body.startswith(b"{"):
            model = str(self.request.json().get("model", ""))
            if model.startswith("fault:"):
                return FAULTS[model.removeprefix("fault:")]
        return answer_normally

    async def _run(self, script: "Script") -> None:
        try:
            await script(self)
        except Disconnected:
            self.fake.cancelled.add()
            raise

    async def _take_head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        end = self._buffer.index(b"\r\n\r\n")
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    async def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            await self._more()
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    async def _more(self) -> None:
        if self.gone.is_set():
            raise Disconnected
        self._arrived.clear()
        await self._arrived.wait()


Script = Callable[[Exchange], Awaitable[None]]


class FakeUpstream:
    """Use as `async with FakeUpstream() as fake`; then `fake.base_url` is its address."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.queue: deque[Script] = deque()
        self.started = Occurrences()
        self.received = Occurrences()
        self.cancelled = Occurrences()
        self.connections = Occurrences()
        self.exchanges: list[Exchange] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Exchange(self), "127.0.0.1", 0, ssl=self._tls
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        scheme = "http" if self._tls is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for exchange in self.exchanges:
            exchange.transport.abort()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(exchange.gone.wait() for exchange in self.exchanges))
        await self._server.wait_closed()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def stop_listening(self) -> None:
        """New connections are refused from here on; those that are open stay."""
        self._server.close()

    def next(self, *scripts: Script | str) -> None:
        """The coming requests are answered by these, in this order."""
        self.queue.extend(FAULTS[item] if isinstance(item, str) else item for item in scripts)

    def connected(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.connections.add()
        task = asyncio.get_running_loop().create_task(exchange.serve())
        self._tasks.add(task)


def closed_port() -> int:
    """A loopback port that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def sse(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def echo_text(request: Request) -> str:
    """The whole of the last user message, so that an answer to another question shows."""
    messages: list[dict[str, Any]] = request.json()["messages"]
    content = next(item["content"] for item in reversed(messages) if item["role"] == "user")
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    return f"echo: {content}"


def usage_of(request: Request) -> dict[str, int]:
    prompt = sum(len(str(item["content"]).split()) for item in request.json()["messages"])
    completion = len(echo_text(request).split())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(request: Request) -> dict[str, Any]:
    message = {"role": "assistant", "content": echo_text(request)}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.json()["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage_of(request),
    }


def stream_frames(request: Request) -> list[bytes]:
    """Every frame of a streamed answer, `[DONE]` included."""
    asked = request.json()
    with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))

    def frame(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        payload: dict[str, Any] = {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": asked["model"],
            "choices": choices,
        }
        return sse(payload | {"usage": usage} if with_usage else payload)

    def delta(content: dict[str, str], finish: str | None = None) -> bytes:
        return frame([{"index": 0, "delta": content, "finish_reason": finish}])

    text = echo_text(request)
    frames = [delta({"role": "assistant", "content": ""})]
    frames += [delta({"content": text[at : at + 8]}) for at in range(0, len(text), 8)]
    frames.append(delta({}, "stop"))
    if with_usage:
        frames.append(frame([], usage_of(request)))
    return [*frames, DONE]


async def answer_normally(exchange: Exchange) -> None:
    request = exchange.request
    if request.method == "GET" and request.path == "/v1/models":
        model = {
            "id": "fake-model",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "fake",
        }
        await status(200, {"object": "list", "data": [model]})(exchange)
    elif request.method != "POST" or request.path != "/v1/chat/completions":
        message = f"no route {request.method} {request.path}"
        await status(404, {"error": {"message": message, "type": "not_found"}})(exchange)
    elif request.json().get("stream"):
        await scripted(stream_frames(request))(exchange)
    else:
        await status(200, completion(request))(exchange)


def status(code: int, payload: object, *headers: str) -> Script:
    """Any status with a JSON body; headers are whole lines such as `Retry-After: 7`."""

    async def script(exchange: Exchange) -> None:
        body = json.dumps(payload).encode()
        await exchange.answer(code, body, "Content-Type: application/json", *headers)

    return script


def raw(data: bytes, *, then: str = "keep") -> Script:
    """Exactly these bytes, then `keep`, `close` or `reset` the connection, or `stall` on it."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        if then == "close":
            exchange.close()
        elif then == "reset":
            exchange.reset()
        elif then == "stall":
            await exchange.until_gone()

    return script


def scripted(frames: Sequence[bytes]) -> Script:
    """Exactly these SSE frames, one HTTP chunk each."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for item in frames:
            await exchange.chunk(item)
        await exchange.end_stream()

    return script


class Slow:
    """The normal stream, of which each call of `release` lets some more frames go."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(0)

    def release(self, frames: int = 1) -> None:
        for _ in range(frames):
            self._permits.release()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.start_stream()
        for item in stream_frames(exchange.request):
            permit = asyncio.ensure_future(self._permits.acquire())
            gone = asyncio.ensure_future(exchange.gone.wait())
            try:
                await asyncio.wait((permit, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                permit.cancel()
                gone.cancel()
            await exchange.chunk(item)
        await exchange.end_stream()


def error_in_stream(*, after: int, payload: object | None = None) -> Script:
    """Status 200, so many good frames, then an error frame and the end."""
    error = payload or {"error": {"message": "the model fell over", "type": "server_error"}}

    async def script(exchange: Exchange) -> None:
        await scripted([*stream_frames(exchange.request)[:after], sse(error)])(exchange)

    return script


class EarlyAnswer:
    """Answers on the request's head and never reads its body."""

    def __init__(self, code: int = 413) -> None:
        self._code = code

    async def __call__(self, exchange: Exchange) -> None:
        exchange.transport.pause_reading()
        await exchange.answer(self._code, b'{"error": {"message": "too large"}}')
        await exchange.until_gone()


async def stall(exchange: Exchange) -> None:
    await exchange.until_gone()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def reset_mid_body(exchange: Exchange) -> None:
    await exchange.head(200, "Content-Type: application/json", "Content-Length: 100")
    await exchange.send(b'{"half": ')
    exchange.reset()


async def stall_mid_stream(exchange: Exchange) -> None:
    await exchange.start_stream()
    for item in stream_frames(exchange.request)[:2]:
        await exchange.chunk(item)
    await exchange.until_gone()


async def truncated(exchange: Exchange) -> None:
    await exchange.head(200, "Content-Type: application/json", "Content-Length: 100")
    await exchange.send(b'{"half": ')
    exchange.close()


async def truncated_stream(exchange: Exchange) -> None:
    await exchange.start_stream()
    for item in stream_frames(exchange.request)[:2]:
        await exchange.chunk(item)
    exchange.close()


async def invalid_json(exchange: Exchange) -> None:
    await exchange.answer(200, b'{"choices": [', "Content-Type: application/json")


async def huge_error(exchange: Exchange) -> None:
    body = b'{"error": {"message": "' + b"x" * 10 * 1024 * 1024 + b'"}}'
    await exchange.answer(500, body, "Content-Type: application/json")


async def redirect(exchange: Exchange) -> None:
    await exchange.answer(302, b"", "Location: http://elsewhere.invalid/v1/chat/completions")


async def no_done(exchange: Exchange) -> None:
    await scripted(stream_frames(exchange.request)[:-1])(exchange)


async def interim_first(exchange: Exchange) -> None:
    await exchange.head(100, reason="Continue")
    await exchange.head(103, "Link: </style.css>; rel=preload", reason="Early Hints")
    await answer_normally(exchange)


async def chunk_extensions(exchange: Exchange) -> None:
    await exchange.start_stream()
    for item in stream_frames(exchange.request):
        await exchange.chunk(item, b';name=value;quoted="a;b"')
    await exchange.send(b"0;last\r\nX-Trailer: yes\r\n\r\n")


async def garbage_after(exchange: Exchange) -> None:
    body = json.dumps(completion(exchange.request)).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    await exchange.send(head + body + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")


FAULTS: dict[str, Script] = {
    "normal": answer_normally,
    "stall": stall,
    "stall-mid-stream": stall_mid_stream,
    "reset": reset,
    "reset-mid-body": reset_mid_body,
    "truncated": truncated,
    "truncated-stream": truncated_stream,
    "invalid-json": invalid_json,
    "huge-error": huge_error,
    "redirect": redirect,
    "rate-limited": status(
        429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, "Retry-After: 7"
    ),
    "server-error": status(500, {"error": {"message": "broken", "type": "server_error"}}),
    "error-first": error_in_stream(after=0),
    "error-in-stream": error_in_stream(after=2),
    "no-done": no_done,
    "interim-first": interim_first,
    "chunk-extensions": chunk_extensions,
    "garbage-after": garbage_after,
}
