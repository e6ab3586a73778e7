"""OpenAI's own dialect, which most upstreams speak: goes through as it came, read only in part."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from aiserver.chat.adapters.adapter import Answered, Chat, Outgoing
from aiserver.chat.failures import ErrorAnswer, Failure, broken, in_stream
from aiserver.chat.flavours import Flavour, adjusted, error_answer, flavour_of, usage_of
from aiserver.chat.ordinary import ordinary_usage
from aiserver.chat.replies import GaveUp, normal_payload
from aiserver.chat.streaming import (
    DONE,
    EventSplitter,
    data_of,
    without_usage,
)
from aiserver.contract.errors import UpstreamFailed
from aiserver.contract.trace import Usage
from aiserver.providers.endpoints import Endpoint

_NULL = b"null"
_NOTHING = frozenset({b"null", b'""', b"[]", b"{}"})
# Line ends of a chunk's own: after its size and at its end.
_FRAME = 2
# What a piece of a stream must not hold to be passed on unread once the model speaks.
_NOTABLE = (b'"usage"', b'"error"', b'finish_reason":"', b'finish_reason": "', b"[DONE]", b"\r")


class _Answer(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    error: msgspec.Raw = msgspec.Raw(_NULL)


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw(_NULL)
    x_groq: msgspec.Raw = msgspec.Raw(_NULL)
    error: msgspec.Raw = msgspec.Raw(_NULL)


class _Listed(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Listed] = []


_answers = msgspec.json.Decoder(_Answer)
_chunks = msgspec.json.Decoder(_Chunk)
_listings = msgspec.json.Decoder(_Listing)


class OpenAiAdapter:
    """One for all upstreams of this dialect; how they differ is a row of `flavours`."""

    def request(self, chat: Chat, endpoint: Endpoint, *, model: str, provider: str) -> Outgoing:
        body = adjusted(chat.members, flavour_of(endpoint.type.wire.id))
        if body is chat.members:
            body = dict(body)
        body["model"] = model
        if adds_usage(chat, endpoint):
            body["stream_options"] = with_usage(body.get("stream_options"))
        return Outgoing("/chat/completions", msgspec.json.encode(body))

    def answer(self, body: bytes, chat: Chat, *, provider: str) -> Answered:
        usage = ordinary_usage(body)
        if usage is not None:
            return Answered(body, usage)
        try:
            read = _answers.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise broken(
                provider, "sent an answer that cannot be read.", detail=str(error)
            ) from None
        if bytes(read.error) != _NULL:
            raise in_stream(provider, error_answer(body, {}), lost=False)
        if read.choices is None:
            raise broken(provider, "sent an answer without choices.")
        try:
            return Answered(normal_payload(body), usage_of(body))
        except GaveUp as error:
            raise broken(provider, "gave up on its answer.", detail=str(error)) from None

    def reader(self, chat: Chat, endpoint: Endpoint, *, provider: str) -> "OpenAiReader":
        strip = not chat.wants_usage
        return OpenAiReader(provider, flavour_of(endpoint.type.wire.id), strip_usage=strip)

    def error(self, body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
        return error_answer(body, headers)

    def listing(self) -> str:
        return "/models"

    def models(self, body: bytes) -> list[str]:
        return [model.id for model in _listings.decode(body).data]


def adds_usage(chat: Chat, endpoint: Endpoint) -> bool:
    """Whether the gateway asks for the usage of a stream whose caller does not."""
    return chat.stream and endpoint.type.asks_usage and not chat.wants_usage


def with_usage(options: Any) -> dict[str, Any]:
    """The `stream_options` that ask for it too."""
    return {**cast("dict[str, Any]", options or {}), "include_usage": True}


class OpenAiReader:
    """Passes a stream on; `strip_usage` takes out what only the gateway asked for."""

    def __init__(self, provider: str, flavour: Flavour, *, strip_usage: bool) -> None:
        self.native = False
        self.begun = False
        self.finished = False
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self._provider = provider
        self._flavour = flavour
        self._strip = strip_usage
        self._splitter = EventSplitter()
        self._last_words = False

    def feed(self, data: bytes) -> bytes:
        if (
            self.begun
            and not self._flavour.chunked
            and self._splitter.empty
            and data.endswith(b"\n\n")
        ):
            if self._strip:
                # Not within a text: there each quote stands behind a backslash.
                data = data.replace(b',"usage":null', b"")
            for mark in _NOTABLE:
                if mark in data:
                    break
            else:
                return data
        return b"".join(self._events(data))

    def passes(self, framed: bytes) -> bool:
        """Whether a chunk, with its frame, goes on as it is: whole events that say no more."""
        return (
            self.begun
            and self._splitter.empty
            and not self._flavour.chunked
            and framed.endswith(b"\n\n\r\n")
            and framed.count(b"\r") == _FRAME
            and b'"usage"' not in framed
            and b'"error"' not in framed
            and b'finish_reason":"' not in framed
            and b'finish_reason": "' not in framed
            and b"[DONE]" not in framed
        )

    def end(self) -> bytes:
        if self.finished or self.failure is not None:
            return b""
        if not self._last_words or self._splitter.rest():
            self.failure = broken(self._provider, "broke off its stream before the end.")
            return b""
        self.finished = True
        return DONE

    def _events(self, data: bytes) -> list[bytes]:
        given: list[bytes] = []
        try:
            for event in self._splitter.feed(data):
                given.append(self._event(event))
                if self.finished or self.failure is not None:
                    break
        except (UpstreamFailed, msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.failure = broken(
                self._provider, "sent a stream that cannot be read.", detail=str(error)
            )
        return given

    def _event(self, event: bytes) -> bytes:
        payload = data_of(event)
        if payload is None:
            return event + b"\n\n"
        if payload == b"[DONE]":
            self.finished = True
            return DONE
        chunk = _chunks.decode(payload)
        if bytes(chunk.error) != _NULL:
            answer = error_answer(payload, {})
            self.failure = in_stream(self._provider, answer, lost=self.begun)
            return b""
        has_usage = bytes(chunk.usage) != _NULL
        if has_usage or bytes(chunk.x_groq) != _NULL:
            self.usage = usage_of(payload) or self.usage
        if self._flavour.chunked or any(choice.finish_reason for choice in chunk.choices or ()):
            try:
                payload = normal_payload(payload)
            except GaveUp as error:
                self.failure = broken(self._provider, "gave up on its answer.", detail=str(error))
                return b""
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self._last_words = self.begun = True
            if not self.begun and (choice.text or _says(choice.delta)):
                self.begun = True
        if self._strip and b'"usage"' in payload:
            if has_usage and not chunk.choices:
                return b""
            payload = without_usage(payload)
        return b"data: " + payload + b"\n\n"


def _says(delta: dict[str, msgspec.Raw] | None) -> bool:
    """Whether a delta holds anything of the model's, be it text, reasoning or a tool call."""
    return any(
        name != "role" and bytes(value) not in _NOTHING for name, value in (delta or {}).items()
    )
