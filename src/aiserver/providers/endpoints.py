"""Where a provider is reached and what opens it."""

import os
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from aiserver.contract.errors import UpstreamFailed
from aiserver.kit.crypto import EncryptionKeyError
from aiserver.providers.catalogue import BY_ID, ProviderType, api_root
from aiserver.providers.store import EMBEDDED, ENVIRONMENT, Provider, ProviderStore


class Endpoint(msgspec.Struct, frozen=True):
    """`root` is what every path starts with; `headers` hold the upstream's key."""

    root: str
    headers: tuple[tuple[bytes, bytes], ...]
    type: ProviderType

    def __repr__(self) -> str:
        return f"Endpoint({self.root!r})"


class Endpoints:
    """`embedded` gives the address and key of the engine in the child process.

    `learn` is told the keys that come from variables, so that no sink ever shows them.
    """

    def __init__(
        self,
        store: ProviderStore,
        settings: Mapping[str, str],
        embedded: Callable[[], Awaitable[tuple[str, str]]],
        learn: Callable[[str], None],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._store = store
        self._settings = settings
        self._embedded = embedded
        self._learn = learn
        self._environment = environment
        self._known: dict[int, tuple[Provider, Endpoint]] = {}

    async def of(self, provider: Provider) -> Endpoint:
        """Raises UpstreamFailed when the provider has no usable key, Unavailable when it is off."""
        kind = BY_ID[provider.ai_type_id]
        if provider.source == EMBEDDED:
            url, key = await self._embedded()
            return Endpoint(api_root(url, kind.version), _headers(provider, key, kind), kind)
        known = self._known.get(provider.id)
        if known is not None and known[0] is provider:
            return known[1]
        key = self._key(provider, kind)
        base = provider.api_base_url or kind.wire.api_base_url
        endpoint = Endpoint(api_root(base, kind.version), _headers(provider, key, kind), kind)
        # Until the provider is read again; opening its key for every call would cost more.
        self._known[provider.id] = (provider, endpoint)
        return endpoint

    def known(self, provider: Provider) -> Endpoint | None:
        """The endpoint of a provider that was asked before; never of the embedded one."""
        known = self._known.get(provider.id)
        return known[1] if known is not None and known[0] is provider else None

    def _key(self, provider: Provider, kind: ProviderType) -> str | None:
        if provider.source == ENVIRONMENT:
            return self._settings.get(kind.variable) if kind.variable else None
        if provider.api_key_var and provider.api_key is None:
            key = self._environment.get(provider.api_key_var)
            if not key:
                raise UpstreamFailed(
                    f"Provider {provider.name} is misconfigured; ask your administrator.",
                    reason="provider_misconfigured",
                )
            self._learn(key)
            return key
        try:
            return self._store.key_of(provider)
        except EncryptionKeyError as error:
            raise UpstreamFailed(
                f"Provider {provider.name} is misconfigured; ask your administrator.",
                reason="provider_misconfigured",
            ) from error


def _headers(
    provider: Provider, key: str | None, kind: ProviderType
) -> tuple[tuple[bytes, bytes], ...]:
    if not key:
        return kind.headers
    if name := provider.api_key_header or kind.key_header:
        return ((name.encode("latin-1"), key.encode("latin-1")), *kind.headers)
    return ((b"Authorization", b"Bearer " + key.encode("latin-1")), *kind.headers)
