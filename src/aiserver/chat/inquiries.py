"""What a provider is asked beside chats: whether it is there, what it lists, what it has loaded."""

from collections.abc import Collection

from aiserver.chat.failures import Failure
from aiserver.chat.upstreams import Upstreams
from aiserver.providers.endpoints import Endpoints
from aiserver.providers.store import Provider


class Inquiries:
    """None of them costs anything."""

    def __init__(self, endpoints: Endpoints, upstreams: Upstreams) -> None:
        self._endpoints = endpoints
        self._upstreams = upstreams

    async def probe(self, provider: Provider) -> None:
        """Returns when the provider answers. Raises Failure or ApiError."""
        endpoint = await self._endpoints.of(provider)
        if provider.heartbeat_url:
            await self._upstreams.beat(endpoint, provider.heartbeat_url, provider.name)
        else:
            await self._upstreams.list_models(endpoint, provider.name)

    async def list_models(self, provider: Provider) -> list[str]:
        """Raises ApiError."""
        endpoint = await self._endpoints.of(provider)
        try:
            return await self._upstreams.list_models(endpoint, provider.name)
        except Failure as failure:
            raise failure.error from failure

    async def loaded_models(self, provider: Provider) -> Collection[str]:
        """Raises ApiError."""
        endpoint = await self._endpoints.of(provider)
        try:
            return await self._upstreams.loaded_models(endpoint, provider.name)
        except Failure as failure:
            raise failure.error from failure
