"""What went wrong at an upstream: one kind each, with what the caller and the administrator read.

The kind decides what happens next: `FailureKind` says whether another provider is asked.
"""

from aiserver.contract.errors import ApiError, UpstreamFailed, UpstreamRejected, UpstreamTimedOut
from aiserver.kit.upstream import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamTimeout,
)
from aiserver.providers.health import FailureKind

MOST_DETAIL = 2000
# What a secret may be written with; what ends one is what the masks take for its end.
_OF_A_WORD = "".join(map(chr, range(0x21, 0x7F))).translate(dict.fromkeys(map(ord, "\"',;&}")))
# The caller's own mistakes: they come back with the status that the upstream gave.
_CALLERS = frozenset({400, 409, 413, 415, 422})
_CREDENTIALS = frozenset({401, 402, 403})


class Failure(Exception):
    """One attempt that failed. `error` is for the caller, `detail` for administrators alone.

    `parameter` names a member of the request that the upstream does not take. `lost`: the upstream
    may have done the work, and may bill it, though no answer came.
    """

    def __init__(
        self,
        kind: FailureKind,
        error: ApiError,
        *,
        detail: str = "",
        status: int | None = None,
        retry_after: float | None = None,
        parameter: str | None = None,
        lost: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.kind = kind
        self.error = error
        self.detail = shortened(detail or error.message)
        self.status = status
        self.retry_after = retry_after
        self.parameter = parameter
        self.lost = lost


class ErrorAnswer:
    """An upstream's error, read from its own dialect; `message` is whole."""

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = message
        self.code = code
        self.param = param
        self.status = status
        self.retry_after = retry_after


def shortened(text: str) -> str:
    """At most MOST_DETAIL characters, up to the end of a word: half a secret is not masked as one,
    and masks come where the text goes out.
    """
    cut, rest = text[:MOST_DETAIL], text[MOST_DETAIL:]
    return cut.rstrip(_OF_A_WORD) if rest and rest[0] in _OF_A_WORD else cut


def unreachable(error: UpstreamError, provider: str) -> Failure:
    """A connection that failed before or within an answer."""
    detail = str(error)
    match error:
        case UpstreamTimeout():
            mapped = UpstreamTimedOut(f"Provider {provider} did not answer in time.")
            kind = FailureKind.TIMEOUT
        case UpstreamRefused():
            mapped = UpstreamFailed(f"Provider {provider} cannot be reached.")
            kind = FailureKind.UNREACHABLE
        case UpstreamProtocolError():
            mapped = UpstreamFailed(f"Provider {provider} sent an answer that cannot be read.")
            kind = FailureKind.BROKEN
        case _:
            mapped = UpstreamFailed(f"Provider {provider} broke off its answer.")
            kind = FailureKind.RESET
    return Failure(kind, mapped, detail=detail, lost=error.sent)


def broken(provider: str, problem: str, *, detail: str = "") -> Failure:
    """An answer of status 200 that is none: cut, unreadable or without what it must hold."""
    error = UpstreamFailed(f"Provider {provider} {problem}")
    return Failure(FailureKind.BROKEN, error, detail=detail, status=200, lost=True)


def refused(provider: str, status: int, answer: ErrorAnswer) -> Failure:
    """What an answer other than 200 means, by the status alone; `answer` adds its words."""
    kind, error = _meaning(provider, status, answer)
    return Failure(
        kind,
        error,
        detail=answer.message,
        status=status,
        retry_after=answer.retry_after,
        parameter=answer.param,
    )


def in_stream(provider: str, answer: ErrorAnswer, *, lost: bool) -> Failure:
    """An error inside an answer of status 200; one that states no status counts as 500."""
    if answer.status is not None and 400 <= answer.status < 600:
        failure = refused(provider, answer.status, answer)
        failure.lost = lost
        return failure
    return Failure(
        FailureKind.OVERLOADED,
        UpstreamFailed(f"Provider {provider} failed while it answered."),
        detail=answer.message,
        status=500,
        retry_after=answer.retry_after,
        parameter=answer.param,
        lost=lost,
    )


def _meaning(provider: str, status: int, answer: ErrorAnswer) -> tuple[FailureKind, ApiError]:
    if status in _CALLERS:
        text = shortened(answer.message) or f"Provider {provider} refused the request."
        rejected = UpstreamRejected(text, status=status, reason=answer.code, param=answer.param)
        return FailureKind.REQUEST, rejected
    if status == 404:
        text = shortened(answer.message) or f"Provider {provider} does not know this model."
        rejected = UpstreamRejected(text, status=404, reason=answer.code, param=answer.param)
        return FailureKind.MODEL_MISSING, rejected
    if status == 429:
        limited = UpstreamRejected(
            f"Provider {provider} limits how many calls it takes; try again later.",
            status=429,
            reason=answer.code or "rate_limit_exceeded",
            retry_after=answer.retry_after,
        )
        return FailureKind.LIMITED, limited
    if status in _CREDENTIALS:
        return FailureKind.CREDENTIALS, UpstreamFailed(
            f"Provider {provider} refuses this server's credentials; ask your administrator.",
            reason="provider_credentials",
        )
    if status in (408, 504):
        timed_out = UpstreamTimedOut(f"Provider {provider} did not answer in time.")
        return FailureKind.OVERLOADED, timed_out
    if 300 <= status < 400:
        return FailureKind.BROKEN, UpstreamFailed(
            f"Provider {provider} redirects elsewhere, which is not followed; ask your "
            "administrator to correct its base URL."
        )
    failed = UpstreamFailed(f"Provider {provider} failed with status {status}.")
    return FailureKind.OVERLOADED, failed
