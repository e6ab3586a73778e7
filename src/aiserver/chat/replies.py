"""Brings what OpenAI-compatible upstreams answer into OpenAI's own form, where it differs."""

from typing import Any, Literal, cast

import msgspec

FAILED = "error"
_FINISHES = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
    "model_length": "length",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "refusal": "content_filter",
    "error": FAILED,
    "abort": FAILED,
    "network_error": FAILED,
    "insufficient_system_resource": FAILED,
}


class GaveUp(Exception):
    """The upstream ended its answer with a reason that means failure."""


class _Call(msgspec.Struct):
    """A whole call or the opening of one has an id, and then a type; the rest of it neither."""

    id: str | None = None
    type: str | None = None

    def __post_init__(self) -> None:
        if self.id is not None and self.type is None:
            raise ValueError("a call without its type")


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: (
        Literal["stop", "length", "tool_calls", "content_filter", "function_call"] | None
    ) = None


class _Ordinary(msgspec.Struct):
    choices: list[_Choice] | None = None


_ordinary = msgspec.json.Decoder(_Ordinary)


def finish(reason: str) -> str:
    """A finish reason in OpenAI's words; FAILED where the upstream means that it gave up."""
    return _FINISHES.get(reason, "stop")


def normal_payload(payload: bytes) -> bytes:
    """A whole answer or a chunk in OpenAI's form; the same bytes for one that is in it already.

    Raises GaveUp for a finish reason that means failure; what is no JSON object stays as it is.
    """
    try:
        _ordinary.decode(payload)
        return payload
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        members = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
        choices = msgspec.json.decode(members["choices"], type=list[dict[str, Any]])
    except (msgspec.MsgspecError, ValueError, RecursionError, KeyError):
        return payload
    normal = msgspec.Raw(msgspec.json.encode([_normal_choice(choice) for choice in choices]))
    return msgspec.json.encode({**members, "choices": normal})


def normal_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message or delta with text as its content and typed calls; the same dict if it has them."""
    changes: dict[str, Any] = {}
    content: Any = message.get("content")
    if isinstance(content, list):
        changes["content"], thoughts = _split(cast("list[Any]", content))
        if thoughts:
            changes["reasoning_content"] = thoughts
    calls: Any = message.get("tool_calls")
    if isinstance(calls, list):
        given = cast("list[Any]", calls)
        normal = [_normal_call(call) for call in given]
        if any(new is not old for new, old in zip(normal, given, strict=True)):
            changes["tool_calls"] = normal
    return {**message, **changes} if changes else message


def _normal_choice(choice: dict[str, Any]) -> dict[str, Any]:
    normal = dict(choice)
    for name in ("message", "delta"):
        held: Any = choice.get(name)
        if isinstance(held, dict):
            normal[name] = normal_message(cast("dict[str, Any]", held))
    reason: Any = choice.get("finish_reason")
    if isinstance(reason, str):
        normal["finish_reason"] = finish(reason)
        if normal["finish_reason"] == FAILED:
            raise GaveUp(reason)
    return normal


def _normal_call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    members = cast("dict[str, Any]", call)
    function: Any = members.get("function")
    if isinstance(function, dict):
        named = cast("dict[str, Any]", function)
        if isinstance(named.get("arguments"), dict):
            text = msgspec.json.encode(named["arguments"]).decode()
            members = {**members, "function": {**named, "arguments": text}}
    if members.get("id") is not None and members.get("type") is None:
        return {**members, "type": "function"}
    return members


def _split(chunks: list[Any]) -> tuple[str, str]:
    """The text and the thoughts of a list of chunks."""
    texts: list[str] = []
    thoughts: list[str] = []
    for chunk in chunks:
        if isinstance(chunk, str):
            texts.append(chunk)
        elif isinstance(chunk, dict):
            members = cast("dict[str, Any]", chunk)
            if members.get("type") == "thinking":
                thoughts.append(_text(members.get("thinking")))
            else:
                texts.append(_text(members.get("text")))
    return "".join(texts), "".join(thoughts)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return _split(cast("list[Any]", value))[0]
    return value if isinstance(value, str) else ""
