"""Answers the operation about an Ollama server that is not a provider yet."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from aiserver.contract.errors import FieldError, InvalidRequest, UpstreamFailed, UpstreamTimedOut
from aiserver.contract.operation import Call, Handler
from aiserver.contract.scalars import read_datetime
from aiserver.kit.upstream import Target, Timeouts, UpstreamError, UpstreamPool, UpstreamTimeout
from aiserver.providers.catalogue import api_root
from aiserver.providers.ollama_operations import (
    GetOllamaModels,
    GetOllamaModelsResponse,
    OllamaModel,
    OllamaModelDetails,
)
from aiserver.settings.casts import web_url

MAX_LISTING = 8 * 1024 * 1024
_TIMEOUTS = Timeouts(connect=5, first_byte=15, gap=15, total=30)

Ask = Callable[[str], Awaitable[bytes]]


class _Listed(msgspec.Struct):
    """As lenient as the servers are that only resemble Ollama."""

    name: str = ""
    model: str = ""
    modified_at: Any = None
    size: int | None = None
    digest: str | None = None
    details: OllamaModelDetails | None = None


class _Listing(msgspec.Struct):
    models: list[_Listed] | None


_listings = msgspec.json.Decoder(_Listing)


class OllamaHandlers:
    """`ask` gets the body of status 200 at an address, of 8 MB at most; it raises ApiError."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {GetOllamaModels: self.models}

    async def models(self, request: GetOllamaModels, call: Call) -> GetOllamaModelsResponse:
        body = await self._ask(_address(request.api_base_url))
        try:
            listed = _listings.decode(body).models or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamFailed(
                "What answers at this address lists models in no form of Ollama's; check the "
                "address and its port, which by default is 11434."
            ) from error
        return GetOllamaModelsResponse(results=[_model(each) for each in listed])


def asking(pool: UpstreamPool) -> Ask:
    """Asks over a pool's connections, within 30 seconds."""

    async def ask(url: str) -> bytes:
        target = Target.parse(url)
        try:
            async with await pool.send(target, method=b"GET", timeouts=_TIMEOUTS) as response:
                if response.status == 200:
                    return await response.read(MAX_LISTING)
                problem = f"answers with status {response.status}; check the address."
        except UpstreamTimeout as error:
            raise UpstreamTimedOut(f"{_place(target)} did not answer in time.") from error
        except UpstreamError as error:
            raise UpstreamFailed(
                f"{_place(target)} cannot be reached or read; check the address and that Ollama "
                "runs there and listens for this host."
            ) from error
        raise UpstreamFailed(f"{_place(target)} {problem}")

    return ask


def _place(target: Target) -> str:
    return f"{target.host}:{target.port}"


def _address(base_url: str) -> str:
    try:
        address = f"{api_root(web_url(base_url), '/api')}/tags"
        Target.parse(address)
    except ValueError as error:
        message = f"'Api Base Url' is not valid: {error}."
        fields = [FieldError("ArgumentException", "ApiBaseUrl", message)]
        raise InvalidRequest.of(fields, param="apiBaseUrl") from None
    return address


def _model(listed: _Listed) -> OllamaModel:
    name = listed.name or listed.model
    try:
        modified = read_datetime(listed.modified_at)
    except (TypeError, ValueError):
        modified = None
    return OllamaModel(
        name=name,
        model=listed.model or name,
        modified_at=modified,
        size=listed.size,
        digest=listed.digest,
        details=listed.details,
    )
