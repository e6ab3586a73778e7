"""An upstream's answer, as its caller reads it and its connection fills it."""

import asyncio
from collections.abc import Callable
from typing import Protocol, Self

from aiserver.kit.upstream.errors import UpstreamError, UpstreamProtocolError, UpstreamReset

_LAST_BYTES_SECONDS = 1.0


class Source(Protocol):
    """The connection that an answer arrives on."""

    def resume(self) -> None: ...

    def expect_end(self, seconds: float) -> bool: ...

    def fail(self, error: UpstreamError) -> None: ...


class UpstreamResponse:
    """One answer, read by one task at a time; a chunk is whatever arrived since the last one.

    `until_started`, `start`, `feed`, `end` and `buffered` are for its connection.
    """

    takes_whole = False

    def __init__(self, source: Source) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.buffered = 0
        self._source: Source | None = source
        self._error: UpstreamError | None = None
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._over: Callable[[], None] | None = None

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
            if self._source is None:
                raise self._error or StopAsyncIteration
            await self._wait()
        chunk, self.buffered = b"".join(self._pieces), 0
        self._pieces.clear()
        if self._source is not None:
            self._source.resume()
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def let_go(self, over: Callable[[], None]) -> None:
        """Nothing more is wanted; the connection is kept if the answer ends within a second.

        `over` is called once it has ended, one way or the other.
        """
        if self._source is None:
            over()
            return
        self._over = over
        self._pieces.clear()
        self._source.resume()
        self._source.expect_end(_LAST_BYTES_SECONDS)

    def close(self) -> None:
        if self._source is not None:
            self._pieces.clear()
            self._source.fail(UpstreamReset("the answer was closed before its end"))

    async def until_started(self) -> None:
        await self._wait()
        if self._error is not None and not self.status:
            raise self._error

    def start(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self.headers = status, headers
        self._wake()

    def feed(self, data: bytes) -> None:
        if self._over is None:
            self._pieces.append(data)
            self.buffered += len(data)
            self._wake()

    def feed_chunk(self, framed: bytes, start: int) -> None:
        self.feed(framed[start:-2])

    def whole(self, kind: bytes, body: bytes) -> None:
        self.start(200, {b"content-type": kind})
        self.feed(body)
        self.end()

    def end(self, error: UpstreamError | None = None) -> None:
        self._source, self._error = None, error
        self._wake()
        if self._over is not None:
            over, self._over = self._over, None
            over()

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
