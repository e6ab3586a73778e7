"""Answers the operations about providers."""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from aiserver.contract.autoquery import Table
from aiserver.contract.errors import Conflict, FieldError, InvalidRequest, ModelNotFound, NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import IdResponse, QueryResponse
from aiserver.contract.spelling import fold
from aiserver.kit.upstream import Target
from aiserver.providers.catalogue import BY_ID, LOCAL_TYPE, TYPES, type_named
from aiserver.providers.operations import (
    AiProvider,
    AiProviderModel,
    CreateAiProvider,
    DeleteAiProvider,
    GetActiveProviders,
    GetActiveProvidersResponse,
    GetModel,
    ListModels,
    ListModelsResponse,
    OpenAiModel,
    QueryAiProviders,
    UpdateAiProvider,
)
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import ADMIN, NameTaken, Provider, ProviderStore

_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESETTABLE = ("api_base_url", "api_key", "api_key_var", "api_key_header", "heartbeat_url")


class ProviderHandlers:
    """`changed` is told after every write; who is `asleep` is not listed as usable now."""

    def __init__(
        self,
        store: ProviderStore,
        pool: ProviderPool,
        *,
        changed: Callable[[], None],
        asleep: Callable[[Provider], bool],
    ) -> None:
        self._store = store
        self._pool = pool
        self._changed = changed
        self._asleep = asleep
        self._table = Table(AiProvider)

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            QueryAiProviders: self.query,
            GetActiveProviders: self.active,
            CreateAiProvider: self.create,
            UpdateAiProvider: self.update,
            DeleteAiProvider: self.delete,
            ListModels: self.list_models,
            GetModel: self.get_model,
        }

    async def query(self, request: QueryAiProviders, call: Call) -> QueryResponse[AiProvider]:
        # As this caller may see them: a condition must not find out what is hidden.
        self._table.load(self._shown(provider, call) for provider in self._pool.providers())
        return self._table.query(request, call.pairs)

    async def active(self, request: GetActiveProviders, call: Call) -> GetActiveProvidersResponse:
        usable = [
            p for p in self._pool.providers() if p.enabled and self._pool.offline_since(p) is None
        ]
        awake = [self._shown(p, call) for p in usable if not self._asleep(p)]
        return GetActiveProvidersResponse(results=awake)

    async def create(self, request: CreateAiProvider, call: Call) -> IdResponse:
        members = checked(request)
        if members.get("enabled") is None:
            members["enabled"] = True
        try:
            provider = await self._store.create(request.name, ADMIN, members)
        except NameTaken:
            raise _taken(request.name) from None
        await self._renewed()
        return IdResponse(id=str(provider.id))

    async def update(self, request: UpdateAiProvider, call: Call) -> IdResponse:
        provider = await self._existing(request.id)
        members = checked(request)
        for member in call.reset:
            members[_resettable(member)] = None
        if provider.source != ADMIN:
            refuse_identity(provider, members)
        try:
            await self._store.update(provider, members)
        except NameTaken:
            raise _taken(str(request.name)) from None
        await self._renewed()
        return IdResponse(id=str(provider.id))

    async def delete(self, request: DeleteAiProvider, call: Call) -> None:
        provider = await self._existing(request.id)
        if provider.source != ADMIN:
            raise Conflict(
                f"Provider {provider.name} comes from the server's settings and would be back at "
                "the next start. Unset its variable, or disable it with UpdateAiProvider."
            )
        await self._store.delete(provider.id)
        await self._renewed()

    async def list_models(self, request: ListModels, call: Call) -> ListModelsResponse:
        names = sorted(self._pool.models(asleep=self._asleep).items())
        data = [_open_ai(model, owner) for model, owner in names if call.caller.may_use(model)]
        return ListModelsResponse(object="list", data=data)

    async def get_model(self, request: GetModel, call: Call) -> OpenAiModel:
        owner = self._pool.models(asleep=self._asleep).get(request.model)
        if owner is None or not call.caller.may_use(request.model):
            raise ModelNotFound(f"Model {request.model} not found.", param="model")
        return _open_ai(request.model, owner)

    async def _existing(self, provider_id: int) -> Provider:
        for provider in await self._store.all():
            if provider.id == provider_id:
                return provider
        raise NotFound("Provider not found")

    async def _renewed(self) -> None:
        await self._pool.refresh()
        self._changed()

    def _shown(self, provider: Provider, call: Call) -> AiProvider:
        admin = call.caller.is_admin
        kind = BY_ID[provider.ai_type_id]
        names = self._pool.served_by(provider)
        by_name = {m.model: m for m in provider.models}
        return AiProvider(
            id=provider.id,
            name=provider.name,
            api_base_url=(provider.api_base_url or kind.wire.api_base_url) if admin else None,
            api_key_var=provider.api_key_var if admin else None,
            api_key_header=provider.api_key_header if admin else None,
            heartbeat_url=provider.heartbeat_url if admin else None,
            concurrency=provider.concurrency,
            priority=provider.priority,
            weight=provider.weight,
            enabled=provider.enabled,
            offline_date=self._pool.offline_since(provider),
            created_date=provider.created,
            models=[by_name.get(n) or AiProviderModel(model=n) for n in names],
            ai_type_id=provider.ai_type_id,
            ai_type=kind.wire,
            selected_models=names,
        )


