"""Calls to addresses that a caller chose: checked, pinned, bounded and never redirected.

OutboundError
├─ AddressRefused       not public, or not an http(s) address
├─ Unreachable          no connection: name not found, refused, TLS
├─ TimedOut             a bound of time was passed
└─ Broken               the connection ended, or what came is not HTTP
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from aiserver.kit.guard import AddressRefused, Destination, Guard, OutboundError, parse
from aiserver.kit.look_ups import LookUps, Resolve, system_resolve

if TYPE_CHECKING:
    from aiserver.kit.outbound_session import Session

__all__ = [
    "AddressRefused",
    "Answer",
    "Broken",
    "Destination",
    "Guard",
    "Outbound",
    "OutboundError",
    "Resolve",
    "TimedOut",
    "Unreachable",
    "parse",
    "system_resolve",
]

MOST_READ = 64 * 1024
_LOOK_UP_SECONDS = 5.0
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class Unreachable(OutboundError):
    """No connection to the address; check its name, its port and that a server runs there."""


class TimedOut(OutboundError):
    """The address did not answer in time."""


class Broken(OutboundError):
    """The connection ended before an answer, or the answer is not HTTP."""


class Answer(msgspec.Struct, frozen=True):
    """Names of headers in small letters; of the body the first 64 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Outbound:
    """One pool of connections; nothing of one call, cookies included, is left for the next.

    `caller` is whom a call is made for, by which look-ups are bounded.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        resolve: Resolve = system_resolve,
        tls: ssl.SSLContext | None = None,
        most: int = 256,
        most_per_host: int = 32,
    ) -> None:
        self._guard = guard
        self._look_ups = LookUps(resolve)
        self._tls = tls
        self._most = most
        self._most_per_host = most_per_host
        self._session: Session | None = None

    async def check(self, url: str, *, caller: int | None = None) -> None:
        """Raises AddressRefused for what `send` would refuse now, and for a name nobody knows.

        A look-up that fails otherwise is left for `send` to meet.
        """
        destination = parse(url)
        if destination.literal:
            self._guard.check(destination, [destination.host])
            return
        addresses: Sequence[str] = ()
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                addresses = await self._look_ups.find(
                    destination.host, destination.port, caller=caller
                )
        except OSError as error:
            # No such name: refused as a private address is, or refusals tell which names exist.
            if error.errno not in _NO_SUCH_NAME:
                return
        self._guard.check(destination, addresses)

    async def send(
        self,
        url: str,
        *,
        method: str = "POST",
        headers: Mapping[str, str],
        body: bytes = b"",
        seconds: float = 20.0,
        caller: int | None = None,
    ) -> Answer:
        """The answer, whatever its status. Raises OutboundError."""
        destination = parse(url)
        if destination.literal:
            self._guard.check(destination, [destination.host])
        session = self._session = self._session or self._open()
        try:
            return await session.exchange(
                destination,
                method=method,
                headers=headers,
                body=body,
                seconds=seconds,
                caller=caller,
            )
        except TimeoutError:
            raise TimedOut from None
        except OSError:
            raise Broken from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._look_ups.close()

    def _open(self) -> "Session":
        # Seven megabytes that a server without callbacks never needs.
        from aiserver.kit.outbound_session import Session  # noqa: PLC0415

        return Session(
            self._guard,
            self._look_ups,
            tls=self._tls,
            most=self._most,
            most_per_host=self._most_per_host,
        )
