"""Speaks to upstreams in OpenAI's own form, which is most of them."""

from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import Any, cast

import msgspec

from aiserver import __version__
from aiserver.chat.adapters.failures import mapped, refused
from aiserver.chat.streaming import (
    DONE,
    EventSplitter,
    as_events,
    data_of,
    read_chunk,
    without_usage,
)
from aiserver.contract.errors import UpstreamFailed
from aiserver.kit.upstream import Target, Timeouts, UpstreamError, UpstreamPool, UpstreamResponse
from aiserver.providers.endpoints import Endpoint

MAX_ANSWER = 64 * 1024 * 1024
_MAX_LISTING = 8 * 1024 * 1024
_LISTING = Timeouts(connect=5, first_byte=15, gap=15, total=30)
# Members that steer the gateway and mean nothing to an upstream.
_OURS = ("refId", "tag", "replyTo")


class _Answer(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Listed(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Listed] = []


def body_for(members: dict[str, Any], *, model: str, ask_usage: bool) -> bytes:
    """What goes upstream: the caller's members, less the gateway's own."""
    body = {name: value for name, value in members.items() if name not in _OURS}
    body["model"] = model
    if not isinstance(body.get("provider"), dict):
        body.pop("provider", None)
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and "response_format" in response_format:
        body["response_format"] = _modern(cast("dict[str, Any]", response_format))
    body["messages"] = [_without_empty_images(message) for message in body.get("messages") or ()]
    if ask_usage:
        options = cast("dict[str, Any]", body.get("stream_options") or {})
        body["stream_options"] = {**options, "include_usage": True}
    return msgspec.json.encode(body)


def _without_empty_images(message: Any) -> Any:
    # Typed clients fill this list by themselves; strict upstreams refuse a member unknown to them.
    members = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    if "images" in members and not members["images"]:
        return {name: value for name, value in members.items() if name != "images"}
    return cast("Any", message)


@lru_cache(maxsize=1024)
def _target(url: str) -> Target:
    return Target.parse(url)


def _modern(response_format: dict[str, Any]) -> dict[str, Any]:
    spelled = dict(response_format)
    legacy = spelled.pop("response_format")
    return {"type": legacy, **spelled}


class OpenAiAdapter:
    """One for all upstreams of this form; the pool keeps their connections."""

    def __init__(self, pool: UpstreamPool, timeouts: Timeouts) -> None:
        self._pool = pool
        self._timeouts = timeouts

    async def complete(
        self, endpoint: Endpoint, provider: str, body: bytes, request_id: str
    ) -> bytes:
        """The whole answer. Raises UpstreamRejected, UpstreamFailed or UpstreamTimedOut."""
        try:
            async with await self._send(endpoint, body, request_id) as response:
                if response.status != 200:
                    raise await refused(response, provider)
                answer = await response.read(MAX_ANSWER)
        except UpstreamError as error:
            raise mapped(error, provider) from error
        _check(answer, provider)
        return answer

    async def stream(
        self, endpoint: Endpoint, provider: str, body: bytes, request_id: str
    ) -> UpstreamResponse:
        """The upstream's answer at its first byte, to be read with `events`."""
        try:
            response = await self._send(endpoint, body, request_id)
        except UpstreamError as error:
            raise mapped(error, provider) from error
        try:
            if response.status != 200:
                raise await refused(response, provider)
            return response
        except UpstreamError as error:
            response.close()
            raise mapped(error, provider) from error
        except BaseException:
            response.close()
            raise

    async def list_models(self, endpoint: Endpoint, provider: str) -> list[str]:
        """The ids that the upstream lists."""
        target = Target.parse(f"{endpoint.root}/models")
        try:
            async with await self._pool.send(
                target, method=b"GET", headers=endpoint.headers, timeouts=_LISTING
            ) as response:
                if response.status != 200:
                    raise await refused(response, provider)
                body = await response.read(_MAX_LISTING)
        except UpstreamError as error:
            raise mapped(error, provider) from error
        try:
            return [model.id for model in msgspec.json.decode(body, type=_Listing).data]
        except msgspec.MsgspecError as error:
            raise UpstreamFailed(f"Provider {provider} lists models in no known form.") from error

    async def _send(self, endpoint: Endpoint, body: bytes, request_id: str) -> UpstreamResponse:
        headers = (
            (b"Content-Type", b"application/json"),
            (b"User-Agent", f"ai-server/{__version__}".encode()),
            (b"X-Request-Id", request_id.encode()),
            *endpoint.headers,
        )
        target = _target(f"{endpoint.root}/chat/completions")
        return await self._pool.send(target, headers=headers, body=body, timeouts=self._timeouts)


async def events(
    response: UpstreamResponse, provider: str, *, strip_usage: bool
) -> AsyncGenerator[bytes]:
    """The upstream's events for the caller; ends with [DONE] or raises.

    `strip_usage` takes out what only the gateway asked for.
    """
    splitter = EventSplitter()
    finished = False
    if response.headers.get(b"content-type", b"").startswith(b"application/json"):
        for event in await _whole(response, provider, with_usage=not strip_usage):
            yield event
        return
    try:
        async for data in response:
            for event in splitter.feed(data):
                payload = data_of(event)
                if payload is None:
                    yield event + b"\n\n"
                    continue
                if payload == b"[DONE]":
                    yield DONE
                    return
                chunk = read_chunk(payload)
                if chunk.failed:
                    raise _in_stream(bytes(chunk.error), provider)
                finished = finished or chunk.finished
                if not (strip_usage and b'"usage"' in payload):
                    yield b"data: " + payload + b"\n\n"
                elif not chunk.only_usage:
                    yield b"data: " + without_usage(payload) + b"\n\n"
    except UpstreamError as error:
        raise mapped(error, provider) from error
    if not finished or splitter.rest():
        raise UpstreamFailed(f"Provider {provider} broke off its stream before the end.")
    yield DONE


async def _whole(response: UpstreamResponse, provider: str, *, with_usage: bool) -> list[bytes]:
    try:
        answer = await response.read(MAX_ANSWER)
    except UpstreamError as error:
        raise mapped(error, provider) from error
    _check(answer, provider)
    try:
        return as_events(answer, with_usage=with_usage)
    except (msgspec.MsgspecError, AttributeError, TypeError) as error:
        raise UpstreamFailed(f"Provider {provider} sent choices of no known form.") from error


def _check(answer: bytes, provider: str) -> None:
    try:
        read = msgspec.json.decode(answer, type=_Answer)
    except msgspec.MsgspecError as error:
        raise UpstreamFailed(f"Provider {provider} sent an answer that is not JSON.") from error
    if bytes(read.error) != b"null":
        raise _in_stream(bytes(read.error), provider)
    if read.choices is None:
        raise UpstreamFailed(f"Provider {provider} sent an answer without choices.")


def _in_stream(error: bytes, provider: str) -> UpstreamFailed:
    from_upstream = msgspec.json.decode(error)
    message = from_upstream if isinstance(from_upstream, str) else ""
    if isinstance(from_upstream, dict):
        message = str(cast("dict[str, Any]", from_upstream).get("message") or "")
    return UpstreamFailed(f"Provider {provider} failed: {message[:2000] or 'no reason given'}")
