"""Asks upstreams: one adapter for each dialect, one pool of connections for all of them."""

import re
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import msgspec

from aiserver import __version__
from aiserver.chat.adapters.adapter import Adapter, Loaded, Outgoing
from aiserver.chat.failures import Failure, broken, refused, unreachable
from aiserver.kit.upstream import Target, Timeouts, UpstreamError, UpstreamPool, UpstreamResponse
from aiserver.providers.endpoints import Endpoint

_MAX_LISTING = 8 * 1024 * 1024
_MOST_PAGES = 20
_MAX_ERROR_BODY = 64 * 1024
_LISTING = Timeouts(connect=5, first_byte=15, gap=15, total=30)
_NO_LISTS: Mapping[str, Loaded] = {}
# Whatever else a link holds, its query is what names a page.
_QUERY = re.compile(r"\?([\w.~%=&+-]+)")
_AGENT = (b"User-Agent", f"ai-server/{__version__}".encode())
_JSON = (b"Content-Type", b"application/json")


class _Links(msgspec.Struct):
    next: str | None = None


class _Page(msgspec.Struct):
    """What a list of models says of those that follow."""

    links: _Links | None = None


_pages = msgspec.json.Decoder(_Page)


class Upstreams:
    """`adapters` by the dialect that a kind of provider names; so `loaded`, where there is one."""

    def __init__(
        self,
        pool: UpstreamPool,
        adapters: Mapping[str, Adapter],
        loaded: Mapping[str, Loaded] = _NO_LISTS,
    ) -> None:
        self._pool = pool
        self._adapters = adapters
        self._loaded = loaded

    def adapter(self, endpoint: Endpoint) -> Adapter:
        return self._adapters[endpoint.type.dialect]

    async def send(
        self,
        endpoint: Endpoint,
        outgoing: Outgoing,
        *,
        provider: str,
        request_id: str,
        timeouts: Timeouts,
    ) -> UpstreamResponse:
        """The answer of status 200 at its first byte. Raises Failure."""
        target = target_of(endpoint, outgoing.path)
        headers = (*headers_of(request_id), *endpoint.headers, *outgoing.headers)
        try:
            response = await self._pool.send(
                target, headers=headers, body=outgoing.body, timeouts=timeouts
            )
        except UpstreamError as error:
            raise unreachable(error, provider) from error
        if response.status != 200:
            raise await self._refused(response, endpoint, provider)
        return response

    async def read(self, response: UpstreamResponse, limit: int, provider: str) -> bytes:
        """The whole body. Raises Failure."""
        try:
            return await response.read(limit)
        except UpstreamError as error:
            raise unreachable(error, provider) from error

    async def list_models(self, endpoint: Endpoint, provider: str) -> list[str]:
        """The names that the upstream lists, of its first 20 pages at most. Raises Failure."""
        adapter = self.adapter(endpoint)
        path: str | None = adapter.listing()
        names: list[str] = []
        asked: list[str] = []
        while path is not None and path not in asked and len(asked) < _MOST_PAGES:
            asked.append(path)
            body = await self.get(endpoint, path, provider)
            with _listing_of(provider):
                names += adapter.models(body)
                path = _next_page(path, body)
        return names

    async def loaded_models(self, endpoint: Endpoint, provider: str) -> Collection[str]:
        """The models that the upstream has in memory; none where it tells nothing.

        Raises Failure.
        """
        loaded = self._loaded.get(endpoint.type.dialect)
        if loaded is None:
            return ()
        body = await self.get(endpoint, loaded.path, provider)
        with _listing_of(provider):
            return loaded.names(body)

    async def get(self, endpoint: Endpoint, path: str, provider: str) -> bytes:
        """A small answer that costs nothing. Raises Failure."""
        try:
            async with await self._pool.send(
                target_of(endpoint, path),
                method=b"GET",
                headers=(_AGENT, *endpoint.headers),
                timeouts=_LISTING,
            ) as response:
                if response.status != 200:
                    raise await self._refused(response, endpoint, provider)
                return await response.read(_MAX_LISTING)
        except UpstreamError as error:
            raise unreachable(error, provider) from error

    async def beat(self, endpoint: Endpoint, url: str, provider: str) -> None:
        """Returns when an address of the operator's choice answers 2xx. Raises Failure."""
        try:
            async with await self._pool.send(
                Target.parse(url),
                method=b"GET",
                headers=(_AGENT, *endpoint.headers),
                timeouts=_LISTING,
            ) as response:
                if not 200 <= response.status < 300:
                    raise await self._refused(response, endpoint, provider)
        except UpstreamError as error:
            raise unreachable(error, provider) from error

    async def _refused(
        self, response: UpstreamResponse, endpoint: Endpoint, provider: str
    ) -> Failure:
        async with response:
            try:
                body = await response.read(_MAX_ERROR_BODY)
            except UpstreamError:
                # An error page that is too long or cut says no more than its status.
                body = b""
        answer = self.adapter(endpoint).error(body, response.headers)
        return refused(provider, answer.status or response.status, answer)


@contextmanager
def _listing_of(provider: str) -> Generator[None]:
    try:
        yield
    except msgspec.MsgspecError as error:
        raise broken(provider, "lists models in no known form.", detail=str(error)) from error


def _next_page(path: str, body: bytes) -> str | None:
    """Another page of the same list; where else a link leads is not followed."""
    links = _pages.decode(body).links
    query = _QUERY.search(links.next or "") if links is not None else None
    return f"{path.partition('?')[0]}?{query[1]}" if query is not None else None


def headers_of(request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    """What every request of a chat bears beside its provider's own headers."""
    return (_JSON, _AGENT, (b"X-Request-Id", request_id.encode()))


def target_of(endpoint: Endpoint, path: str) -> Target:
    return _target(endpoint.root, path)


@lru_cache(maxsize=1024)
def _target(root: str, path: str) -> Target:
    return Target.parse(f"{root}{path}")
