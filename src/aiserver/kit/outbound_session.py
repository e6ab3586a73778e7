"""One pool of aiohttp's connections, each to an address that was checked."""

import socket
import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from aiserver.kit.guard import AddressRefused, Destination, Guard
from aiserver.kit.outbound import MOST_READ, Answer, Broken, Resolve, Unreachable

_CONNECT_SECONDS = 10.0


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


class Session:
    """Nothing of one call, cookies included, is left for the next."""

    def __init__(
        self,
        guard: Guard,
        resolve: Resolve,
        *,
        tls: ssl.SSLContext | None,
        most: int,
        most_per_host: int,
    ) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_CheckedResolver(guard, resolve),
                use_dns_cache=False,
                limit=most,
                limit_per_host=most_per_host,
                # Each call is checked anew, and none meets a connection that its peer just closed.
                force_close=True,
                ssl=tls or True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_once,),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": "ai-server", "Accept-Encoding": "identity"},
        )

    async def exchange(
        self,
        destination: Destination,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        seconds: float,
    ) -> Answer:
        """The answer, whatever its status. Raises OutboundError, TimeoutError or OSError."""
        address = URL(destination.url, encoded=True)
        if ((address.host or "").lower(), address.port) != (destination.host, destination.port):
            raise AddressRefused
        limit = aiohttp.ClientTimeout(total=seconds, connect=min(seconds, _CONNECT_SECONDS))
        try:
            async with self._session.request(
                method, address, headers=headers, data=body, allow_redirects=False, timeout=limit
            ) as response:
                received = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, received, await _beginning(response))
        except TimeoutError:
            raise
        except aiohttp.ClientError:
            raise Broken from None

    async def close(self) -> None:
        await self._session.close()


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
