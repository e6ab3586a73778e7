"""Chat's own HTTP/1.1 connections to upstreams: pooled, bounded in time and memory.

UpstreamError                `sent`: whether a byte of the request may have reached the upstream
├─ UpstreamRefused           no connection: refused, name not found, TLS
├─ UpstreamReset             the connection ended before a complete answer
│  └─ UpstreamTruncated      ... inside a body whose end was announced
├─ UpstreamTimeout           `phase` says which bound was passed
└─ UpstreamProtocolError     not HTTP, or over a limit
"""
# Response, connection and pool share their inner state here, not with other modules.
# pyright: reportPrivateUsage=false

import asyncio
import ssl
from collections.abc import Iterable
from typing import Literal, Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

Phase = Literal["connect", "first-byte", "gap", "total"]
_HIGH_WATER = 256 * 1024
_JOINED_BODY = 64 * 1024
_OUR_HEADERS = frozenset(
    b"connection content-length expect keep-alive te trailer transfer-encoding upgrade".split()
)


class UpstreamError(Exception):
    """The upstream could not be used; try another one or try again later."""

    def __init__(self, message: str = "", *, sent: bool = True) -> None:
        super().__init__(message or type(self).__doc__)
        self.sent = sent


class UpstreamRefused(UpstreamError):
    """No connection to the upstream; check its address, its certificate and that it runs."""


class UpstreamReset(UpstreamError):
    """The upstream closed the connection before its answer was complete; try again."""


class UpstreamTruncated(UpstreamReset):
    """The upstream sent less than the body it announced; try again."""


class UpstreamTimeout(UpstreamError):
    """The upstream took too long; try again or allow more time"""

    def __init__(self, phase: Phase, *, sent: bool = True) -> None:
        super().__init__(f"{self.__doc__} ({phase}).", sent=sent)
        self.phase: Phase = phase


