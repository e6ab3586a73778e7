"""A receiver of callbacks on a loopback port: down, slow, refusing or well, and checking signatures.

It answers 200 but for what `next` queued; every request that came whole is in `received`, with
whether `secret` signed it when it came.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from standardwebhooks import Webhook, WebhookVerificationError

PATIENCE = 10.0
TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True)
class Answer:
    """`status` 0 never answers; `endless` sends a body without end."""

    status: int = 200
    headers: tuple[str, ...] = ()
    body: bytes = b"thanks"
    endless: bool = False


OK = Answer()
BROKEN = Answer(500, body=b"it broke")
SILENT = Answer(0)
GONE = Answer(410)


def busy(retry_after: str, status: int = 429) -> Answer:
    return Answer(status, (f"Retry-After: {retry_after}",))


def redirect(to: str) -> Answer:
    return Answer(302, (f"Location: {to}",))


@dataclass(frozen=True)
class Received:
    verb: str
    path: str
    headers: dict[str, str]
    body: bytes
    answer: Answer
    verified: bool

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class _VerifierAt(Webhook):
    """The package's own check, with a clock that a test may move."""

    def __init__(self, secret: str, now: Callable[[], datetime]) -> None:
        super().__init__(secret)
        self._now = now

    # The package reads the machine's clock in this private method of its class.
    def _Webhook__verify_timestamp(self, timestamp_header: str) -> datetime:  # noqa: N802
        sent = datetime.fromtimestamp(float(timestamp_header), tz=UTC)
        if abs(sent - self._now()) > TOLERANCE:
            raise WebhookVerificationError("Message timestamp too old or too new")
        return sent


class Receiver:
    """Use as `async with Receiver() as receiver`; then `receiver.url` is where callbacks go."""

    def __init__(
        self,
        *,
        secret: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.received: list[Received] = []
        self.port = 0
        self.secret = secret
        self._now = now
        self._tls = tls
        self._coming: deque[Answer] = deque()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/hook"

    async def up(self) -> None:
        """Listens; again on the same port after `down`."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuses connections from here on and drops those that are open."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.gather(*self._serving)
            await self._server.wait_closed()
            self._server = None

    def next(self, *answers: Answer) -> None:
        """The coming requests are answered by these, in this order."""
        self._coming.extend(answers)

    async def reach(self, count: int) -> None:
        """Returns when so many requests have come in all."""
        async with asyncio.timeout(PATIENCE):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()

    def verifies(self, headers: dict[str, str], body: bytes, secret: str) -> bool:
        """Whether this secret signed it, no more than five minutes ago."""
        try:
            _VerifierAt(secret, self._now).verify(body, headers)
        except WebhookVerificationError:
            return False
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._open.add(writer)
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._serving.discard(task)
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.strip().split("\r\n")
        verb, path, _ = line.split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (item.partition(":") for item in rest)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        answer = self._coming.popleft() if self._coming else OK
        verified = self.secret is not None and self.verifies(headers, body, self.secret)
        self.received.append(Received(verb, path, headers, body, answer, verified))
        self._arrived.set()
        if answer.status == 0:
            await reader.read()
            return
        length = () if answer.endless else (f"Content-Length: {len(answer.body)}",)
        lines = [f"HTTP/1.1 {answer.status} X", "Connection: close", *length, *answer.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + answer.body)
        await writer.drain()
        while answer.endless:
            writer.write(b"x" * 65_536)
            await writer.drain()
