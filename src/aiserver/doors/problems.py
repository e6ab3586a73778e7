"""Prints an error in each protocol's own shape."""

from collections.abc import Callable
from typing import Any

import msgspec

from aiserver.contract.errors import ApiError

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

Problem = dict[str, Any]
Dialect = Callable[[ApiError, Callable[[str], str]], Problem]


def service_stack(error: ApiError, redact: Callable[[str], str]) -> Problem:
    """{"responseStatus": {...}}, as typed clients read it."""
    status: Problem = {"errorCode": error.error_code, "message": redact(error.message)}
    if error.fields:
        status["errors"] = [
            {"errorCode": f.error_code, "fieldName": f.field_name, "message": redact(f.message)}
            for f in error.fields
        ]
    if error.meta:
        status["meta"] = error.meta
    return {"responseStatus": status}


def open_ai(error: ApiError, redact: Callable[[str], str]) -> Problem:
    """{"error": {...}}, as OpenAI's clients read it."""
    status = error.http_status
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = redact(error.message)
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": error.param,
            "code": error.error_reason,
        }
    }


def ollama(error: ApiError, redact: Callable[[str], str]) -> Problem:
    """{"error": "..."} as Ollama's clients read it, on a path that typed clients share."""
    return {"error": redact(error.message), **service_stack(error, redact)}


def both(error: ApiError, redact: Callable[[str], str]) -> Problem:
    """On a path that typed clients and OpenAI's share."""
    return {**open_ai(error, redact), **service_stack(error, redact)}


def body_of(problem: Problem) -> bytes:
    return msgspec.json.encode(problem)
