"""Asks upstreams which models they have in memory, so that a call goes where its model is."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from aiserver.contract.errors import ApiError
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider

MOST_AT_ONCE = 8
# A hint that takes longer to get is of no use.
ASK_SECONDS = 5.0

LoadedModels = Callable[[Provider], Awaitable[Collection[str]]]


class Warmth:
    """Renews the pool's hints, for providers of the `dialects` that tell what they have loaded.

    Nothing is known of one that is offline or does not answer; nobody is blamed for that.
    """

    def __init__(
        self, pool: ProviderPool, loaded: LoadedModels, *, dialects: Collection[str]
    ) -> None:
        self._pool = pool
        self._loaded = loaded
        self._dialects = dialects
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def round(self) -> None:
        """Asks every provider once."""
        telling = [p for p in self._pool.providers() if self._tells(p)]
        await asyncio.gather(*(self._ask(provider) for provider in telling))

    def _tells(self, provider: Provider) -> bool:
        return BY_ID[provider.ai_type_id].dialect in self._dialects

    async def _ask(self, provider: Provider) -> None:
        names: Collection[str] = ()
        if provider.enabled and self._pool.offline_since(provider) is None:
            async with self._slots:
                names = await self._names(provider)
        if provider in self._pool.providers():
            self._pool.warm(provider.id, names)

    async def _names(self, provider: Provider) -> Collection[str]:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._loaded(provider)
        except (ApiError, TimeoutError):
            return ()
