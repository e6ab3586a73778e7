"""Takes over what any process changed in the store: keys, sessions, providers."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiserver.keys.access import KeyRing
from aiserver.kit import log
from aiserver.kit.db import StorageError
from aiserver.kit.tables import Tables
from aiserver.providers.pool import ProviderPool

_LOOK_SECONDS = 0.25
_log = log.get("app")


class Changes:
    """`renewed` is told when the providers are others; `problem` says why the store is not read."""

    def __init__(
        self, tables: Tables, ring: KeyRing, pool: ProviderPool, renewed: Callable[[], None]
    ) -> None:
        self._tables = tables
        self._ring = ring
        self._pool = pool
        self._renewed = renewed
        self._moved = asyncio.Event()
        self._stale = True
        self.problem: str | None = None

    def heard(self) -> None:
        """Another process tells of a change."""
        self._moved.set()

    async def run(self) -> None:
        """Never returns: looks four times a second, and when one was heard of."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._moved.wait()
            self._moved.clear()
            await self.look()

    async def look(self, *, anyway: bool = False) -> None:
        """Reads what changed, or `anyway` all; without the store, all goes on as it is."""
        self._stale = self._stale or anyway
        try:
            if self._tables.changed() or self._stale:
                self._stale = True
                await self._ring.refresh()
                if await self._pool.refresh():
                    self._renewed()
                self._stale = False
            self.problem = None
        except StorageError as error:
            if self.problem is None:
                _log.error("storage_unreadable", problem=str(error))
            self.problem = str(error)
