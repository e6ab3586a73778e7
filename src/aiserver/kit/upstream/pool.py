"""The connections to all upstreams: those at work, and those kept for the next request."""

import asyncio
import ssl
from collections.abc import Iterable

from aiserver.kit.upstream.connection import Connection
from aiserver.kit.upstream.errors import (
    UpstreamError,
    UpstreamRefused,
    UpstreamReset,
    UpstreamTimeout,
)
from aiserver.kit.upstream.response import UpstreamResponse
from aiserver.kit.upstream.target import Origin, Target, Timeouts, request_head
from aiserver.kit.writes import Writes

_TIMEOUTS = Timeouts()


class UpstreamPool:
    """Lives as long as the process; the newest idle connection of an origin is used first.

    `opened`, `rested` and `lost` are for its connections.
    """

    def __init__(
        self,
        *,
        max_idle_per_origin: int = 256,
        idle_seconds: float = 55,
        max_header_bytes: int = 64 * 1024,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_idle = max_idle_per_origin
        self._idle_seconds = idle_seconds
        self._max_header_bytes = max_header_bytes
        self._tls = tls
        self.writes = Writes()
        self._idle: dict[Origin, dict[Connection, None]] = {}
        self._open: set[Connection] = set()
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

        A request is sent twice in one case only: a kept connection ends at once and without any
        byte of an answer. Its server closed it as idle before it read the request, so that sending
        a chat POST again on a fresh connection does not run it twice.
        """
        ends = asyncio.get_running_loop().time() + timeouts.total
        head = request_head(target, method, headers, len(body))
        request = (head, body, method == b"HEAD", timeouts, ends)
        kept = self.kept(target.origin)
        sent = False
        if kept is not None:
            try:
                return await kept.exchange(*request)
            except UpstreamReset as error:
                if not kept.was_stale(error):
                    raise
                sent = error.sent
        try:
            fresh = await self._connect(target, timeouts, ends)
            return await fresh.exchange(*request)
        except UpstreamError as error:
            error.sent = error.sent or sent
            raise

    def kept(self, origin: Origin) -> Connection | None:
        """An idle connection, which is the caller's to use or to fail from here on."""
        idle = self._idle.get(origin)
        return idle.popitem()[0] if idle else None

    async def aclose(self) -> None:
        self._closed = True
        for connection in list(self._open):
            connection.fail(UpstreamReset("the pool of connections was closed"))
        self._none_open.clear()
        if self._open:
            await self._none_open.wait()

    async def _connect(self, target: Target, timeouts: Timeouts, ends: float) -> Connection:
        if self._closed:
            raise UpstreamRefused("the pool of connections is closed", sent=False)
        loop = asyncio.get_running_loop()
        until = min(loop.time() + timeouts.connect, ends)
        if target.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        connection = Connection(self, target.origin, self._max_header_bytes)
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
            raise UpstreamTimeout("total" if until == ends else "connect", sent=False) from error
        except (OSError, UnicodeError) as error:
            message = f"no connection to {target.host}:{target.port}: {error}"
            raise UpstreamRefused(message, sent=False) from error
        if self._closed:
            connection.fail(UpstreamReset())
            raise UpstreamRefused("the pool of connections is closed", sent=False)
        return connection

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def rested(self, connection: Connection) -> None:
        idle = self._idle.setdefault(connection.origin, {})
        idle[connection] = None
        connection.rest(self._idle_seconds)
        if len(idle) > self._max_idle:
            oldest = next(iter(idle))
            del idle[oldest]
            oldest.fail(UpstreamReset())

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, {})
        idle.pop(connection, None)
        if not idle:
            self._idle.pop(connection.origin, None)
        if not self._open:
            self._none_open.set()
