"""The HTTP protocol: uvicorn's parser with our header names, our bounds and the hot lane."""

import asyncio
import urllib.parse
from typing import Any, cast

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from aiserver.contract.errors import ApiError, InvalidRequest, RequestTimeout, TooBusy
from aiserver.contract.trace import Trace
from aiserver.doors.cycle import Cycle
from aiserver.doors.deadline import Deadline
from aiserver.doors.heads import Asked
from aiserver.doors.lane import Lane, LaneCall
from aiserver.doors.problems import body_of, both
from aiserver.doors.replies import Pairs

# A client that stops reading in the middle of its answer would hold its slot for ever.
_STUCK_WRITE_SECONDS = 60.0
_MOST_PIPELINED = 100
_CONTINUE = b"100-continue"


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
        self._asked: Asked | None = None
        self._quiet = True
        self._declined: Cycle | None = None
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
        if self._declined is not None and not self._declined.response_complete:
            self._declined.disconnected = True
            self._declined.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        quiet, self._quiet = self._quiet, False
        if quiet and self._lane is not None and self._at_once(self._lane, data):
            return
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        self._asked = None if quiet else self._asked
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
            elif quiet and self._lane is not None:
                self._remember(self._lane, data)

    def _at_once(self, lane: Lane, data: bytes) -> bool:
        """Whether this is a request that came before, which the lane takes without a look."""
        known = lane.known(data)
        if known is not None:
            self._in_head = False
            self._deadline.clear()
            self._serve(*known)
            return True
        if self.flow.write_paused or not lane.answered(self, data):
            return False
        self._in_head = False
        self.on_response_complete()
        return True

    def _remember(self, lane: Lane, data: bytes) -> None:
        """What came alone and whole; of a GET the gateway learns it with the call."""
        cycle = cast("Cycle | None", self.cycle)
        if self._asked is not None:
            lane.heads.keep(data, self._asked)
        elif cycle is not None and cycle.keep_alive and cycle.scope["method"] == "GET":
            cast("dict[str, Any]", cycle.scope)["request"] = data

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
        self._wait_for_body()
        lane = self._lane
        if lane is not None and self.url in lane.paths and self._free() and self._plain():
            keep_alive = self.parser.should_keep_alive()
            asked = lane.taken(self.url, self.headers, keep_alive=keep_alive)
            if asked is not None:
                self._asked, self._pieces = asked, []
                return
        parser = self.parser
        scope = self._scope(self.url, self.headers, parser.get_method(), parser.get_http_version())
        self._queue(self._cycle_of(scope, keep_alive=parser.should_keep_alive()))

    def on_body(self, body: bytes) -> None:
        if self._pieces is None:
            super().on_body(body)
        elif self._lane is not None:
            self._lane.hold(self._pieces, body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._deadline.clear()
        pieces, self._pieces = self._pieces, None
        if pieces is None or self._asked is None:
            super().on_message_complete()
            return
        self._serve(self._asked, pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _serve(self, asked: Asked, body: bytes) -> None:
        if self._lane is not None:
            self._asked, self.keep_alive = asked, asked.keep_alive
            call = self._lane.serve(self, asked, body)
            if call is not None and not call.done:
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
            self._quiet = not (self._in_head or self._in_body)
            self._deadline.set(self._limits.keep_alive_seconds, self.transport.close)

    def shutdown(self) -> None:
        if self._call is not None:
            self.keep_alive = False
        else:
            self._flush()
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
            self._flush()
            self.transport.close()

    def lane_declined(self, body: bytes, trace: Trace | None) -> None:
        """The slow path takes this call on with its bytes, and with what is known of it."""
        self._call = None
        # What it asked for, and not what a request behind it has brought meanwhile.
        asked = cast("Asked", self._asked).measured(len(body))
        scope = self._scope(asked.url, asked.headers, b"POST", "1.1")
        scope["trace"] = trace
        cycle = self._declined = self._cycle_of(scope, keep_alive=self.keep_alive)
        cycle.body = bytearray(body)
        cycle.more_body = False
        cycle.message_event.set()
        if not self.pipeline:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.config.gateway)

    def _flush(self) -> None:
        """What was answered before goes out first."""
        if self._lane is not None:
            self._lane.writes.flush()

    def _free(self) -> bool:
        if self._call is not None or self.pipeline:
            return False
        running = (cast("Cycle | None", self.cycle), self._declined)
        return all(cycle is None or cycle.response_complete for cycle in running)

    def _plain(self) -> bool:
        return self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1"

    def _scope(self, url: bytes, headers: Pairs, method: bytes, version: str) -> dict[str, Any]:
        return {
            **_addressed(url),
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": headers,
            "state": {},
            "method": method.decode("ascii"),
            "trace": None,
        }

    def _cycle_of(self, scope: dict[str, Any], *, keep_alive: bool) -> Cycle:
        headers = scope["headers"]
        return Cycle(
            scope=cast("Any", scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=any(n == b"expect" and v.lower() == _CONTINUE for n, v in headers),
            keep_alive=keep_alive and scope["http_version"] == "1.1",
            on_response=self.on_response_complete,
        )

    def _queue(self, cycle: Cycle) -> None:
        """Gives a request to the application, or has it wait for the one before."""
        free = self._free()
        if not free and len(self.pipeline) >= _MOST_PIPELINED:
            raise TooBusy(f"At most {_MOST_PIPELINED} requests may wait on one connection.")
        self.cycle = cycle
        if free:
            self._start_asgi_task(cycle, self.config.gateway)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.config.gateway))

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
        self._flush()
        body = body_of(both(error, str))
        status = STATUS_LINE[error.http_status]
        head = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(status + head % len(body) + body)
        self.transport.close()


def _addressed(asked: bytes) -> dict[str, Any]:
    """The parts of a scope that a request's address gives."""
    url = httptools.parse_url(asked)
    raw = url.path or b"/"
    path = urllib.parse.unquote(raw.decode("ascii"), errors="replace")
    return {"path": path, "raw_path": raw, "query_string": url.query or b""}