def checked(request: CreateAiProvider | UpdateAiProvider) -> dict[str, Any]:
    """The columns to write, checked. Raises InvalidRequest with every field that is wrong."""
    given = msgspec.structs.asdict(request)
    members = {name: value for name, value in given.items() if value is not None}
    members.pop("id", None)
    selected = members.pop("selected_models", None)
    if selected and "models" not in members:
        members["models"] = [AiProviderModel(model=name) for name in selected]
    errors = list(_problems(members))
    if errors:
        raise InvalidRequest.of(errors)
    if "ai_type_id" in members:
        kind = type_named(members["ai_type_id"])
        members["ai_type_id"] = kind.wire.id if kind else members["ai_type_id"]
    if "name" in members and isinstance(request, CreateAiProvider):
        del members["name"]
    return members


def _problems(members: dict[str, Any]) -> list[FieldError]:
    checks = (
        ("ai_type_id", "AiTypeId", _known_type, f"must be one of {_type_ids()}."),
        ("api_base_url", "ApiBaseUrl", _usable_url, "must be a URL: https://host, or .../v1."),
        ("heartbeat_url", "HeartbeatUrl", _usable_url, "must be a URL such as https://host/up."),
        ("api_key_header", "ApiKeyHeader", _HEADER_NAME.fullmatch, "must be a header name."),
        ("api_key_var", "ApiKeyVar", _VARIABLE_NAME.fullmatch, "must name a variable."),
        ("api_key", "ApiKey", _plain_key, "must be plain text without spaces or line breaks."),
    )
    return [
        FieldError("ArgumentException", field, f"'{field}' {advice}")
        for name, field, fits, advice in checks
        if name in members and not fits(members[name])
    ]


def _known_type(name: str) -> bool:
    kind = type_named(name)
    return kind is not None and kind.wire.id != LOCAL_TYPE


def _type_ids() -> str:
    return ", ".join(t.wire.id for t in TYPES if t.wire.id != LOCAL_TYPE)


def _usable_url(url: str) -> bool:
    try:
        Target.parse(url)
    except ValueError:
        return False
    return True


def _plain_key(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key


def refuse_identity(provider: Provider, members: dict[str, Any]) -> None:
    """Raises Conflict for changes that the next start would undo."""
    fixed = sorted({"name", "ai_type_id", "api_base_url", "api_key", "api_key_var"} & set(members))
    if fixed:
        raise Conflict(
            f"Provider {provider.name} comes from the server's settings; {', '.join(fixed)} cannot "
            "be changed here. Change its variable, or create a provider of another name."
        )


def _resettable(member: str) -> str:
    for name in _RESETTABLE:
        if fold(name) == fold(member):
            return name
    message = f"'Reset' names {member!r}, which cannot be cleared."
    raise InvalidRequest.of([FieldError("ArgumentException", "Reset", message)])


def _taken(name: str) -> Conflict:
    return Conflict(f"A provider named {name} exists already; choose another name.", param="name")


def _open_ai(model: str, owner: str) -> OpenAiModel:
    return OpenAiModel(id=model, object="model", created=0, owned_by=owner)
