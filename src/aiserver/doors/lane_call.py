"""One call of the hot lane: takes the upstream's answer as it arrives and writes it on."""

from typing import Any, Protocol

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.openai import OpenAiAdapter, OpenAiReader
from aiserver.chat.failures import Failure, refused, unreachable
from aiserver.chat.outcomes import Tries
from aiserver.chat.relay import MAX_ANSWER, MAX_HELD, replayed
from aiserver.contract.trace import Trace
from aiserver.doors.lifecycle import Stopping
from aiserver.doors.problems import body_of, both
from aiserver.doors.replies import Pairs
from aiserver.doors.timing import server_timing
from aiserver.kit.redact import Redactor
from aiserver.kit.upstream import Connection, Timeouts, UpstreamError, UpstreamReset
from aiserver.kit.writes import Writes
from aiserver.providers.pool import Lease
from aiserver.settlement import Settlement

_WHOLE = b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n"
_STREAMED = (
    b"Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"
# So much held unread makes a connection stop reading.
_FULL = 1 << 40
# An upstream that has said its last word ends its answer at once, or is not asked again.
_LAST_BYTES_SECONDS = 1.0
_ADAPTER = OpenAiAdapter()


class Client(Protocol):
    """The connection that a call came on; `date` are the headers of this second."""

    transport: Any
    client: tuple[str, int] | None
    keep_alive: bool

    @property
    def date(self) -> Pairs: ...

    def lane_done(self) -> None: ...

    def lane_declined(self, body: bytes, trace: Trace | None) -> None: ...


class Owner(Protocol):
    """What all calls of the lane share."""

    running: "set[LaneCall]"
    settlement: Settlement
    redact: Redactor
    writes: Writes

    def date(self, headers: Pairs) -> bytes: ...

    def free(self, size: int) -> None: ...


class LaneCall:
    """Begins with `begin` and is over once `done`.

    `status`, `buffered`, `start`, `feed` and `end` are for the upstream's connection.
    """

    takes_whole = True

    __slots__ = (
        *("_body", "_chat", "_client", "_connection", "_headers", "_held", "_lease"),
        *(
            "_owner",
            "_size",
            "_started",
            "_trace",
            "_tries",
            "buffered",
            "done",
            "reader",
            "status",
        ),
    )

    def __init__(
        self,
        owner: Owner,
        client: Client,
        trace: Trace,
        chat: Chat,
        body: bytes,
        lease: Lease,
        connection: Connection,
    ) -> None:
        self.status = 0
        self.buffered = 0
        self.reader: OpenAiReader | None = None
        self._owner = owner
        self._client = client
        self._trace = trace
        self._chat = chat
        self._body = body
        self._lease = lease
        self._connection = connection
        self._headers: dict[bytes, bytes] = {}
        self._held: list[bytes] = []
        self._size = 0
        self._started = False
        self.done = False
        self._tries = Tries(trace)
        trace.model, trace.streamed = chat.model, chat.stream

    def begin(self, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        """Sends the request; a connection that closed meanwhile gives the call back."""
        self._owner.running.add(self)
        self._tries.begin(self._lease)
        try:
            self._connection.begin(self, head, body, False, timeouts)
        except UpstreamError as error:
            self._failed(error)

    def start(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self._headers = status, headers
        if headers.get(b"content-type", b"").startswith(b"application/json"):
            # An upstream may give a whole answer to who asked for a stream.
            self.reader = None

    def feed(self, data: bytes) -> None:
        if self.done:
            return
        reader = self.reader
        if reader is None or self.status != 200:
            self._size += len(data)
            self._held.append(data)
            if self._size > MAX_ANSWER:
                self._connection.fail(UpstreamReset("the upstream's answer is over the limit"))
            return
        given = reader.feed(data)
        if given:
            self._give(reader, given)
        if reader.failure is not None or reader.finished:
            self._stream_over(reader)

    def feed_chunk(self, framed: bytes, start: int) -> None:
        if self._started and self.reader is not None and self.reader.passes(framed):
            self._write(framed)
        else:
            self.feed(framed[start:-2])

    def whole(self, kind: bytes, body: bytes) -> None:
        if self.reader is None:
            self.status = 200
            self._answer(body)
        else:
            self.start(200, {b"content-type": kind})
            self.feed(body)
            self.end()

    def end(self, error: UpstreamError | None = None) -> None:
        if self.done:
            # The upstream has let go of the call too.
            self._lease.release()
            return
        reader = self.reader
        if error is not None:
            self._failed(error)
        elif self.status != 200:
            self._decline(self._refused())
        elif reader is None:
            self._answer(b"".join(self._held))
        else:
            given = reader.end()
            if given:
                self._give(reader, given)
            self._stream_over(reader)

    def pause(self) -> None:
        """The client reads no more for now."""
        self.buffered = _FULL

    def resume(self) -> None:
        self.buffered = 0
        self._connection.resume()

    def abandon(self) -> None:
        """The client is gone: the upstream is told at once, so that it stops its work."""
        self._finish()
        self._tries.abandon(self.reader.usage if self.reader else None)
        self._connection.fail(UpstreamReset("the caller went away"))
        self._lease.release()
        self._owner.settlement.end(self._trace)

    def cut_off(self) -> None:
        """The server stops: its caller is told, by the slow path where nothing was sent yet."""
        self.abandon()
        if not self._started:
            self._client.lane_declined(self._body, self._trace)
            return
        event = b"data: %b\n\n" % body_of(both(Stopping(), self._owner.redact))
        self._write(b"%x\r\n%b\r\n%b" % (len(event), event, _LAST_CHUNK))
        self._client.keep_alive = False
        self._client.lane_done()

    def _give(self, reader: OpenAiReader, given: bytes) -> None:
        if self._started:
            self._write(b"%x\r\n%b\r\n" % (len(given), given))
            return
        self._held.append(given)
        self._size += len(given)
        if reader.begun or reader.finished or self._size > MAX_HELD:
            self._started = True
            self._tries.begun()
            held = b"".join(self._held)
            self._held.clear()
            head = self._head(_STREAMED)
            self._write(b"%b%x\r\n%b\r\n" % (head, len(held), held))

    def _write(self, data: bytes) -> None:
        self._owner.writes.write(self._client.transport, data)

    def _stream_over(self, reader: OpenAiReader) -> None:
        failure = reader.failure
        if failure is not None and not self._started:
            # In this order: a connection that fails tells this call, which must be over then.
            self._decline(failure)
            self._connection.fail(UpstreamReset("the answer was closed before its end"))
            return
        self._finish()
        last = _LAST_CHUNK
        if failure is not None:
            event = b"data: %b\n\n" % body_of(both(failure.error, self._owner.redact))
            last = b"%x\r\n%b\r\n%b" % (len(event), event, _LAST_CHUNK)
            self._connection.fail(UpstreamReset("the answer was closed before its end"))
            self._lease.failed(failure.kind, retry_after=failure.retry_after)
            self._tries.broke(failure, reader.usage)
        else:
            self._lease.succeeded()
            self._tries.done(reader.usage)
        if failure is not None or not self._connection.expect_end(_LAST_BYTES_SECONDS):
            self._lease.release()
        self._owner.settlement.end(self._trace)
        self._write(last)
        self._client.lane_done()

    def _answer(self, body: bytes) -> None:
        try:
            answered = _ADAPTER.answer(body, self._chat, provider=self._lease.provider.name)
            whole = body
            kind = _WHOLE % len(body)
            if self._chat.stream:
                whole = replayed(answered, self._chat, self._lease.provider.name)
                whole = b"%x\r\n%b\r\n%b" % (len(whole), whole, _LAST_CHUNK)
                kind = _STREAMED
        except Failure as failure:
            self._decline(failure)
            return
        self._finish()
        if self._chat.stream:
            self._tries.begun()
        self._tries.done(answered.usage)
        self._lease.succeeded()
        self._lease.release()
        head = self._head(kind)
        self._owner.settlement.end(self._trace)
        self._write(head + whole)
        self._client.lane_done()

    def _head(self, about: bytes) -> bytes:
        client = self._client
        return b"HTTP/1.1 200 OK\r\n%b%bX-Request-Id: %b\r\nServer-Timing: %b\r\n%b\r\n" % (
            self._owner.date(client.date),
            about,
            self._trace.request_id.encode(),
            server_timing(self._trace),
            b"" if client.keep_alive else b"Connection: close\r\n",
        )

    def _failed(self, error: UpstreamError) -> None:
        reader = self.reader
        failure = unreachable(error, self._lease.provider.name)
        if self._started and reader is not None:
            failure.lost = True
            reader.failure = failure
            self._stream_over(reader)
        elif self._connection.was_stale(error):
            # The upstream had closed this connection as idle and never read the request.
            self._tries.undo()
            self._tries.interrupted = (self._lease, None)
            self._hand_over()
        else:
            self._decline(failure)

    def _refused(self) -> Failure:
        answer = _ADAPTER.error(b"".join(self._held), self._headers)
        return refused(self._lease.provider.name, answer.status or self.status, answer)

    def _decline(self, failure: Failure) -> None:
        """The slow path goes on from here, as if this failure had been its own."""
        self._tries.interrupted = (self._lease, failure)
        self._hand_over()

    def _hand_over(self) -> None:
        self._finish()
        self._trace.left = self._tries
        self._client.lane_declined(self._body, self._trace)

    def _finish(self) -> None:
        self.done = True
        self._owner.running.discard(self)
        self._owner.free(len(self._body))
