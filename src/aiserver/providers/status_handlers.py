"""Answers the operations about whether a provider takes calls."""

from collections.abc import Callable

import msgspec

from aiserver.contract.errors import NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.kit.clock import Clock
from aiserver.providers.pool import ProviderPool
from aiserver.providers.probes import Probes
from aiserver.providers.status_operations import (
    BoolResponse,
    ChangeAiProviderStatus,
    CheckAiProviderStatus,
    StringResponse,
)
from aiserver.providers.store import Provider, ProviderStore


class StatusHandlers:
    """`changed` is told after every write."""

    def __init__(
        self,
        store: ProviderStore,
        pool: ProviderPool,
        probes: Probes,
        clock: Clock,
        *,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._pool = pool
        self._probes = probes
        self._clock = clock
        self._changed = changed

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {ChangeAiProviderStatus: self.change, CheckAiProviderStatus: self.check}

    async def change(self, request: ChangeAiProviderStatus, call: Call) -> StringResponse:
        provider = self._existing(request.provider)
        if request.online or provider.offline is None:
            offline = None if request.online else self._clock.now()
            await self._store.update(provider, {"offline": offline})
        await self._pool.refresh()
        if request.online:
            self._pool.forgive(provider.id)
        self._changed()
        said = "is back online" if request.online else "was taken offline"
        return StringResponse(result=f"{provider.name} {said}")

    async def check(self, request: CheckAiProviderStatus, call: Call) -> BoolResponse:
        return BoolResponse(result=await self._probes.check(self._existing(request.provider)))

    def _existing(self, name: str) -> Provider:
        provider = self._pool.named(name)
        if provider is None:
            raise NotFound("Provider not found")
        return provider
