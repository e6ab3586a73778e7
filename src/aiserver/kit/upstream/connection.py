"""One connection to an upstream: writes a request, parses its answer, keeps the deadlines."""

import asyncio
import re
from typing import Protocol, cast

import httptools

from aiserver.kit.upstream.errors import (
    Phase,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamReset,
    UpstreamTimeout,
    UpstreamTruncated,
)
from aiserver.kit.upstream.response import UpstreamResponse
from aiserver.kit.upstream.target import Origin, Timeouts
from aiserver.kit.writes import Writes

_HIGH_WATER = 256 * 1024
_JOINED_BODY = 64 * 1024
_FINE = b"HTTP/1.1 200 "
_SIZED = re.compile(rb"\r\ncontent-length: (\d{1,9})\r\n")
_KIND = re.compile(rb"\r\ncontent-type: ([^\r\n]+)")
_BLANK, _BLANK_AND_MORE = b"\r\n\r\n", b"\r\n\r\n\r\n"
# A server that closed an idle connection says so at once; later it may have begun the work.
_STALE_SECONDS = 0.3


class Receiver(Protocol):
    """Whoever takes an answer as it arrives; over 256 kB `buffered` pauses the upstream.

    One that `takes_whole` needs no header of a plain 200 but its content type, in lower case. It
    is told after the connection is free again.
    """

    status: int
    buffered: int
    takes_whole: bool

    def start(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def feed(self, data: bytes) -> None: ...

    def feed_chunk(self, framed: bytes, start: int) -> None:
        """One chunk as it came, its frame too: its data are `framed[start:-2]`."""
        ...

    def whole(self, kind: bytes, body: bytes) -> None:
        """Instead of all others, for one that `takes_whole`."""
        ...

    def end(self, error: UpstreamError | None = None) -> None: ...


class Pool(Protocol):
    """What a connection tells its pool."""

    def opened(self, connection: "Connection") -> None: ...

    def rested(self, connection: "Connection") -> None: ...

    def lost(self, connection: "Connection") -> None: ...

    @property
    def writes(self) -> Writes: ...


class Connection(asyncio.Protocol):
    _transport: asyncio.Transport

    def __init__(self, pool: Pool, origin: Origin, limit: int) -> None:
        self.origin = origin
        self._pool = pool
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._response: Receiver | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(
        self, head: bytes, body: bytes, bodiless: bool, timeouts: Timeouts, ends: float
    ) -> UpstreamResponse:
        """The answer at its first byte. Raises UpstreamError."""
        response = UpstreamResponse(self)
        self.begin(response, head, body, bodiless, timeouts, ends)
        await response.until_started()
        return response

    def begin(
        self,
        receiver: Receiver,
        head: bytes,
        body: bytes,
        bodiless: bool,
        timeouts: Timeouts,
        ends: float | None = None,
    ) -> None:
        """Sends a request; `receiver` is told what comes. Raises UpstreamReset when closed.

        `ends` is when the answer must be complete, by the loop's clock.
        """
        self.heard = self._keep = self._complete = self._paused = self._framed = False
        self._between = self._chunk_over = False
        self.asked_at = now = self._loop.time()
        if self._transport.is_closing():
            raise UpstreamReset(sent=False)
        self._response = receiver
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = self._unparsed = 0
        self._tail = b""
        self._bodiless, self._gap = bodiless, timeouts.gap
        self._phase: Phase = "first-byte"
        self.expect_by(now + timeouts.first_byte, now + timeouts.total if ends is None else ends)
        self._large = len(body) > _JOINED_BODY
        if self._large:
            self._transport.write(head)
            self._transport.write(body)
        else:
            self._pool.writes.write(self._transport, head + body)

    def was_stale(self, error: UpstreamError) -> bool:
        """Whether a kept connection was closed as idle before its server read the request."""
        late = self._loop.time() > self.asked_at + _STALE_SECONDS
        return isinstance(error, UpstreamReset) and not (self.heard or late)

    def expect_end(self, seconds: float) -> bool:
        """The answer says no more: the connection is kept if its end, still out, comes in time."""
        if self._response is None:
            return False
        self.rest(seconds)
        return True

    def rest(self, seconds: float) -> None:
        """Nothing more is asked of it for now; so long it is kept."""
        until = self._loop.time() + seconds
        self.expect_by(until, until)

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
            response.end(error)

    def expect_by(self, deadline: float, ends: float) -> None:
        self._ends, self._deadline = ends, min(deadline, ends)
        # The handle is not asked: uvloop's knows no time for a deadline under 0.5 ms away.
        if self._timer is None or self._fires_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._fires_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline:
            self.expect_by(self._deadline, self._ends)
        else:
            self.fail(UpstreamTimeout("total" if self._deadline == self._ends else self._phase))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

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
        if self._between:
            # The parser waits for a chunk; one that is whole it need not know.
            start = data.find(b"\r\n") + 2
            size = len(data) - start - 2
            if size > 0 and data[: start - 2] == b"%x" % size and data.endswith(b"\r\n"):
                self._take_chunk(data, start)
                return
        elif not self.heard and self._taken_whole(data):
            return
        self.heard, surplus, self._last_piece = True, False, b""
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            surplus = True
            if not self._complete:
                why = error.__context__ or error
                self.fail(UpstreamProtocolError(f"the upstream's answer is invalid: {why}"))
                return
        if self._complete:
            self._release(reusable=self._keep and not surplus and self._ended_with(data))
            return
        self._between = self._chunk_over and data.endswith(b"\r\n")
        self._tail = data[-6:] if len(data) > 5 else (self._tail + data)[-6:]
        if self._unparsed > self._limit:
            self.fail(UpstreamProtocolError("a line of the upstream's answer is over the limit"))
        elif self._phase == "gap":
            now = self._loop.time()
            self.expect_by(self._ends if self._paused else now + self._gap, self._ends)

    def _taken_whole(self, data: bytes) -> bool:
        """Whether this was the whole of an ordinary answer, for which no parser is needed."""
        response = self._response
        if response is None or self._bodiless or not response.takes_whole:
            return False
        end = data.find(_BLANK)
        if end < 0 or end > self._limit or not data.startswith(_FINE):
            return False
        head = data[: end + 2].lower()
        if not _ordinary(head, len(data) - end - 4) or self._transport.get_write_buffer_size():
            return False
        kind = _KIND.search(head)
        self.heard = self._complete = True
        self._rest(reusable=True)
        response.whole(kind[1] if kind else b"", data[end + 4 :])
        return True

    def _take_chunk(self, framed: bytes, start: int) -> None:
        # The timer looks at this when it fires, which is early enough for a later moment.
        until = self._loop.time() + self._gap
        self._deadline = self._ends if self._paused or until > self._ends else until
        self._tail = b""
        response = self._response
        if response is not None:
            response.feed_chunk(framed, start)
            self._pause_if_full(response)

    def _ended_with(self, data: bytes) -> bool:
        """Whether nothing came after the answer: of a line end the parser does not tell."""
        piece = self._last_piece
        if self._sized and piece:
            before = data[: len(data) - len(piece)]
            return data.endswith(piece) and (not before or before.endswith(_BLANK[-len(before) :]))
        tail = data[-6:] if len(data) > 5 else (self._tail + data)[-6:]
        return tail.endswith(_BLANK) and tail != _BLANK_AND_MORE

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unparsed = 0
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._limit:
            raise ValueError("headers over the limit")
        name, known = name.lower(), self._headers
        known[name] = b"%b, %b" % (known[name], value) if name in known else value

    def on_headers_complete(self) -> None:
        response, headers = self._response, self._headers
        status = self._parser.get_status_code()
        self._headers = {}
        self._unparsed = 0
        # A run of bare interim answers has an end too.
        self._header_bytes += 16
        if self._header_bytes > self._limit:
            raise ValueError("headers over the limit")
        if response is None or status < 200:
            return
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            raise ValueError("a transfer coding other than chunked")
        self._sized = coding is None and b"content-length" in headers
        self._framed = coding is not None or self._sized
        # An answer that overtakes its request leaves the rest of that request on the way.
        # Over TLS what is not sent yet cannot be seen: a large body that was refused may be cut.
        overtaken = self._transport.get_write_buffer_size() > 0 or (
            self.origin[2] and self._large and status >= 400
        )
        self._keep = self._parser.should_keep_alive() and not overtaken
        self._phase = "gap"
        response.start(status, headers)
        if self._bodiless:
            self._complete = True
            raise ValueError("stop here: the parser would wait for the body that is not sent")

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        self._last_piece = body
        response = self._response
        if response is not None:
            response.feed(body)
            self._pause_if_full(response)

    def _pause_if_full(self, response: Receiver) -> None:
        if response.buffered > _HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_chunk_header(self) -> None:
        self._chunk_over = False

    def on_chunk_complete(self) -> None:
        self._chunk_over = True

    def on_message_complete(self) -> None:
        self._complete = self._response is not None and self._response.status != 0

    def _release(self, *, reusable: bool) -> None:
        response = self._response
        self._rest(reusable=reusable)
        if response is not None:
            response.end()

    def _rest(self, *, reusable: bool) -> None:
        self._response = None
        if not reusable or self._transport.is_closing():
            self.fail(UpstreamReset())
        else:
            if self._paused:
                self._transport.resume_reading()
            self._pool.rested(self)


def _ordinary(head: bytes, size: int) -> bool:
    """Whether a head, in lower case, says no more of its body than that it has this `size`."""
    length = _SIZED.search(head)
    lines = head.count(b"\r\n")
    return (
        length is not None
        and int(length[1]) == size
        and head.count(b"content-length") == 1
        and head.count(b"connection:") == head.count(b"\r\nconnection: keep-alive\r\n") <= 1
        and b"transfer-encoding" not in head
        and lines == head.count(b"\n") == head.count(b"\r")
        and b"\r\n " not in head
        and b"\r\n\t" not in head
        and b"\0" not in head
    )
