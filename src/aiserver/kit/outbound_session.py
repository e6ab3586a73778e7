"""One pool of aiohttp's connections, each to an address that was checked."""

import functools
import socket
import ssl
from collections.abc import Mapping
from contextvars import ContextVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from aiserver.kit.guard import AddressRefused, Destination, Guard
from aiserver.kit.look_ups import LookUps, NotLookedUp
from aiserver.kit.outbound import MOST_READ, Answer, Broken, Unreachable

_CONNECT_SECONDS = 10.0
_HEAD_ENDS = b"\r\n\r\n"
# The library asks for addresses without saying for which request.
_caller: ContextVar[int | None] = ContextVar("caller", default=None)


class _CheckedResolver(AbstractResolver):
    """Hands a connection only addresses that were checked, so that nobody looks them up again."""

    def __init__(self, guard: Guard, look_ups: LookUps) -> None:
        self._guard = guard
        self._look_ups = look_ups

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            addresses = await self._look_ups.find(host, port, caller=_caller.get())
        except NotLookedUp as error:
            raise Unreachable(str(error)) from None
        self._guard.check(Destination("", host.lower(), port), addresses)
        return [_result(host, port, address) for address in addresses]

    async def close(self) -> None:
        return None


class _Protocol(ResponseHandler):
    """Reads a head by itself: bytes that its answer should not have would undo it otherwise."""

    _head_read = False
    _before = b""

    def data_received(self, data: bytes) -> None:
        head = 0 if self._head_read else self._rest_of_head(data)
        for piece in (data[:head], data[head:]):
            if piece:
                super().data_received(piece)
        # The library tells the reader of a head only, whoever reads the body waits out the time.
        body = self._payload
        if body is not None and self.exception() is not None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError())

    def _rest_of_head(self, data: bytes) -> int:
        seen = self._before + data
        end = seen.find(_HEAD_ENDS)
        if end < 0:
            self._before = seen[1 - len(_HEAD_ENDS) :]
            return len(data)
        self._head_read = True
        return end + len(_HEAD_ENDS) - len(self._before)


class _Connector(aiohttp.TCPConnector):
    def __init__(
        self,
        *,
        resolver: AbstractResolver,
        most: int,
        most_per_host: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - a socket's address
            resolver=resolver,
            use_dns_cache=False,
            limit=most,
            limit_per_host=most_per_host,
            # Each call is checked anew, and none meets a connection that its peer just closed.
            force_close=True,
            ssl=tls or True,
        )
        self._factory = functools.partial(_Protocol, loop=self._loop)


class Session:
    """Nothing of one call, cookies included, is left for the next."""

    def __init__(
        self,
        guard: Guard,
        look_ups: LookUps,
        *,
        tls: ssl.SSLContext | None,
        most: int,
        most_per_host: int,
    ) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(
                resolver=_CheckedResolver(guard, look_ups),
                most=most,
                most_per_host=most_per_host,
                tls=tls,
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
        caller: int | None,
    ) -> Answer:
        """The answer, whatever its status. Raises OutboundError, TimeoutError or OSError."""
        address = URL(destination.url, encoded=True)
        if ((address.host or "").lower(), address.port) != (destination.host, destination.port):
            raise AddressRefused
        limit = aiohttp.ClientTimeout(total=seconds, connect=min(seconds, _CONNECT_SECONDS))
        for_caller = _caller.set(caller)
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
        finally:
            _caller.reset(for_caller)

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
