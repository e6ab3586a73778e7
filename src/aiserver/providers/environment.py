"""Providers that come and go with the environment, and the embedded one, as rows beside others."""

from collections.abc import Mapping
from typing import Any

from aiserver.kit import log
from aiserver.providers.catalogue import LOCAL_TYPE, TYPES
from aiserver.providers.operations import AiProviderModel
from aiserver.providers.store import EMBEDDED, ENVIRONMENT, NameTaken, Provider, ProviderStore

_log = log.get("providers")


async def reconcile(
    store: ProviderStore, settings: Mapping[str, str], *, embedded_model: str | None
) -> None:
    """Makes the rows agree with what is set now; an administrator's own rows are left alone."""
    wanted = _from_settings(settings)
    if embedded_model is not None:
        wanted["local"] = _embedded(embedded_model)
    existing = {p.name: p for p in await store.all()}
    for provider in existing.values():
        if provider.source in (ENVIRONMENT, EMBEDDED) and provider.name not in wanted:
            await store.delete(provider.id)
    for name, (source, members) in wanted.items():
        await _put(store, name, source, members, existing.get(name))


async def _put(
    store: ProviderStore,
    name: str,
    source: str,
    members: dict[str, Any],
    existing: Provider | None,
) -> None:
    if existing is None:
        try:
            await store.create(name, source, members)
        except NameTaken:
            # Another node, set alike, may have been the first.
            sources = [p.source for p in await store.all() if p.name == name]
            if source not in sources:
                _log.warning("provider_name_taken", provider=name)
    elif existing.source != source:
        _log.warning("provider_name_taken", provider=name, by=existing.source)
    elif any(getattr(existing, member) != value for member, value in members.items()):
        # Priority, concurrency and enabled stay as an administrator left them.
        kept = {"priority", "concurrency", "enabled"}
        await store.update(existing, {m: v for m, v in members.items() if m not in kept})


def _from_settings(settings: Mapping[str, str]) -> dict[str, tuple[str, dict[str, Any]]]:
    wanted: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind in TYPES:
        address = settings.get(kind.address) if kind.address else None
        if (kind.variable and settings.get(kind.variable)) or (not kind.variable and address):
            members: dict[str, Any] = {
                "ai_type_id": kind.wire.id,
                "api_base_url": address,
                "api_key_var": kind.variable,
            }
            wanted[kind.name] = (ENVIRONMENT, members)
    return wanted


def _embedded(model: str) -> tuple[str, dict[str, Any]]:
    models = [AiProviderModel(model=model), AiProviderModel(model="local", api_model=model)]
    return EMBEDDED, {"ai_type_id": LOCAL_TYPE, "models": models, "concurrency": 2}
