"""What can be called about providers of chat models."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import DELETE, GET, PATCH, POST, Access, Route, operation
from aiserver.contract.responses import IdResponse, QueryResponse, ResponseStatus, Wire
from aiserver.providers.catalogue import AiType

ProviderName = Annotated[str, Meta(min_length=1, max_length=100)]
ModelName = Annotated[str, Meta(min_length=1, max_length=300)]
Text = Annotated[str, Meta(max_length=2000)]
Slots = Annotated[int, Meta(ge=0, le=100_000)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
Weight = Annotated[int, Meta(ge=1, le=1000, description="Its part of the load beside others")]


class AiProviderModel(Wire, kw_only=True):
    """`model` as callers ask for it, `api_model` as the upstream knows it when that differs."""

    model: ModelName
    api_model: Annotated[str, Meta(max_length=300)] | None = None


class AiProvider(Wire, kw_only=True):
    """A provider as it may be shown; the base URL only to an administrator, its key never."""

    id: int
    name: str
    api_base_url: str | None = None
    api_key_var: str | None = None
    api_key_header: str | None = None
    heartbeat_url: str | None = None
    concurrency: int
    priority: int
    weight: int = 1
    enabled: bool
    offline_date: datetime | None = None
    created_date: datetime
    models: list[AiProviderModel]
    ai_type_id: str
    ai_type: AiType
    selected_models: list[str]


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=QueryResponse[AiProvider])
class QueryAiProviders(Query, kw_only=True):
    """Lists the providers of chat models."""

    name: str | None = None


class GetActiveProvidersResponse(Wire, kw_only=True):
    results: list[AiProvider]
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=GetActiveProvidersResponse)
class GetActiveProviders(Wire, kw_only=True):
    """Lists the providers that take calls now."""


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=IdResponse)
class CreateAiProvider(Wire, kw_only=True):
    """Adds a provider. Without models it serves those that the upstream lists."""

    ai_type_id: str
    name: ProviderName
    api_base_url: Text | None = None
    api_key_var: Text | None = None
    api_key: Text | None = None
    api_key_header: Text | None = None
    heartbeat_url: Text | None = None
    task_paths: dict[str, str] | None = None
    concurrency: Slots | None = None
    priority: Priority | None = None
    weight: Weight | None = None
    enabled: bool | None = None
    models: list[AiProviderModel] | None = None
    selected_models: list[ModelName] | None = None


@operation(tag="Admin", verbs=PATCH, access=Access.ADMIN, returns=IdResponse)
class UpdateAiProvider(Wire, kw_only=True):
    """Changes the given members of a provider; `reset` in the query names members to clear."""

    id: int
    ai_type_id: str | None = None
    name: ProviderName | None = None
    api_base_url: Text | None = None
    api_key_var: Text | None = None
    api_key: Text | None = None
    api_key_header: Text | None = None
    heartbeat_url: Text | None = None
    task_paths: dict[str, str] | None = None
    concurrency: Slots | None = None
    priority: Priority | None = None
    weight: Weight | None = None
    enabled: bool | None = None
    models: list[AiProviderModel] | None = None
    selected_models: list[ModelName] | None = None


@operation(tag="Admin", verbs=DELETE, access=Access.ADMIN, returns=None)
class DeleteAiProvider(Wire, kw_only=True):
    """Removes a provider; calls that it is answering are finished."""

    id: int


class OpenAiModel(Wire, kw_only=True, rename=None):
    """A model in OpenAI's shape."""

    id: str
    object: str
    created: int
    owned_by: str


class ListModelsResponse(Wire, kw_only=True, rename=None):
    object: str
    data: list[OpenAiModel]


@operation(
    tag="AI Info",
    verbs=GET,
    access=Access.KEY,
    returns=ListModelsResponse,
    routes=(Route("/v1/models", GET),),
    beyond_contract=True,
)
class ListModels(Wire, kw_only=True):
    """Lists the models that this key can ask for, in OpenAI's shape."""


@operation(
    tag="AI Info",
    verbs=GET,
    access=Access.KEY,
    returns=OpenAiModel,
    routes=(Route("/v1/models/{Model*}", GET),),
    beyond_contract=True,
)
class GetModel(Wire, kw_only=True):
    """Shows one model that this key can ask for, in OpenAI's shape."""

    model: str
