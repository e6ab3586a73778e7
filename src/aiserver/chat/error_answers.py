"""Reads the errors of OpenAI-compatible upstreams, whichever of their shapes they come in."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, cast

import msgspec

from aiserver.chat.failures import ErrorAnswer

# No upstream is taken out of use for longer than this, in seconds, on its own word.
LONGEST_WAIT = 3600.0
_LONGEST_TEXT = 64 * 1024
_LONGEST_NAME = 200
# They name a class of errors, and tell no more than the status does.
_GENERIC = frozenset({
    "invalid_request_error", "server_error", "api_error", "error", "BadRequestError", "bad_request",
    "internal_error_proxy", "unmapped",
})  # fmt: skip
# OpenRouter says this and puts the provider's own words elsewhere.
_EMPTY_WORDS = "Provider returned error"


def error_answer(body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
    """An error body, or an event of a stream with an error in it; names of headers in lower case.

    Never raises: what cannot be read has no words.
    """
    answer = _read(body)
    answer.retry_after = retry_after(headers)
    return answer


def retry_after(headers: Mapping[bytes, bytes]) -> float | None:
    """Seconds to wait, from 0 to LONGEST_WAIT, as the upstream asks for; None if it does not."""
    exact = _number(headers.get(b"retry-after-ms"))
    if exact is not None:
        return _bounded(exact / 1000)
    given = headers.get(b"retry-after")
    seconds = _number(given)
    if seconds is not None:
        return _bounded(seconds)
    date = _time(given)
    if date is None:
        return None
    # Against the upstream's own clock where it shows it.
    now = _time(headers.get(b"date"))
    return _bounded(date - (time.time() if now is None else now))


def _read(body: bytes) -> ErrorAnswer:
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ErrorAnswer()
    if isinstance(decoded, str):
        return ErrorAnswer(decoded[:_LONGEST_TEXT])
    if not isinstance(decoded, dict):
        return ErrorAnswer()
    members = cast("dict[str, Any]", decoded)
    error: Any = members.get("error")
    if isinstance(error, str):
        return ErrorAnswer(error[:_LONGEST_TEXT], code=_name(members.get("error_type")))
    fields = cast("dict[str, Any]", error) if isinstance(error, dict) else members
    return _of_fields(fields)


def _of_fields(fields: dict[str, Any]) -> ErrorAnswer:
    details = _details(fields)
    message, param = _words(details) if details is not None else (_message(fields), None)
    metadata: Any = fields.get("metadata")
    named = cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}
    code = _name(fields.get("code")) or _telling(fields.get("type"))
    answer = ErrorAnswer(
        message[:_LONGEST_TEXT],
        code=code or _telling(named.get("error_type")),
        param=_name(fields.get("param")) or param,
        status=_status(fields),
    )
    return _behind(answer, named) if message == _EMPTY_WORDS else answer


def _message(fields: dict[str, Any]) -> str:
    for name in ("message", "detail", "error_description", "title"):
        value: Any = fields.get(name)
        if isinstance(value, str) and value:
            failed: Any = fields.get("failed_generation")
            return f"{value} {failed}" if isinstance(failed, str) and failed else value
        if value and not isinstance(value, str):
            return msgspec.json.encode(value).decode()
    return ""


def _details(fields: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Validation errors, each with loc, msg and type, at either place where they are found."""
    for value in (fields.get("detail"), fields.get("message")):
        held: Any = value
        if isinstance(held, dict):
            held = cast("dict[str, Any]", held).get("detail")
        if isinstance(held, list) and held:
            each = cast("list[Any]", held)
            return [cast("dict[str, Any]", item) for item in each if isinstance(item, dict)]
    return None


def _words(details: list[dict[str, Any]]) -> tuple[str, str | None]:
    """`store: Extra inputs are not permitted` for each, and the member that the first is about."""
    lines: list[str] = []
    names: list[str] = []
    for detail in details:
        loc: Any = detail.get("loc")
        path = [str(part) for part in cast("list[Any]", loc)] if isinstance(loc, list) else []
        names.append(".".join(path[1:] if path[:1] == ["body"] else path))
        text: Any = detail.get("msg")
        told = text if isinstance(text, str) else ""
        lines.append(f"{names[-1]}: {told}" if names[-1] else told)
    return "; ".join(lines), names[0][:_LONGEST_NAME] if names and names[0] else None


def _behind(answer: ErrorAnswer, metadata: dict[str, Any]) -> ErrorAnswer:
    """The words of the provider that an aggregator asked."""
    raw: Any = metadata.get("raw")
    if not isinstance(raw, str) or not raw.strip():
        return answer
    inner = _read(raw.encode("utf-8", "replace"))
    name: Any = metadata.get("provider_name")
    told = inner.message or raw[:_LONGEST_TEXT]
    answer.message = f"{name}: {told}" if isinstance(name, str) else told
    answer.code = answer.code or inner.code
    answer.param = answer.param or inner.param
    return answer


def _status(fields: dict[str, Any]) -> int | None:
    for name in ("code", "status", "raw_status_code"):
        value: Any = fields.get(name)
        if type(value) is int and 400 <= value < 600:
            return value
    return None


def _name(value: Any) -> str | None:
    if isinstance(value, str) and value and not value.isdigit():
        return value[:_LONGEST_NAME]
    return None


def _telling(value: Any) -> str | None:
    name = _name(value)
    return None if name in _GENERIC else name


def _number(text: bytes | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        return None
    # NaN is not itself.
    return value if value == value else None


def _time(text: bytes | None) -> float | None:
    try:
        return None if text is None else parsedate_to_datetime(text.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_WAIT)
