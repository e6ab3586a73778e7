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
from collections.abc import Awaitable, Callable, Mapping, Sequence

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from aiserver.kit.guard import AddressRefused, Destination, Guard, OutboundError, parse

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
]

MOST_READ = 64 * 1024
_CONNECT_SECONDS = 10.0
_LOOK_UP_SECONDS = 5.0
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


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


async def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as this machine knows them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class _CheckedResolver(AbstractResolver):
    """Hands a connection only addresses that were checked, so that nobody looks them up again."""

    def __init__(self, guard: Guard, resolve: Resolve) -> None:
        self._guard = guard
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._resolve(host, port)
        self._guard.check(Destination("", host.lower(), port), addresses)
        return [_result(host, port, address) for address in addresses]

    async def close(self) -> None:
        return None


class Outbound:
    """One pool of connections; nothing of one call, cookies included, is left for the next."""

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
        self._resolve = resolve
        self._tls = tls
        self._most = most
        self._most_per_host = most_per_host
        self._session: aiohttp.ClientSession | None = None

    async def check(self, url: str) -> None:
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
                addresses = await self._resolve(destination.host, destination.port)
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
    ) -> Answer:
        """The answer, whatever its status. Raises OutboundError."""
        destination = parse(url)
        if destination.literal:
            self._guard.check(destination, [destination.host])
        address = URL(destination.url, encoded=True)
        if ((address.host or "").lower(), address.port) != (destination.host, destination.port):
            raise AddressRefused
        try:
            return await self._exchange(method, address, headers, body, seconds)
        except TimeoutError:
            raise TimedOut from None
        except (aiohttp.ClientError, OSError):
            raise Broken from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(
        self, method: str, address: URL, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> Answer:
        session = self._session = self._session or self._open()
        limit = aiohttp.ClientTimeout(total=seconds, connect=min(seconds, _CONNECT_SECONDS))
        async with session.request(
            method, address, headers=headers, data=body, allow_redirects=False, timeout=limit
        ) as response:
            received = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, received, await _beginning(response))

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._guard, self._resolve),
            use_dns_cache=False,
            limit=self._most,
            limit_per_host=self._most_per_host,
            # Each call is checked anew, and none meets a connection that its peer just closed.
            force_close=True,
            ssl=self._tls or True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_once,),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": "ai-server", "Accept-Encoding": "identity"},
        )


async def _once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Maps the library's errors where it would meet some of them by sending a PUT twice."""
    try:
        return await send(request)
    except TimeoutError:
        raise
    except aiohttp.ClientConnectorDNSError:
        raise Unreachable("The host's name was not found; check the address.") from None
    except (aiohttp.ClientSSLError, ssl.SSLError):
        raise Unreachable("No secure connection; check the host's certificate.") from None
    except aiohttp.ClientConnectorError:
        raise Unreachable from None
    except (aiohttp.ClientError, OSError):
        raise Broken from None


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What comes of the body, up to the bound; a body that breaks off does not undo a status."""
    body = bytearray()
    try:
        while len(body) < MOST_READ:
            piece = await response.content.read(MOST_READ - len(body))
            if not piece:
                break
            body += piece
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass
    return bytes(body)


def _result(host: str, port: int, address: str) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=socket.AF_INET6 if ":" in address else socket.AF_INET,
        proto=0,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
