"""What Anthropic's Messages API answers, as far as it is read, and what that means to OpenAI's."""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from aiserver.chat.error_answers import retry_after
from aiserver.chat.failures import ErrorAnswer
from aiserver.contract.trace import Usage

_FINISH: dict[str | None, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# An error inside an answer of status 200 has no status of its own.
_STATUS: dict[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# Sent as 400, yet nothing that the caller could mend.
_ACCOUNT = {"organization_on_hold": 403, "cmek_key_disabled": 403}
# By how a message begins: a code that callers know, and the status that it should have had.
_SAYINGS: tuple[tuple[str, str, int | None], ...] = (
    ("Your credit balance is too low", "insufficient_quota", 402),
    ("prompt is too long", "context_length_exceeded", None),
    ("model: ", "model_not_found", None),
)
# Only what holds for every call of the model: it is remembered, and left out from then on.
_UNTAKEN: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"^`?(\w+)`?: Extra inputs are not permitted"), None),
    (re.compile(r"^`?(\w+)`? is (?:deprecated|not supported)"), None),
    (re.compile(r"does not support the effort parameter"), "reasoning_effort"),
    (re.compile(r"^adaptive thinking is not supported"), "reasoning_effort"),
    (re.compile(r'^"thinking\.type\.\w+" is not supported'), "reasoning_effort"),
    (re.compile(r"^thinking: Input tag '\w+' found"), "reasoning_effort"),
)
# What the caller knows under another name.
_CALLERS_NAMES = {
    "thinking": "reasoning_effort",
    "output_config": "reasoning_effort",
    "stop_sequences": "stop",
    "metadata": "user",
}
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
NULL = b"null"


def finish_of(reason: str | None, *, calls: bool) -> str:
    """`finish_reason` of the normal form; an upstream that gives no reason is judged by `calls`."""
    return _FINISH.get(reason, "tool_calls" if calls else "stop")


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class Counts(msgspec.Struct):
    """Tokens as reported; those of a stream are sums so far, never to be added up."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def update(self, newer: "Counts") -> None:
        for name in self.__struct_fields__:
            value = getattr(newer, name)
            if value is not None:
                setattr(self, name, value)

    def usage(self) -> Usage | None:
        """None when nothing was reported."""
        written, read = self.cache_creation_input_tokens, self.cache_read_input_tokens
        details = self.output_tokens_details
        usage = Usage(
            prompt=None
            if self.input_tokens is None
            else self.input_tokens + (written or 0) + (read or 0),
            completion=self.output_tokens,
            cached=read,
            cache_written=written,
            reasoning=details.thinking_tokens if details else None,
        )
        return None if usage == Usage() else usage


def usage_members(usage: Usage | None) -> dict[str, Any] | None:
    """`usage` of the normal form; None unless both of its sums were reported."""
    if usage is None or usage.prompt is None or usage.completion is None:
        return None
    members: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    details = {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_written}
    reported = {name: count for name, count in details.items() if count is not None}
    if reported:
        members["prompt_tokens_details"] = reported
    if usage.reasoning is not None:
        members["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return members


class Block(msgspec.Struct):
    """A content block: text, thinking, redacted_thinking or tool_use."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(NULL)

    @property
    def arguments(self) -> str:
        """A call's input, as JSON; {} where there is none."""
        given = bytes(self.input)
        return "{}" if given in (NULL, b'""', b"") else given.decode()

    def replayable(self) -> dict[str, Any] | None:
        """What the upstream wants back unchanged; only it can tell whether thinking is its own."""
        if self.type == "redacted_thinking":
            return {"type": self.type, "data": self.data or ""}
        if self.type != "thinking" or not self.signature:
            return None
        return {"type": self.type, "thinking": self.thinking or "", "signature": self.signature}


class StopDetails(msgspec.Struct):
    explanation: str | None = None


class Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None
    usage: Counts | None = None
    error: msgspec.Raw = msgspec.Raw(NULL)


class Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    type: str = ""
    index: int = 0
    message: Message | None = None
    content_block: msgspec.Raw = msgspec.Raw(NULL)
    delta: Delta | None = None
    usage: Counts | None = None
    error: msgspec.Raw = msgspec.Raw(NULL)


class _Typed(msgspec.Struct):
    type: str = ""


_blocks = msgspec.json.Decoder(Block)
_events = msgspec.json.Decoder(Event)
_typed = msgspec.json.Decoder(_Typed)
messages = msgspec.json.Decoder(Message)
_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
_EVENTS = frozenset({"message_start", "message_delta", "message_stop", "error"}) | {
    f"content_block_{what}" for what in ("start", "delta", "stop")
}


def block_of(raw: msgspec.Raw) -> Block | None:
    """None for a kind that the normal form has no place for. Raises what is in UNREADABLE."""
    kind = _typed.decode(raw).type
    return _blocks.decode(raw) if kind in _BLOCKS else None


def event_of(data: bytes) -> Event | None:
    """None for an event that is of no concern. Raises what is in UNREADABLE."""
    try:
        event = _events.decode(data)
    except msgspec.ValidationError:
        if _typed.decode(data).type in _EVENTS:
            raise
        return None
    if bytes(event.error) != NULL:
        event.type = "error"
    return event if event.type in _EVENTS else None


def error_answer(body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
    """An error body; its `status` is set only where it means another one than it came with."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except UNREADABLE:
        decoded = None
    members = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    answer = _answer(members.get("error", members))
    answer.retry_after = retry_after(headers)
    return answer


def in_answer(error: msgspec.Raw) -> ErrorAnswer:
    """The error within an answer of status 200; its kind may say its status."""
    decoded: Any = msgspec.json.decode(error)
    answer = _answer(decoded)
    kind = cast("dict[str, Any]", decoded).get("type") if isinstance(decoded, dict) else None
    answer.status = answer.status or _STATUS.get(str(kind))
    return answer


def _answer(error: Any) -> ErrorAnswer:
    if isinstance(error, str):
        return ErrorAnswer(error)
    members = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    given: Any = members.get("message")
    message = given if isinstance(given, str) else ""
    for beginning, code, status in _SAYINGS:
        if message.startswith(beginning):
            return ErrorAnswer(message, code=code, status=status)
    if (param := _untaken(message)) is not None:
        return ErrorAnswer(message, code="unsupported_parameter", param=param)
    details: Any = members.get("details")
    reason = cast("dict[str, Any]", details).get("error_code") if isinstance(details, dict) else ""
    return ErrorAnswer(message, status=_ACCOUNT.get(str(reason)))


def _untaken(message: str) -> str | None:
    for pattern, name in _UNTAKEN:
        if found := pattern.search(message):
            named = name or found[1]
            return _CALLERS_NAMES.get(named, named)
    return None
