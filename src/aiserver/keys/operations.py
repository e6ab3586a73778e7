"""What can be called about keys: signing in, and the administrator's work on API keys."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import DELETE, GET, PATCH, POST, Access, Route, operation
from aiserver.contract.responses import EmptyResponse, ResponseStatus, Wire

Names = list[Annotated[str, Meta(min_length=1, max_length=200)]]
Features = Annotated[
    Names, Meta(description="PublicArtifacts lets anybody read the results of the key's calls.")
]
Name = Annotated[str, Meta(max_length=200)]
Notes = Annotated[str, Meta(max_length=10_000)]
# What a column of the store can hold.
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class HelloResponse(Wire, kw_only=True):
    result: str


@operation(
    tag="Info",
    verbs=GET,
    access=Access.OPEN,
    returns=HelloResponse,
    routes=(Route("/hello", GET), Route("/hello/{Name}", GET)),
)
class Hello(Wire, kw_only=True):
    """Greets; shows that the server answers and that a client reaches it."""

    name: Annotated[str, Meta(max_length=1000)] | None = None


class AuthenticateResponse(Wire, kw_only=True):
    user_id: str
    session_id: str | None = None
    user_name: str | None = None
    display_name: str | None = None
    referrer_url: str | None = None
    bearer_token: str | None = None
    refresh_token: str | None = None
    refresh_token_expiry: datetime | None = None
    profile_url: str | None = None
    roles: list[str] | None = None
    permissions: list[str] | None = None
    auth_provider: str | None = None
    meta: dict[str, str] | None = None
    response_status: ResponseStatus | None = None


@operation(
    tag="Auth",
    verbs=POST + GET,
    access=Access.OPEN,
    returns=AuthenticateResponse,
    routes=(
        Route("/auth", GET + POST),
        Route("/auth/{Provider}", GET + POST),
        Route("/authenticate", GET + POST),
    ),
)
class Authenticate(Wire, kw_only=True):
    """Signs in with an API key or the administrator's secret as password, and starts a session.

    Without a password it tells whose key or session this is, 401 when there is none; the provider
    `logout` ends the session.
    """

    provider: Name | None = None
    user_name: Name | None = None
    password: Annotated[str, Meta(max_length=512)] | None = None
    remember_me: bool | None = None
    access_token: str | None = None
    access_token_secret: str | None = None
    return_url: str | None = None
    error_view: str | None = None
    meta: dict[str, str] | None = None


class NavItem(Wire, kw_only=True):
    label: str
    href: str


class GetNavItemsResponse(Wire, kw_only=True):
    base_url: str | None = None
    results: list[NavItem]
    nav_items_map: dict[str, list[NavItem]]
    response_status: ResponseStatus | None = None


@operation(
    tag="Info",
    verbs=GET,
    access=Access.OPEN,
    returns=GetNavItemsResponse,
    routes=(Route("/metadata/nav", GET),),
)
class MetadataNav(Wire, kw_only=True):
    """Lists the pages of this server."""


class PartialApiKey(Wire, kw_only=True):
    """A key as it may be shown: never its text."""

    id: int
    name: str
    user_id: str | None = None
    user_name: str | None = None
    visible_key: str
    environment: str | None = None
    created_date: datetime
    expiry_date: datetime | None = None
    cancelled_date: datetime | None = None
    last_used_date: datetime | None = None
    scopes: list[str]
    features: list[str]
    restrict_to: list[str]
    models: list[str]
    notes: str | None = None
    ref_id: int | None = None
    ref_id_str: str | None = None
    meta: dict[str, str] | None = None
    active: bool


class AdminApiKeysResponse(Wire, kw_only=True):
    results: list[PartialApiKey]
    response_status: ResponseStatus | None = None


@operation(tag="Admin", verbs=GET, access=Access.ADMIN, returns=AdminApiKeysResponse)
class AdminQueryApiKeys(Wire, kw_only=True):
    """Lists API keys."""

    id: int | None = None
    api_key: str | None = None
    search: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    order_by: str | None = None
    skip: int | None = None
    take: int | None = None


class AdminApiKeyResponse(Wire, kw_only=True):
    """`result` is the key's text, shown this once; `callbackSecret` signs its callbacks."""

    result: str
    callback_secret: str | None = None
    response_status: ResponseStatus | None = None


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=AdminApiKeyResponse)
class AdminCreateApiKey(Wire, kw_only=True):
    """Creates an API key and returns its text, this once."""

    name: Name | None = None
    user_id: Name | None = None
    user_name: Name | None = None
    scopes: Names | None = None
    features: Features | None = None
    restrict_to: Names | None = None
    models: Names | None = None
    expiry_date: datetime | None = None
    notes: Notes | None = None
    ref_id: Number | None = None
    ref_id_str: Name | None = None
    meta: dict[str, str] | None = None


@operation(tag="Admin", verbs=PATCH, access=Access.ADMIN, returns=EmptyResponse)
class AdminUpdateApiKey(Wire, kw_only=True):
    """Changes the given members of an API key; `reset` names members to clear."""

    id: Number
    name: Name | None = None
    user_id: Name | None = None
    user_name: Name | None = None
    scopes: Names | None = None
    features: Features | None = None
    restrict_to: Names | None = None
    models: Names | None = None
    expiry_date: datetime | None = None
    cancelled_date: datetime | None = None
    notes: Notes | None = None
    ref_id: Number | None = None
    ref_id_str: Name | None = None
    meta: dict[str, str] | None = None
    reset: list[str] | None = None


@operation(tag="Admin", verbs=DELETE, access=Access.ADMIN, returns=EmptyResponse)
class AdminDeleteApiKey(Wire, kw_only=True):
    """Deletes an API key; calls with it are refused from then on."""

    id: Number


class CreateApiKeyResponse(Wire, kw_only=True):
    """`key` is the key's text; it is shown this once."""

    id: int
    key: str
    name: str
    user_id: str | None = None
    user_name: str | None = None
    visible_key: str
    created_date: datetime
    expiry_date: datetime | None = None
    cancelled_date: datetime | None = None
    notes: str | None = None


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=CreateApiKeyResponse)
class CreateApiKey(Wire, kw_only=True):
    """Creates an API key, from a text of the caller's or a new one."""

    key: str | None = None
    name: Name | None = None
    user_id: Name | None = None
    user_name: Name | None = None
    scopes: Names | None = None
    restrict_to: Names | None = None
    models: Names | None = None
    notes: Notes | None = None
    ref_id: Number | None = None
    ref_id_str: Name | None = None
    meta: dict[str, str] | None = None
