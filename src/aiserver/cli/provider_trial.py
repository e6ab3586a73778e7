"""Tries one provider as the server would: lists its models, and chats where asked to."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.dialects import ADAPTERS
from aiserver.chat.failures import Failure
from aiserver.chat.upstreams import Upstreams
from aiserver.cli.checks import FAILED, OK, Finding, Installation
from aiserver.cli.provider_checks import ProviderChecks
from aiserver.contract.errors import ApiError, Unavailable
from aiserver.kit.ids import random_hex
from aiserver.kit.upstream import Timeouts, UpstreamPool
from aiserver.providers.endpoints import Endpoints
from aiserver.providers.models import Catalogue
from aiserver.providers.names import served_models
from aiserver.providers.store import EMBEDDED, Provider

_MOST_ANSWER = 1024 * 1024
_PATIENCE = Timeouts(connect=5, first_byte=60, gap=60, total=90)
_QUESTION = "Answer with the word OK."

T = TypeVar("T")


class Tried(msgspec.Struct, rename="camel", kw_only=True):
    """What came of it; times in seconds, `models` as the upstream lists them."""

    provider: str
    state: str
    found: str
    do: str
    seconds: float
    models: list[str] = []
    chat: str | None = None
    chat_seconds: float | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


class Trial:
    """`learn` is told every key, so that what is printed never shows one; `close` ends it."""

    def __init__(self, at: Installation, provider: Provider, learn: Callable[[str], None]) -> None:
        self._at = at
        # One that is disabled is tried all the same: that is when one wants to know.
        self._provider = msgspec.structs.replace(provider, enabled=True)
        self._learn = learn
        self._pool = UpstreamPool()
        self._upstreams = Upstreams(self._pool, ADAPTERS)
        self._endpoints = Endpoints(at.store, at.settings.texts(), _no_engine, learn)

    async def close(self) -> None:
        await self._pool.aclose()

    async def run(self, model: str | None) -> Tried:
        """Lists; then one smallest chat with `model`, when that went well."""
        finding, seconds = await _timed(self._check())
        tried = Tried(
            provider=self._provider.name,
            state=finding.state,
            found=finding.found,
            do=finding.do,
            seconds=seconds,
        )
        if finding.state == FAILED or self._provider.source == EMBEDDED:
            return tried
        try:
            endpoint = await self._endpoints.of(self._provider)
            tried.models = await self._upstreams.list_models(endpoint, self._provider.name)
            if model is not None:
                tried.chat, tried.chat_seconds = await _timed(self._chat(model))
        except Failure as failure:
            tried.state, tried.found = FAILED, _told(failure)
        except ApiError as error:
            tried.state, tried.found = FAILED, error.message
        return tried

    async def _check(self) -> Finding:
        name = f"provider {self._provider.name}"
        if self._provider.source == EMBEDDED:
            return Finding(name, OK, "the embedded model runs in the server", "ai-server doctor")
        only = msgspec.structs.replace(self._at, providers=(self._provider,))
        checks = ProviderChecks(only, self._learn)
        try:
            return await dict(checks.all())[name]()
        finally:
            await checks.close()

    async def _chat(self, model: str) -> str:
        catalogue = Catalogue(self._at.folder / "overrides")
        named = served_models(self._provider, {}, catalogue.qualified)
        name = self._provider.name
        endpoint = await self._endpoints.of(self._provider)
        adapter = self._upstreams.adapter(endpoint)
        chat = Chat(
            members={"model": model, "messages": [{"role": "user", "content": _QUESTION}]},
            model=model,
            stream=False,
            wants_usage=False,
            request_id=random_hex(),
            created=int(time.time()),
        )
        response = await self._upstreams.send(
            endpoint,
            adapter.request(chat, endpoint, model=named.get(model, model), provider=name),
            provider=name,
            request_id=chat.request_id,
            timeouts=_PATIENCE,
        )
        async with response:
            body = await self._upstreams.read(response, _MOST_ANSWER, name)
        answer = msgspec.json.decode(
            adapter.answer(body, chat, provider=name).body, type=_Completion
        )
        return next((choice.message.content or "" for choice in answer.choices), "")


async def _timed(work: Awaitable[T]) -> tuple[T, float]:
    began = time.monotonic()
    return await work, round(time.monotonic() - began, 3)


async def _no_engine() -> tuple[str, str]:
    raise Unavailable("The embedded model belongs to the running server.")


def _told(failure: Failure) -> str:
    detail = failure.detail if failure.detail != failure.error.message else ""
    return f"{failure.error.message} {detail}".strip()
