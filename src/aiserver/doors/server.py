"""The HTTP protocol: uvicorn's parser with our header names, our bounds and the hot lane."""

import asyncio
import urllib.parse
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
from aiserver.contract.trace import Trace
from aiserver.doors.deadline import Deadline
from aiserver.doors.headers import canonical
from aiserver.doors.lane import Lane, LaneCall
from aiserver.doors.problems import body_of, both

# A client that stops reading in the middle of its answer would hold its slot for ever.
_STUCK_WRITE_SECONDS = 60.0
_MOST_PIPELINED = 100


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
    """`lane` is None where every call takes the slow path."""

    def __init__(self, app: Any, limits: Limits, lane: Lane | None = None) -> None:
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
        self.lane = lane


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
        self._in_body = False
        self._refused = False
        self._heard = 0.0
        self._most = self._limits.headers
        limits = self._limits
        tick = min(limits.header_seconds, limits.body_seconds, limits.keep_alive_seconds)
        self._deadline = Deadline(self.loop, tick)
        self._stuck: asyncio.TimerHandle | None = None
        self._lane = self.config.lane
        self._call: LaneCall | None = None
        self._pieces: list[bytes] | None = None
        self._lane_headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.close()
        if self._stuck is not None:
            self._stuck.cancel()
        if self._lane is not None and self._pieces:
            self._lane.free(sum(map(len, self._pieces)))
        if self._call is not None:
            self._call.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, ApiError) else None)
        else:
            if self._in_head:
                if self._head_bytes > self._most:
                    self._refuse(HeadersTooLarge())
            elif self._in_body:
                self._heard = self.loop.time()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._size = 0
        if not self._in_head:
            self._in_head = True
            self._head_bytes = 0
            self._wait_for_head()

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        if self._size > self._most:
            raise HeadersTooLarge()
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > self._most:
            raise HeadersTooLarge()
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_body = True
        self._head_bytes = 0
        self.keep_alive = self.parser.should_keep_alive()
        lane = self._lane
        if lane is not None and self.url in lane.paths and self._free() and self._plain():
            self._lane_headers = headers = dict(self.headers)
            if lane.takes(headers):
                self._pieces = []
                self._wait_for_body()
                return
        self._wait_for_body()
        self._hand_over()

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        elif self._lane is not None:
            self._lane.hold(self._pieces, body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._deadline.clear()
        pieces, self._pieces = self._pieces, None
        if pieces is None or self._lane is None:
            super().on_message_complete()
            return
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        call = self._lane.serve(self, self._lane_headers, self.url, body)
        if call is None:
            self.lane_declined(body, None)
        elif not call.done:
            self._call = call

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            # Nothing more is read until those that wait are answered: reading has no other bound.
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            if self.flow.read_paused:
                self.flow.resume_reading()
            self._deadline.set(self._limits.keep_alive_seconds, self.transport.close)

    def shutdown(self) -> None:
        if self._call is not None:
            self.keep_alive = False
        else:
            super().shutdown()

    @property
    def date(self) -> list[tuple[bytes, bytes]]:
        """The headers that every answer of this second bears."""
        return self.server_state.default_headers

    def lane_done(self) -> None:
        """The lane has written its whole answer."""
        self._call = None
        if self.keep_alive:
            self.on_response_complete()
        else:
            self.transport.close()

    def lane_declined(self, body: bytes, trace: Trace | None) -> None:
        """The slow path takes this call on with its bytes, and with what is known of it."""
        self._call = None
        cycle = self._hand_over(trace)
        cycle.body = bytearray(body)
        cycle.more_body = False
        cycle.message_event.set()

    def _free(self) -> bool:
        previous = cast("Cycle | None", self.cycle)
        done = previous is None or previous.response_complete
        return done and self._call is None and not self.pipeline

    def _plain(self) -> bool:
        return self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1"

    def _hand_over(self, trace: Trace | None = None) -> Cycle:
        """Gives the request to the application, or has it wait for the one before."""
        http_version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        raw_path = url.path or b"/"
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": http_version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": {},
            "method": self.parser.get_method().decode("ascii"),
            "path": urllib.parse.unquote(raw_path.decode("ascii"), errors="replace"),
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "trace": trace,
        }
        expected = any(n == b"expect" and v.lower() == b"100-continue" for n, v in self.headers)
        free = self._free()
        if not free and len(self.pipeline) >= _MOST_PIPELINED:
            raise TooBusy(f"At most {_MOST_PIPELINED} requests may wait on one connection.")
        app = self.config.gateway
        self.cycle = cycle = Cycle(
            scope=cast("Any", scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expected,
            keep_alive=http_version == "1.1" and self.keep_alive,
            on_response=self.on_response_complete,
        )
        if free:
            self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        return cycle

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(_STUCK_WRITE_SECONDS, self.transport.abort)
        if self._call is not None:
            self._call.pause()

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()
        if self._call is not None:
            self._call.resume()

    def _ignore_upgrade(self, rest: bytes) -> None:
        # Offers such as h2c are declined by answering in HTTP/1.1; the parser must go on.
        self.parser = httptools.HttpRequestParser(self)
        self._in_head = True
        if rest:
            self.data_received(rest)

    def _wait_for_head(self) -> None:
        self._deadline.set(self._limits.header_seconds, self._too_slow)

    def _wait_for_body(self) -> None:
        self._deadline.set(self._limits.body_seconds, self._body_is_silent)

    def _body_is_silent(self) -> None:
        left = self._heard + self._limits.body_seconds - self.loop.time()
        if self.flow.read_paused:
            left = self._limits.body_seconds
        if left > 0:
            self._deadline.set(left, self._body_is_silent)
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        if self._in_head and self._head_bytes == 0:
            self.transport.close()
        else:
            self._refuse(RequestTimeout())

    def _refuse(self, error: ApiError | None) -> None:
        """Ends the connection; with an answer, unless another answer is on its way."""
        self._refused = True
        self._deadline.clear()
        if self._call is not None:
            # The answer that is on its way goes out whole; then the connection closes.
            self.keep_alive = False
            return
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
