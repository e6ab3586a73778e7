"""A call as a row: columns for what is counted and asked for, one JSON text for the rest."""

from collections.abc import Callable

import msgspec

from aiserver.contract.conditions import stored
from aiserver.contract.trace import Attempt, Trace
from aiserver.kit.db import Row
from aiserver.kit.money import picodollars_or_more

Redact = Callable[[str], str]

# Each column costs a third of a microsecond a row, so only these fourteen are columns.
COLUMNS = (
    *("id", "at", "operation", "key_id", "model", "provider", "status", "error"),
    *("prompt_tokens", "completion_tokens", "cost", "lost", "duration_ms", "detail"),
)
AT, KEY, MODEL, PROVIDER, STATUS = (
    COLUMNS.index(name) for name in ("at", "key_id", "model", "provider", "status")
)
PROMPT, COMPLETION, COST, LOST, DURATION = (
    COLUMNS.index(name)
    for name in ("prompt_tokens", "completion_tokens", "cost", "lost", "duration_ms")
)

_LONGEST_TEXT = 500
_LONGEST_DETAIL = 2000
_MOST_ATTEMPTS = 20
_MOST_TOKENS = 2**40
_encode = msgspec.json.Encoder().encode


class Detail(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a row says besides its columns; times in milliseconds, of attempts in seconds.

    `asked` is the model as the caller wrote it, where the gateway names it differently.
    """

    request_id: str = ""
    address: str = ""
    method: str = ""
    path: str = ""
    asked: str | None = None
    streamed: bool = False
    message: str | None = None
    attempts: list[Attempt] = []
    cached: int | None = None
    cache_written: int | None = None
    reasoning: int | None = None
    first_token_ms: int | None = None
    waited_ms: int = 0
    tag: str | None = None
    ref_id: str | None = None


def row_of(trace: Trace, redact: Redact) -> Row:
    """The values of COLUMNS. Masks the details of attempts in the trace too."""
    attempts, message = trace.attempts, trace.message
    if len(attempts) > _MOST_ATTEMPTS:
        attempts = attempts[-_MOST_ATTEMPTS:]
    lost = 0
    for attempt in attempts:
        if attempt.lost:
            lost += 1
        if attempt.detail:
            attempt.detail = redact(attempt.detail)[:_LONGEST_DETAIL]
    usage = trace.usage
    if usage is None:
        prompt = completion = cached = cache_written = reasoning = None
    else:
        prompt, completion = usage.prompt, usage.completion
        cached, cache_written, reasoning = usage.cached, usage.cache_written, usage.reasoning
    served, asked = trace.served or trace.model, trace.model
    first = trace.first_token
    detail = Detail(
        request_id=trace.request_id,
        address=trace.address,
        method=trace.method,
        path=trace.path,
        asked=None if asked == served else asked,
        streamed=trace.streamed,
        message=redact(message)[:_LONGEST_TEXT] if message else None,
        attempts=attempts,
        cached=cached,
        cache_written=cache_written,
        reasoning=reasoning,
        first_token_ms=None if first is None else int((first - trace.started) * 1000),
        waited_ms=int(trace.waited * 1000),
        tag=trace.tag,
        ref_id=trace.ref_id,
    )
    cost = trace.cost
    return (
        trace.id,
        int(trace.at * 1000),
        trace.operation,
        trace.key_id,
        served if served is None or served.isascii() else stored(served),
        # Whoever was asked last stands for a call that nobody served.
        trace.provider or (attempts[-1].provider if attempts else None),
        trace.status,
        trace.error,
        prompt if prompt is None or 0 <= prompt <= _MOST_TOKENS else None,
        completion if completion is None or 0 <= completion <= _MOST_TOKENS else None,
        None if cost is None else picodollars_or_more(cost),
        lost,
        int(trace.duration * 1000),
        _text(detail),
    )


def plain(row: Row) -> Row:
    """The same row, of nothing but values that the store takes."""
    return tuple(stored(value) for value in row)


def _text(detail: Detail) -> str:
    try:
        return _encode(detail).decode()
    except (UnicodeEncodeError, OverflowError):
        # Half a character or an endless number, from a caller or an upstream.
        return _encode(Detail(message="The details of this call could not be stored.")).decode()
