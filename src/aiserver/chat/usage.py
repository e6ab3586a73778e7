"""Token counts, wherever an OpenAI-compatible upstream puts them; zero is not missing."""

from decimal import Decimal
from typing import Any, cast

import msgspec

from aiserver.contract.trace import Usage

# Counts and costs past these are taken for a mistake of the upstream.
MOST_TOKENS = 1_000_000_000
MOST_COST = Decimal(1_000_000)
_FINEST = -24


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    num_cached_tokens: int | None = None
    cost: Decimal | None = None


class _Timings(msgspec.Struct):
    """What llama.cpp measured: `prompt_n` is without the tokens that were cached."""

    prompt_n: int | None = None
    predicted_n: int | None = None
    cache_n: int | None = None


class _Holder(msgspec.Struct):
    usage: _Counts | None = None


class _Payload(msgspec.Struct):
    usage: _Counts | None = None
    x_groq: _Holder | None = None
    choices: list[_Holder] | None = None
    timings: _Timings | None = None


_payloads = msgspec.json.Decoder(_Payload)
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def usage_of(payload: bytes | msgspec.Raw) -> Usage | None:
    """What a whole answer or one chunk of a stream says was used; None where it says nothing.

    Never raises. A member that cannot be read counts as missing.
    """
    try:
        read = _payloads.decode(payload)
    except _UNREADABLE:
        read = _leniently(payload)
    if read is None:
        return None
    for counts in _places(read):
        if counts is not None and (usage := _usage(counts)) is not None:
            return usage
    return None if read.timings is None else _of_timings(read.timings)


def _places(read: _Payload) -> tuple[_Counts | None, ...]:
    in_choices = tuple(choice.usage for choice in read.choices or ())
    return (read.usage, read.x_groq.usage if read.x_groq else None, *in_choices)


def _usage(counts: _Counts) -> Usage | None:
    prompt, completion = _count(counts.prompt_tokens), _count(counts.completion_tokens)
    of_prompt, of_completion = counts.prompt_tokens_details, counts.completion_tokens_details
    reasoning = _count(of_completion.reasoning_tokens) if of_completion else None
    cost = _cost(counts.cost)
    if prompt is None and completion is None and cost is None:
        return None
    # Some count what was reasoned beside the completion; only their total shows it.
    if prompt is not None and completion is not None and reasoning:
        apart = prompt + completion + reasoning
        completion += reasoning if counts.total_tokens == apart else 0
    cached = (
        of_prompt.cached_tokens if of_prompt else None,
        counts.prompt_cache_hit_tokens,
        counts.cached_tokens,
        counts.num_cached_tokens,
    )
    return Usage(
        prompt=prompt,
        completion=completion,
        cached=next((count for each in cached if (count := _count(each)) is not None), None),
        cache_written=_count(of_prompt.cache_write_tokens) if of_prompt else None,
        reasoning=reasoning,
        cost=cost,
    )


def _of_timings(timings: _Timings) -> Usage | None:
    fresh, cached = _count(timings.prompt_n), _count(timings.cache_n)
    completion = _count(timings.predicted_n)
    if fresh is None and completion is None:
        return None
    prompt = None if fresh is None else fresh + (cached or 0)
    return Usage(prompt=prompt, completion=completion, cached=cached)


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_TOKENS else None


def _cost(value: Decimal | None) -> Decimal | None:
    if value is None or not value.is_finite() or not 0 <= value <= MOST_COST:
        return None
    exponent = value.as_tuple().exponent
    return value if isinstance(exponent, int) and exponent >= _FINEST else None


def _leniently(payload: bytes | msgspec.Raw) -> _Payload | None:
    """The same with every member that has another type left out."""
    try:
        members = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except _UNREADABLE:
        return None
    choices = cast("list[msgspec.Raw]", _decoded(members.get("choices"), list[msgspec.Raw]) or [])
    return _Payload(
        usage=_counts(members.get("usage")),
        x_groq=_holder(members.get("x_groq")),
        choices=[holder for each in choices if (holder := _holder(each)) is not None],
        timings=_each(members.get("timings"), _Timings),
    )


def _holder(raw: msgspec.Raw | None) -> _Holder | None:
    members = _decoded(raw, dict[str, msgspec.Raw])
    return None if members is None else _Holder(_counts(members.get("usage")))


def _counts(raw: msgspec.Raw | None) -> _Counts | None:
    members = _decoded(raw, dict[str, msgspec.Raw])
    counts = _each(raw, _Counts)
    if members is not None and counts is not None:
        counts.prompt_tokens_details = _each(members.get("prompt_tokens_details"), _PromptDetails)
        details = members.get("completion_tokens_details")
        counts.completion_tokens_details = _each(details, _CompletionDetails)
    return counts


def _each(raw: msgspec.Raw | None, kind: type[Any]) -> Any:
    members = _decoded(raw, dict[str, msgspec.Raw])
    if members is None:
        return None
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    read = {name: _decoded(raw, fields[name]) for name, raw in members.items() if name in fields}
    return kind(**read)


def _decoded(raw: msgspec.Raw | None, kind: Any) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=kind)
    except _UNREADABLE:
        return None
