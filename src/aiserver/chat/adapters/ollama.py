"""Speaks Ollama's own protocol, which unlike its OpenAI twin carries every option of a model."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from aiserver.chat.adapters.adapter import Answered, Chat, Outgoing
from aiserver.chat.adapters.ollama_messages import messages_of, raw_image
from aiserver.chat.adapters.ollama_stream import (
    UNREADABLE,
    ChunkReader,
    Line,
    Message,
    NativeReader,
    OllamaReader,
    completion_id,
    error_in,
    error_in_words,
    finish_reason,
    lines,
    log_probabilities,
    tool_calls,
    usage_members,
)
from aiserver.chat.failures import ErrorAnswer, broken, in_stream
from aiserver.contract.errors import InvalidRequest
from aiserver.providers.endpoints import Endpoint

# Members that Ollama knows under the same name, at the top and among a model's options.
_OWN = ("keep_alive", "truncate", "shift", "logprobs", "top_logprobs")
_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
)
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
}
_UNKNOWN_TO_OLLAMA = ("logit_bias", "functions", "function_call", "audio")


class NativeChat(Chat, kw_only=True):
    """A chat that came as a call of /api/generate; `native` are its members in Ollama's words."""

    native: dict[str, Any]


class NativeAnswer(Answered, frozen=True):
    """A whole answer of /api/generate, as Ollama gave it."""


class _Listed(msgspec.Struct):
    name: str = ""
    model: str = ""


class _Listing(msgspec.Struct):
    models: list[_Listed] | None


_listings = msgspec.json.Decoder(_Listing)


class OllamaAdapter:
    """One for all Ollama servers; a `NativeChat` goes through as it came."""

    def request(self, chat: Chat, endpoint: Endpoint, *, model: str, provider: str) -> Outgoing:
        if isinstance(chat, NativeChat):
            body = {**chat.native, "model": model, "stream": chat.stream}
            return Outgoing("/generate", msgspec.json.encode(body))
        members = chat.members
        _refuse_unknown(members)
        body: dict[str, Any] = {
            "model": model,
            "messages": messages_of(members["messages"]),
            "stream": chat.stream,
            # By default Ollama drops the start of a chat that is too long, and answers the rest.
            "truncate": False,
        }
        body |= {name: members[name] for name in _OWN if members.get(name) is not None}
        if tools := _tools(members):
            body["tools"] = tools
        for name, value in (
            ("options", _options(members)),
            ("format", _format(members)),
            ("think", _think(members)),
        ):
            if value is not None:
                body[name] = value
        return Outgoing("/chat", msgspec.json.encode(body))

    def answer(self, body: bytes, chat: Chat, *, provider: str) -> Answered:
        try:
            read = lines.decode(body)
        except UNREADABLE as error:
            problem = "sent an answer that cannot be read."
            raise broken(provider, problem, detail=str(error)) from None
        if read.error is not None:
            raise in_stream(provider, error_in(body), lost=False)
        if not read.done:
            raise broken(provider, "sent an answer without an end.")
        if isinstance(chat, NativeChat):
            if read.response is None and read.image is None:
                raise broken(provider, "sent an answer without a response.")
            return NativeAnswer(body, read.usage)
        if read.message is None:
            raise broken(provider, "sent an answer without a message.")
        return Answered(msgspec.json.encode(_completion(read, read.message, chat)), read.usage)

    def reader(self, chat: Chat, endpoint: Endpoint, *, provider: str) -> OllamaReader:
        if isinstance(chat, NativeChat):
            return NativeReader(provider)
        return ChunkReader(provider, chat)

    def error(self, body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
        return error_in_words(body, headers)

    def listing(self) -> str:
        return "/tags"

    def models(self, body: bytes) -> list[str]:
        return _names(body)


def loaded(body: bytes) -> set[str]:
    """The models that an answer of /ps calls loaded. Raises msgspec.MsgspecError."""
    return set(_names(body))


def native_images(images: list[Any]) -> list[str]:
    """As /generate takes them. Raises InvalidRequest for an address."""
    return [raw_image(image, param="images") for image in images]


def _names(body: bytes) -> list[str]:
    try:
        listed = _listings.decode(body).models or []
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None
    return [name for each in listed if (name := each.name or each.model)]


def _completion(read: Line, said: Message, chat: Chat) -> dict[str, Any]:
    calls = tool_calls(said.tool_calls or [])
    message: dict[str, Any] = {"role": "assistant", "content": said.content or ""}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if calls:
        message["content"] = said.content or None
        message["tool_calls"] = calls
    reason = finish_reason(read.done_reason, called=bool(calls))
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
    if read.logprobs:
        choice["logprobs"] = log_probabilities(read.logprobs)
    completion: dict[str, Any] = {
        "id": completion_id(),
        "object": "chat.completion",
        "created": chat.created,
        "model": read.model or chat.model,
        "choices": [choice],
    }
    counted = usage_members(read.usage)
    return completion if counted is None else {**completion, "usage": counted}


def _refuse_unknown(members: dict[str, Any]) -> None:
    for name in _UNKNOWN_TO_OLLAMA:
        if members.get(name):
            raise InvalidRequest(f"This provider speaks Ollama, which has no {name}.", param=name)
    if members.get("n") not in (None, 1):
        raise InvalidRequest(
            "This provider speaks Ollama, which gives one answer to a call; leave out n.", param="n"
        )


def _tools(members: dict[str, Any]) -> Any:
    choice = members.get("tool_choice")
    if choice in (None, "auto"):
        return members.get("tools")
    if choice == "none":
        return None
    raise InvalidRequest(
        "This provider speaks Ollama, where a model cannot be made to call a tool; leave out "
        'tool_choice, or send "auto" or "none".',
        param="tool_choice",
    )


def _options(members: dict[str, Any]) -> dict[str, Any] | None:
    """The caller's own `options` go before what the normal form says."""
    options = {name: members[name] for name in _OPTIONS if members.get(name) is not None}
    stop = members.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    most = members.get("max_completion_tokens")
    if most is None:
        most = members.get("max_tokens")
    if most is not None:
        options["num_predict"] = most
    own = members.get("options")
    if isinstance(own, dict):
        options |= cast("dict[str, Any]", own)
    return options or None


def _format(members: dict[str, Any]) -> Any:
    """The word json, or a JSON schema that the model is held to."""
    if members.get("format"):
        return members["format"]
    wanted = members.get("response_format")
    if not isinstance(wanted, dict):
        return None
    asked = cast("dict[str, Any]", wanted)
    match asked.get("type"):
        case None | "text":
            return None
        case "json_object":
            # Some servers take a schema beside this type.
            return asked.get("schema") or "json"
        case "json_schema":
            described = asked.get("json_schema")
            if isinstance(described, dict):
                schema = cast("dict[str, Any]", described).get("schema")
                if isinstance(schema, dict):
                    return cast("dict[str, Any]", schema)
            problem = "response_format.json_schema has no schema."
        case kind:
            problem = f"This provider speaks Ollama, which has no response format {kind!r}."
    raise InvalidRequest(problem, param="response_format")


def _think(members: dict[str, Any]) -> Any:
    if members.get("think") is not None:
        return members["think"]
    effort = members.get("reasoning_effort")
    if effort is None:
        return None
    if not isinstance(effort, str) or effort not in _EFFORTS:
        known = ", ".join(_EFFORTS)
        raise InvalidRequest(f"reasoning_effort must be one of {known}.", param="reasoning_effort")
    return _EFFORTS[effort]
