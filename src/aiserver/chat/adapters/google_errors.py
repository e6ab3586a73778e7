"""Reads the errors of Gemini, which come as the body of a status or within a stream."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from aiserver.chat.error_answers import LONGEST_WAIT, retry_after
from aiserver.chat.failures import ErrorAnswer

# What reading a body can raise; JSON may nest deeper than the reader goes.
UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
# In a stream an error may state its name alone.
STATUSES = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    # Says that the region or the plan of this key is not served.
    "FAILED_PRECONDITION": 403,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# What a refusal names in words, as the member of the normal form that asked for it.
UNTAKEN = (
    ("thinking", "reasoning_effort"),
    ("logprobs", "logprobs"),
    ("multiple candidates", "n"),
    ("penalty", "presence_penalty"),
)


def error_answer(body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
    """An error body, alone or the only one of a list. Never raises."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except UNREADABLE:
        return ErrorAnswer(retry_after=retry_after(headers))
    if isinstance(decoded, list) and decoded:
        decoded = cast("list[Any]", decoded)[0]
    error = _object(_object(decoded).get("error"))
    message, name = _words(error.get("message")), _words(error.get("status"))
    details = [_object(item) for item in _list(error.get("details"))]
    delay = next((found for item in details if (found := _delay(item)) is not None), None)
    return ErrorAnswer(
        message,
        code="model_not_found" if name == "NOT_FOUND" else None,
        param=_untaken(message) if name == "INVALID_ARGUMENT" else None,
        status=_status(error.get("code"), name, details),
        retry_after=retry_after(headers) if delay is None else delay,
    )


def _status(code: Any, name: str, details: list[dict[str, Any]]) -> int | None:
    # Gemini answers 400 to a bad key, which is no mistake of the caller.
    if any(_words(item.get("reason")).startswith("API_KEY") for item in details):
        return 401
    if name == "FAILED_PRECONDITION":
        return STATUSES[name]
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return STATUSES.get(name)


def _untaken(message: str) -> str | None:
    lowered = message.lower()
    return next((member for words, member in UNTAKEN if words in lowered), None)


def _delay(detail: dict[str, Any]) -> float | None:
    text = _words(detail.get("retryDelay")).removesuffix("s")
    whole, _, fraction = text.partition(".")
    if whole.isdecimal() and (fraction or "0").isdecimal():
        return min(float(text), LONGEST_WAIT)
    return None


def _words(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
