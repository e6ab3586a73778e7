"""An answer as most upstreams give it, read in one go; whatever differs is read with more care."""

from typing import Annotated, Literal

import msgspec

from aiserver.contract.trace import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class _Call(msgspec.Struct, gc=False):
    id: str
    type: str


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
    usage: None = None


class _OfPrompt(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _OfCompletion(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Counts(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: int
    prompt_tokens_details: _OfPrompt | None = None
    completion_tokens_details: _OfCompletion | None = None


class _Ordinary(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: _Counts
    error: None = None
    x_groq: None = None


_read = msgspec.json.Decoder(_Ordinary).decode


def ordinary_usage(body: bytes) -> Usage | None:
    """What a whole answer of the ordinary form used; None for any other answer. Never raises."""
    try:
        counts = _read(body).usage
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    prompt, completion = counts.prompt_tokens, counts.completion_tokens
    of_prompt, of_completion = counts.prompt_tokens_details, counts.completion_tokens_details
    if of_prompt is None and of_completion is None:
        return Usage(prompt=prompt, completion=completion)
    if counts.total_tokens != prompt + completion:
        return None
    return Usage(
        prompt=prompt,
        completion=completion,
        cached=of_prompt.cached_tokens if of_prompt else None,
        cache_written=of_prompt.cache_write_tokens if of_prompt else None,
        reasoning=of_completion.reasoning_tokens if of_completion else None,
    )
