"""Answers the operations about the catalogue."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from aiserver.contract.autoquery import Query, Table
from aiserver.contract.operation import Call, Content, Handler
from aiserver.contract.responses import EmptyResponse, QueryResponse, ResponseStatus
from aiserver.providers.catalogue import BY_ID, LOCAL_TYPE, TYPES, AiProviderType, AiType
from aiserver.providers.catalogue_operations import (
    ActiveAiModels,
    ActiveAiModelsResponse,
    ActiveCustomAiModels,
    ActiveMediaModels,
    ActiveMediaModelsResponse,
    Entry,
    GetModelImage,
    QueryAiModels,
    QueryAiTypes,
    QueryMediaModels,
    QueryMediaTypes,
    QueryPrompts,
    QueryTextToSpeechVoices,
    Reload,
    StringsResponse,
)
from aiserver.providers.icons import icon_of
from aiserver.providers.models import (
    AiModel,
    Catalogue,
    MediaModel,
    MediaType,
    ModelType,
    Prompt,
    TextToSpeechVoice,
)
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider

_KEPT = (b"Cache-Control", b"max-age=3600")


class CatalogueHandlers:
    """`media` names the media models that are served now; `reread` renews what the store holds."""

    def __init__(
        self,
        catalogue: Catalogue,
        pool: ProviderPool,
        *,
        asleep: Callable[[Provider], bool],
        media: Callable[[], Iterable[str]],
        reread: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        self._catalogue = catalogue
        self._pool = pool
        self._asleep = asleep
        self._media = media
        self._reread = reread
        self._tables: dict[type[msgspec.Struct], Table[Any]] = {}

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            QueryAiModels: self.ai_models,
            QueryAiTypes: self.ai_types,
            QueryMediaTypes: self.media_types,
            QueryMediaModels: self.media_models,
            QueryPrompts: self.prompts,
            QueryTextToSpeechVoices: self.voices,
            ActiveAiModels: self.active,
            ActiveCustomAiModels: self.active_custom,
            ActiveMediaModels: self.active_media,
            GetModelImage: self.image,
            Reload: self.reload,
        }

    async def ai_models(self, request: QueryAiModels, call: Call) -> QueryResponse[AiModel]:
        return self._query(AiModel, lambda: self._catalogue.ai_models, request, call)

    async def ai_types(self, request: QueryAiTypes, call: Call) -> QueryResponse[AiType]:
        return self._query(AiType, _ai_types, request, call)

    async def media_types(self, request: QueryMediaTypes, call: Call) -> QueryResponse[MediaType]:
        return self._query(MediaType, lambda: self._catalogue.media_types, request, call)

    async def prompts(self, request: QueryPrompts, call: Call) -> QueryResponse[Prompt]:
        return self._query(Prompt, lambda: self._catalogue.prompts, request, call)

    async def voices(
        self, request: QueryTextToSpeechVoices, call: Call
    ) -> QueryResponse[TextToSpeechVoice]:
        return self._query(TextToSpeechVoice, lambda: self._catalogue.voices, request, call)

    async def media_models(
        self, request: QueryMediaModels, call: Call
    ) -> QueryResponse[MediaModel]:
        if request.id is None and request.provider_id is None:
            return self._query(MediaModel, lambda: self._catalogue.media_models, request, call)
        rows = self._catalogue.media_models
        if request.id is not None:
            row = self._catalogue.media_model(request.id)
            rows = [row] if row else []
        if request.provider_id is not None:
            rows = [row for row in rows if request.provider_id in row.api_models]
        return Table(MediaModel, rows).query(request, call.pairs)

    async def active(self, request: ActiveAiModels, call: Call) -> ActiveAiModelsResponse:
        names = self._active(request.provider)
        if request.vision:
            names = [name for name in names if self._sees(name)]
        return ActiveAiModelsResponse(results=names)

    async def active_custom(self, request: ActiveCustomAiModels, call: Call) -> StringsResponse:
        unknown = [n for n in self._active(None) if self._catalogue.ai_model(n) is None]
        return StringsResponse(results=unknown)

    async def active_media(
        self, request: ActiveMediaModels, call: Call
    ) -> ActiveMediaModelsResponse:
        found = (self._catalogue.media_model(id) for id in sorted(set(self._media())))
        return ActiveMediaModelsResponse(
            results=[
                Entry(key=model.id, value=model.name or model.id)
                for model in found
                if model is not None and model.type is ModelType.TEXT_TO_IMAGE
            ]
        )

    async def image(self, request: GetModelImage, call: Call) -> Content:
        return Content(icon_of(request.model or ""), "image/svg+xml", (_KEPT,))

    async def reload(self, request: Reload, call: Call) -> EmptyResponse:
        self._catalogue.reload()
        self._tables.clear()
        problems = self._catalogue.problems | await self._reread()
        if not problems:
            return EmptyResponse()
        told = f"Not used: {', '.join(problems)}. The rows shipped with the server stay."
        # No code: the reload itself has succeeded.
        return EmptyResponse(
            response_status=ResponseStatus(error_code="", message=told, meta=dict(problems))
        )

    def _query(
        self, row: type[Any], rows: Callable[[], Iterable[Any]], request: Query, call: Call
    ) -> QueryResponse[Any]:
        if row not in self._tables:
            self._tables[row] = Table(row, rows())
        return self._tables[row].query(request, call.pairs)

    def _active(self, kind: AiProviderType | None) -> list[str]:
        """What providers that are enabled, online and awake serve, in the order of the names."""
        names = {
            name
            for provider in self._pool.providers()
            if provider.enabled and self._pool.offline_since(provider) is None
            if not self._asleep(provider)
            if kind is None or BY_ID[provider.ai_type_id].wire.provider is kind
            for name in self._pool.served_by(provider)
        }
        return sorted(names, key=lambda name: (name.casefold(), name))

    def _sees(self, name: str) -> bool:
        row = self._catalogue.ai_model(name)
        return row is not None and bool(row.vision)


def _ai_types() -> list[AiType]:
    return [kind.wire for kind in TYPES if kind.wire.id != LOCAL_TYPE]