class UpstreamProtocolError(UpstreamError):
    """The upstream's answer is not HTTP/1.1 or is over a limit; check its address."""


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds; `gap` is between two reads of a body, `total` covers everything."""

    connect: float = 10
    first_byte: float = 300
    gap: float = 120
    total: float = 900


_TIMEOUTS = Timeouts()


class Target(msgspec.Struct, frozen=True):
    host: str
    port: int
    tls: bool
    path: str

    def __repr__(self) -> str:
        # Without the path: some providers take their key in the query.
        return f"Target({self.host}:{self.port}, tls={self.tls})"

    @classmethod
    def parse(cls, url: str) -> Self:
        parts = urlsplit(url)
        tls, port = parts.scheme == "https", parts.port
        # urlsplit silently removes line breaks, so the address is checked as it was given.
        if not all("!" <= letter <= "~" for letter in url) or "@" in parts.netloc:
            raise ValueError("an upstream address is printable ASCII and holds no password")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("write an upstream address as http(s)://host[:port]/path")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)


def _request_head(
    target: Target, method: bytes, headers: Iterable[tuple[bytes, bytes]], length: int
) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    if target.port != (443 if target.tls else 80):
        host = f"{host}:{target.port}"
    ours = {b"host": host.encode(), b"accept-encoding": b"identity"}
    if length or method not in (b"GET", b"HEAD"):
        ours[b"content-length"] = b"%d" % length
    lines = [b"%b %b HTTP/1.1" % (method, target.path.encode())]
    for name, value in headers:
        lowered = name.lower()
        if lowered not in _OUR_HEADERS:
            ours.pop(lowered, None)
            lines.append(b"%b: %b" % (name, value))
    lines.extend(b"%b: %b" % item for item in ours.items())
    head, breaks = b"\r\n".join(lines), len(lines) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise ValueError("a header or a path of a request holds a line break or a NUL")
    return head + b"\r\n\r\n"


class UpstreamResponse:
    """One answer, read by one task at a time; a chunk is whatever arrived since the last one."""

    def __init__(self, connection: "_Connection") -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._connection: _Connection | None = connection
        self._error: UpstreamError | None = None
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None

    async def read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        async for piece in self:
            limit -= len(piece)
            if limit < 0:
                self.close()
                raise UpstreamProtocolError("the upstream's answer is over the limit")
            pieces.append(piece)
        return b"".join(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._connection is None:
                raise self._error or StopAsyncIteration
            await self._wait()
        chunk, self._buffered = b"".join(self._pieces), 0
        self._pieces.clear()
        if self._connection is not None:
            self._connection.resume()
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._pieces.clear()
            self._connection.fail(UpstreamReset("the answer was closed before its end"))

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("an upstream's answer is read by one task at a time")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, error: UpstreamError | None = None) -> None:
        self._connection, self._error = None, error
        self._wake()


class _Connection(asyncio.Protocol):
    _transport: asyncio.Transport

    def __init__(self, pool: "UpstreamPool", origin: tuple[str, int, bool], limit: int) -> None:
        self.origin = origin
        self._pool = pool
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._response: UpstreamResponse | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(
        self, head: bytes, body: bytes, bodiless: bool, timeouts: Timeouts, ends: float
    ) -> UpstreamResponse:
        self.heard = self._keep = self._complete = self._paused = self._framed = False
        if self._transport.is_closing():
            raise UpstreamReset(sent=False)
        self._response = response = UpstreamResponse(self)
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = self._unparsed = 0
        self._bodiless, self._gap = bodiless, timeouts.gap
        self._phase: Phase = "first-byte"
        self.expect_by(self._loop.time() + timeouts.first_byte, ends)
        if len(body) > _JOINED_BODY:
            self._transport.write(head)
            self._transport.write(body)
        else:
            self._transport.write(head + body)
        await response._wait()
        if response._error is not None and not response.status:
            raise response._error
        return response

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            self.expect_by(self._loop.time() + self._gap, self._ends)

    def fail(self, error: UpstreamError) -> None:
        response, self._response = self._response, None
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        if response is not None:
            response._end(error)

    def expect_by(self, deadline: float, ends: float) -> None:
        self._ends, self._deadline = ends, min(deadline, ends)
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline:
            self.expect_by(self._deadline, self._ends)
        else:
            self.fail(UpstreamTimeout("total" if self._deadline == self._ends else self._phase))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc)
        self._pool.lost(self)
        del self._parser  # It holds methods of this object: a cycle for the collector otherwise.

    def eof_received(self) -> None:
        self._finish(None)

    def _finish(self, exc: Exception | None) -> None:
        started = self._response is not None and self._response.status
        if started and not self._framed and exc is None:
            self._complete = True
            self._release(reusable=False)
        else:
            self.fail(UpstreamTruncated() if started and self._framed else UpstreamReset())

    def data_received(self, data: bytes) -> None:
        if self._response is None:  # Nothing was asked: the next answer would be confused with it.
            self.fail(UpstreamReset())
            return
        self.heard, surplus = True, False
        self._unparsed += len(data)
        try:
            # The last byte goes alone: an answer complete without it was followed by something,
            # which the parser does not tell of a line end.
            self._parser.feed_data(memoryview(data)[:-1])
            surplus = self._complete
            self._parser.feed_data(data[-1:])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            surplus = True
            if not self._complete:
                why = error.__context__ or error
                self.fail(UpstreamProtocolError(f"the upstream's answer is invalid: {why}"))
                return
        if self._complete:
            self._release(reusable=self._keep and not surplus)
        elif self._unparsed > self._limit:
            self.fail(UpstreamProtocolError("a line of the upstream's answer is over the limit"))
        elif self._phase == "gap":
            now = self._loop.time()
            self.expect_by(self._ends if self._paused else now + self._gap, self._ends)

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer")

    def _count_header(self, size: int) -> None:
        self._unparsed = 0
        self._header_bytes += size
        if self._header_bytes > self._limit:
            raise ValueError("headers over the limit")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value) + 4)
        name, known = name.lower(), self._headers
        known[name] = b"%b, %b" % (known[name], value) if name in known else value

    def on_headers_complete(self) -> None:
        response, headers = self._response, self._headers
        status = self._parser.get_status_code()
        self._headers = {}
        self._count_header(16)  # A run of bare interim answers has an end too.
        if response is None or status < 200:
            return
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            raise ValueError("a transfer coding other than chunked")
        self._framed = coding is not None or b"content-length" in headers
        # An answer that overtakes its request leaves the rest of that request on the way.
        overtaken = self._transport.get_write_buffer_size() > 0
        self._keep = self._parser.should_keep_alive() and not overtaken
        self._phase = "gap"
        response.status, response.headers = status, headers
        response._wake()
        if self._bodiless:
            self._complete = True
            raise ValueError("stop here: the parser would wait for the body that is not sent")

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        response = self._response
        if response is not None:
            response._pieces.append(body)
            response._buffered += len(body)
            response._wake()
            if response._buffered > _HIGH_WATER and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        self._complete = self._response is not None and self._response.status != 0

    def _release(self, *, reusable: bool) -> None:
        response, self._response = self._response, None
        if not reusable or self._transport.is_closing():
            self.fail(UpstreamReset())
        else:
            if self._paused:
                self._transport.resume_reading()
            self._pool.rested(self)
        if response is not None:
            response._end()


class UpstreamPool:
    """Lives as long as the process; the newest idle connection of an origin is used first."""

    def __init__(
        self,
        *,
        max_idle_per_origin: int = 64,
        idle_seconds: float = 55,
        max_header_bytes: int = 64 * 1024,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_idle = max_idle_per_origin
        self._idle_seconds = idle_seconds
        self._max_header_bytes = max_header_bytes
        self._tls = tls
        self._idle: dict[tuple[str, int, bool], dict[_Connection, None]] = {}
        self._open: set[_Connection] = set()
        self._none_open = asyncio.Event()
        self._closed = False

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    @property
    def open_connections(self) -> int:
        return len(self._open)

    async def send(
        self,
        target: Target,
        *,
        method: bytes = b"POST",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        timeouts: Timeouts = _TIMEOUTS,
    ) -> UpstreamResponse:
        """Redirects are returned, not followed.

        A request is sent twice in one case only: a kept connection ends without any byte of an
        answer. Its server closed it as idle before it read the request, so that sending a chat
        POST again on a fresh connection does not run it twice.
        """
        ends = asyncio.get_running_loop().time() + timeouts.total
        head = _request_head(target, method, headers, len(body))
        request = (head, body, method == b"HEAD", timeouts, ends)
        idle = self._idle.get((target.host, target.port, target.tls))
        kept = idle.popitem()[0] if idle else None
        if kept is not None:
            try:
                return await kept.exchange(*request)
            except UpstreamReset:
                if kept.heard:
                    raise
        try:
            fresh = await self._connect(target, timeouts, ends)
        except UpstreamError as error:
            error.sent = kept is not None
            raise
        return await fresh.exchange(*request)

    async def aclose(self) -> None:
        self._closed = True
        for connection in list(self._open):
            connection.fail(UpstreamReset("the pool of connections was closed"))
        self._none_open.clear()
        if self._open:
            await self._none_open.wait()

    async def _connect(self, target: Target, timeouts: Timeouts, ends: float) -> _Connection:
        loop = asyncio.get_running_loop()
        until = min(loop.time() + timeouts.connect, ends)
        if target.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        origin = (target.host, target.port, target.tls)
        connection = _Connection(self, origin, self._max_header_bytes)
        try:
            async with asyncio.timeout_at(until):
                await loop.create_connection(
                    lambda: connection,
                    target.host,
                    target.port,
                    ssl=self._tls if target.tls else None,
                    server_hostname=target.host if target.tls else None,
                )
        except TimeoutError as error:
            raise UpstreamTimeout("total" if until == ends else "connect") from error
        except (OSError, UnicodeError) as error:
            message = f"no connection to {target.host}:{target.port}: {error}"
            raise UpstreamRefused(message) from error
        if self._closed:
            connection.fail(UpstreamReset())
            raise UpstreamRefused("the pool of connections is closed")
        return connection

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, {})
        idle.pop(connection, None)
        if not idle:
            self._idle.pop(connection.origin, None)
        if not self._open:
            self._none_open.set()

    def rested(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.origin, {})
        idle[connection] = None
        until = asyncio.get_running_loop().time() + self._idle_seconds
        connection.expect_by(until, until)
        if len(idle) > self._max_idle:
            oldest = next(iter(idle))
            del idle[oldest]
            oldest.fail(UpstreamReset())
