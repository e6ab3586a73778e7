"""The HTTP protocol: uvicorn's parser and loop, with our header names, bounds and way to stop."""

import asyncio
import socket
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from aiserver.contract.errors import ApiError, InvalidRequest, RequestTimeout, TooBusy
from aiserver.doors.headers import canonical
from aiserver.doors.problems import body_of, both
from aiserver.kit import log

# A client that stops reading in the middle of its answer would hold its slot for ever.
_STUCK_WRITE_SECONDS = 60.0
_MOST_PIPELINED = 100
_log = log.get("doors")


class HeadersTooLarge(ApiError):
    """The request line and headers are larger than this server accepts."""

    status = 431
    code = "RequestHeaderFieldsTooLarge"
    reason = "headers_too_large"


class Limits(msgspec.Struct, frozen=True):
    """Bytes and seconds."""

    headers: int = 32 * 1024
    header_seconds: float = 15.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0
    grace_seconds: float = 30.0


class Config(uvicorn.Config):
    def __init__(self, app: Any, limits: Limits) -> None:
        super().__init__(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.keep_alive_seconds),
            timeout_graceful_shutdown=1,
        )
        self.gateway = app
        self.limits = limits


class Cycle(RequestResponseCycle):
    """One request and its answer, header names written canonically."""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body" and not self.response_complete:
            self._body(message.get("body", b""), last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is out of order")

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        sized = status in (204, 304) or self.scope["method"] == "HEAD"
        for name, value in (*self.default_headers, *headers):
            if b"\n" in value or b"\r" in value:
                raise RuntimeError(f"the header {name!r} holds a line break")
            lowered = name.lower()
            if lowered == b"content-length":
                sized = True
            elif lowered == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (canonical(name), value))
        self.chunked_encoding = not sized and self.scope["http_version"] == "1.1"
        if self.chunked_encoding:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif not sized:
            # HTTP/1.0 knows no chunks: the end of the connection is the end of the answer.
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self.transport.write(b"".join(lines))

    def _body(self, body: bytes, *, last: bool) -> None:
        if self.scope["method"] != "HEAD":
            if self.chunked_encoding:
                end = b"0\r\n\r\n" if last else b""
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + end
            if body:
                self.transport.write(body)
        if last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class HttpProtocol(HttpToolsProtocol):
    """One connection: bounds on headers and on silence, clear answers to what is not HTTP."""

    config: Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limits = self.config.limits
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_timer(None)
        if self._stuck is not None:
            self._stuck.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._heard = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, ApiError) else None)
        else:
            if self._in_head and self._head_bytes > self._limits.headers:
                self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._in_head:
            self._in_head = True
            self._head_bytes = 0
        self._size = 0
        self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._wait_for_body()
        scope = cast("dict[str, Any]", self.scope)
        http_version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        raw_path = url.path or b"/"
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = http_version
        scope["raw_path"] = raw_path
        scope["path"] = urllib.parse.unquote(raw_path.decode("ascii"), errors="replace")
        scope["query_string"] = url.query or b""
        previous = cast("Cycle | None", self.cycle)
        app = self.config.gateway
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=http_version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if previous is None or previous.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            if len(self.pipeline) >= _MOST_PIPELINED:
                self.cycle = previous
                raise TooBusy(f"At most {_MOST_PIPELINED} requests may wait on one connection.")
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def on_message_complete(self) -> None:
        self._set_timer(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        # Nothing more is read until those that wait are answered: reading has no other bound.
        self.server_state.total_requests += 1
        cycle, app = self.pipeline.pop()
        self._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(_STUCK_WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.headers:
            raise HeadersTooLarge()

    def _ignore_upgrade(self, rest: bytes) -> None:
        # Offers such as h2c are declined by answering in HTTP/1.1; the parser must go on.
        self.parser = httptools.HttpRequestParser(self)
        self._in_head = True
        if rest:
            self.data_received(rest)

    def _wait_for_head(self) -> None:
        self._set_timer(self.loop.call_later(self._limits.header_seconds, self._too_slow))

    def _wait_for_body(self) -> None:
        self._set_timer(self.loop.call_later(self._limits.body_seconds, self._body_is_silent))

    def _body_is_silent(self) -> None:
        left = self._heard + self._limits.body_seconds - self.loop.time()
        if self.flow.read_paused:
            left = self._limits.body_seconds
        if left > 0:
            self._set_timer(self.loop.call_later(left, self._body_is_silent))
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        if self._in_head and self._head_bytes == 0:
            self.transport.close()
        else:
            self._refuse(RequestTimeout())

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _refuse(self, error: ApiError | None) -> None:
        """Ends the connection; with an answer, unless another answer is on its way."""
        self._refused = True
        self._set_timer(None)
        error = error or InvalidRequest(
            "This is not a valid HTTP request.", code="BadRequest", reason="malformed_request"
        )
        running = cast("Cycle | None", self.cycle)
        if running is not None and not running.response_complete:
            if running.response_started or self._in_head:
                # The answer to an earlier request goes out whole; then the connection closes.
                running.keep_alive = False
                return
            running.disconnected = True
            running.message_event.set()
        body = body_of(both(error, str))
        status = STATUS_LINE[error.http_status]
        head = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(status + head % len(body) + body)
        self.transport.close()


class Lifecycle:
    """Whether the server takes new calls; doors and the health page look here."""

    def __init__(self) -> None:
        self.draining = False


class Server(uvicorn.Server):
    """Stops in two steps: not ready while running calls finish, then closed."""

    def __init__(self, config: Config, lifecycle: Lifecycle, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._listening = listening
        self._grace = config.limits.grace_seconds
        self._deadline = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    def drain(self) -> None:
        """Takes no new calls; ends when the running ones are done or the grace time is over."""
        self._lifecycle.draining = True
        self._deadline = time.monotonic() + self._grace
        running = len(self.server_state.tasks)
        _log.info("stopping", running_calls=running, grace_seconds=self._grace)

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.draining and (
            not self.server_state.tasks or time.monotonic() > self._deadline
        ):
            self.should_exit = True
        return await super().on_tick(counter)
