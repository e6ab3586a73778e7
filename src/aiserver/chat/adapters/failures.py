"""Maps what went wrong upstream to our errors, once."""

from typing import Any, cast

import msgspec

from aiserver.contract.errors import ApiError, UpstreamFailed, UpstreamRejected, UpstreamTimedOut
from aiserver.kit.upstream import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamResponse,
    UpstreamTimeout,
)

_MAX_ERROR_BODY = 64 * 1024
_MAX_MESSAGE = 2000
# The caller's own mistakes: they come back with the status that the upstream gave.
_CALLERS = frozenset({400, 404, 409, 413, 415, 422})
_CREDENTIALS = frozenset({401, 402, 403})


def mapped(error: UpstreamError, provider: str) -> ApiError:
    """What a failed connection means to the caller."""
    match error:
        case UpstreamTimeout():
            return UpstreamTimedOut(f"Provider {provider} did not answer in time.")
        case UpstreamRefused():
            return UpstreamFailed(f"Provider {provider} cannot be reached.")
        case UpstreamProtocolError():
            return UpstreamFailed(f"Provider {provider} sent an answer that cannot be read.")
        case _:
            return UpstreamFailed(f"Provider {provider} broke off its answer.")


async def refused(response: UpstreamResponse, provider: str) -> ApiError:
    """What an answer other than 200 means to the caller. Reads a bounded part of its body."""
    status = response.status
    message, code, param = _read(await _body(response))
    if status in _CALLERS:
        text = message or f"Provider {provider} refused the request."
        return UpstreamRejected(text, status=status, reason=code, param=param)
    if status == 429:
        text = message or f"Provider {provider} limits how many calls it takes; try again later."
        seconds = _retry_after(response)
        return UpstreamRejected(text, status=429, reason=code, retry_after=seconds)
    if status in _CREDENTIALS:
        return UpstreamFailed(
            f"Provider {provider} refuses this server's credentials; ask your administrator.",
            reason="provider_credentials",
        )
    if status in (408, 504):
        return UpstreamTimedOut(f"Provider {provider} did not answer in time.")
    if 300 <= status < 400:
        return UpstreamFailed(
            f"Provider {provider} redirects elsewhere, which is not followed; ask your "
            "administrator to correct its base URL."
        )
    why = f": {message}" if message else "."
    return UpstreamFailed(f"Provider {provider} failed with status {status}{why}")


async def _body(response: UpstreamResponse) -> bytes:
    try:
        return await response.read(_MAX_ERROR_BODY)
    except UpstreamError:
        # An error page that is too long or cut says no more than its status.
        return b""


def _read(body: bytes) -> tuple[str, str | None, str | None]:
    """(message, code, param) from the shapes that upstreams use."""
    try:
        decoded: Any = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return "", None, None
    if not isinstance(decoded, dict):
        return "", None, None
    members = cast("dict[str, Any]", decoded)
    error = members.get("error", members)
    if isinstance(error, str):
        return error[:_MAX_MESSAGE], None, None
    if not isinstance(error, dict):
        return "", None, None
    fields = cast("dict[str, Any]", error)
    message = fields.get("message") or fields.get("detail") or ""
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    return message[:_MAX_MESSAGE], _text(fields.get("code")), _text(fields.get("param"))


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _retry_after(response: UpstreamResponse) -> float | None:
    text = response.headers.get(b"retry-after", b"").decode("latin-1")
    return float(text) if text.isdigit() and len(text) < 6 else None
