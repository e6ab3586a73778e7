"""Answers the operations about keys."""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import Any

import msgspec

from aiserver.contract.errors import Conflict, FieldError, InvalidRequest, NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import EmptyResponse, ordered, page
from aiserver.contract.spelling import fold
from aiserver.keys.access import KeyRing
from aiserver.keys.operations import (
    AdminApiKeyResponse,
    AdminApiKeysResponse,
    AdminCreateApiKey,
    AdminDeleteApiKey,
    AdminQueryApiKeys,
    AdminUpdateApiKey,
    CreateApiKey,
    CreateApiKeyResponse,
    GetNavItemsResponse,
    Hello,
    HelloResponse,
    MetadataNav,
    NavItem,
    PartialApiKey,
)
from aiserver.keys.store import KEY_FORM, WRITABLE, ApiKey, KeyStore, KeyTaken, digest, new_key
from aiserver.kit.clock import Clock

# Members whose column has another name.
_COLUMNS = {"expiry_date": "expires", "cancelled_date": "cancelled"}


class KeyHandlers:
    """`operation_names` are what a key can be restricted to.

    `secret_of` gives what a key's callbacks are signed with, `forget_secret` is told of its end.
    """

    def __init__(
        self,
        store: KeyStore,
        ring: KeyRing,
        clock: Clock,
        operation_names: Collection[str],
        *,
        secret_of: Callable[[int], Awaitable[str]],
        forget_secret: Callable[[int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._operations = operation_names
        self._secret_of = secret_of
        self._forget_secret = forget_secret

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            Hello: self.hello,
            MetadataNav: self.nav,
            AdminQueryApiKeys: self.query,
            AdminCreateApiKey: self.admin_create,
            AdminUpdateApiKey: self.update,
            AdminDeleteApiKey: self.delete,
            CreateApiKey: self.create,
        }

    async def hello(self, request: Hello, call: Call) -> HelloResponse:
        return HelloResponse(result=f"Hello, {request.name or 'World'}!")

    async def nav(self, request: MetadataNav, call: Call) -> GetNavItemsResponse:
        return GetNavItemsResponse(results=[NavItem(label="Start", href="/")], nav_items_map={})

    async def query(self, request: AdminQueryApiKeys, call: Call) -> AdminApiKeysResponse:
        keys = [key for key in await self._store.all() if _wanted(key, request)]
        rows = [partial(key, self._clock.now()) for key in keys]
        rows = ordered(rows, request.order_by, _sort_key)
        return AdminApiKeysResponse(results=page(rows, skip=request.skip, take=request.take))

    async def admin_create(self, request: AdminCreateApiKey, call: Call) -> AdminApiKeyResponse:
        text = new_key()
        key = await self._insert(text, _columns(request))
        return AdminApiKeyResponse(result=text, callback_secret=await self._secret_of(key.id))

    async def create(self, request: CreateApiKey, call: Call) -> CreateApiKeyResponse:
        text = request.key or new_key()
        if not KEY_FORM.fullmatch(text):
            message = (
                "'Key' must be `ak-` and 32 lower-case hex digits; leave it out for a new one."
            )
            raise InvalidRequest.of([FieldError("RegularExpression", "Key", message)])
        key = await self._insert(text, _columns(request))
        return CreateApiKeyResponse(
            id=key.id,
            key=text,
            name=key.name,
            user_id=key.user_id,
            user_name=key.user_name,
            visible_key=key.visible,
            created_date=key.created,
            expiry_date=key.expires,
            cancelled_date=key.cancelled,
            notes=key.notes,
        )

    async def update(self, request: AdminUpdateApiKey, call: Call) -> EmptyResponse:
        changes = {name: value for name, value in _columns(request).items() if value is not None}
        self._check_names(changes)
        for member in [*(request.reset or []), *call.reset]:
            changes[self._resettable(member)] = None
        if not await self._store.update(request.id, changes):
            raise NotFound(f"There is no API key with id {request.id}.")
        await self._ring.refresh()
        return EmptyResponse()

    async def delete(self, request: AdminDeleteApiKey, call: Call) -> EmptyResponse:
        if not await self._store.delete(request.id):
            raise NotFound(f"There is no API key with id {request.id}.")
        await self._ring.refresh()
        await self._forget_secret(request.id)
        return EmptyResponse()

    async def _insert(self, text: str, members: dict[str, Any]) -> ApiKey:
        self._check_names(members)
        try:
            key = await self._store.create(text, members)
        except KeyTaken:
            raise Conflict("This key is in use already; leave `key` out for a new one.") from None
        await self._ring.refresh()
        return key

    def _check_names(self, members: dict[str, Any]) -> None:
        unknown = sorted(set(members.get("restrict_to") or ()) - set(self._operations))
        if unknown:
            message = f"'Restrict To' names unknown operations: {', '.join(unknown)}."
            raise InvalidRequest.of([FieldError("ArgumentException", "RestrictTo", message)])

    def _resettable(self, member: str) -> str:
        wanted = fold(member)
        for name in AdminUpdateApiKey.__struct_fields__:
            column = _COLUMNS.get(name, name)
            if fold(name) == wanted and column in WRITABLE - {"name"}:
                return column
        message = f"'Reset' names {member!r}, which cannot be cleared."
        raise InvalidRequest.of([FieldError("ArgumentException", "Reset", message)])


def _columns(request: msgspec.Struct) -> dict[str, Any]:
    members = msgspec.structs.asdict(request)
    return {
        column: value
        for name, value in members.items()
        if (column := _COLUMNS.get(name, name)) in WRITABLE
    }


def _wanted(key: ApiKey, request: AdminQueryApiKeys) -> bool:
    search = (request.search or "").lower()
    sought = request.api_key
    return (
        (request.id is None or key.id == request.id)
        and (not sought or key.hash == digest(sought) or sought in key.visible)
        and (request.user_id is None or key.user_id == request.user_id)
        and (request.user_name is None or key.user_name == request.user_name)
        and any(search in (text or "").lower() for text in (key.name, key.user_name, key.notes))
    )


def partial(key: ApiKey, now: datetime) -> PartialApiKey:
    return PartialApiKey(
        id=key.id,
        name=key.name,
        user_id=key.user_id,
        user_name=key.user_name,
        visible_key=key.visible,
        environment=key.environment,
        created_date=key.created,
        expiry_date=key.expires,
        cancelled_date=key.cancelled,
        last_used_date=key.last_used,
        scopes=key.scopes,
        features=key.features,
        restrict_to=key.restrict_to,
        models=key.models,
        notes=key.notes,
        ref_id=key.ref_id,
        ref_id_str=key.ref_id_str,
        meta=key.meta,
        active=key.active(now),
    )


def _sort_key(row: PartialApiKey, member: str) -> tuple[bool, str | int]:
    value = next((getattr(row, n) for n in row.__struct_fields__ if fold(n) == fold(member)), None)
    return value is not None, value if isinstance(value, int) else str(value)
