"""What Gemini says, read and put into the normal form: parts, ends and usage."""

import hashlib
from typing import Any

import msgspec

from aiserver.chat.adapters.google_errors import UNREADABLE, error_answer
from aiserver.chat.failures import ErrorAnswer, broken, in_stream, refused
from aiserver.chat.usage import MOST_TOKENS
from aiserver.contract.trace import Usage

_NULL = b"null"

ENDS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "ESCALATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
# The model meant to go on but its output was of no use, which an empty answer would hide.
FAILURES = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "MISSING_THOUGHT_SIGNATURE",
        "PUP_LIMITED_DISABLED",
        "TOO_MANY_TOOL_CALLS",
        "UNEXPECTED_TOOL_CALL",
    }
)


class FunctionCall(msgspec.Struct):
    name: str = ""
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(_NULL)


class Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: FunctionCall | None = None


class _Content(msgspec.Struct):
    parts: list[Part] | None = None


class _Token(msgspec.Struct, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _Top(msgspec.Struct):
    candidates: list[_Token] | None = None


class Logprobs(msgspec.Struct, rename="camel"):
    chosen_candidates: list[_Token] | None = None
    top_candidates: list[_Top] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    index: int | None = None
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    logprobs_result: Logprobs | None = None

    @property
    def parts(self) -> list[Part]:
        return (self.content.parts if self.content else None) or []


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class Counts(msgspec.Struct, rename="camel"):
    """Tokens; None is not reported."""

    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    total_token_count: int | None = None


class Response(msgspec.Struct, rename="camel"):
    """A whole answer, or one event of a stream."""

    candidates: list[Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: Counts | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: msgspec.Raw = msgspec.Raw(_NULL)


_responses = msgspec.json.Decoder(Response)


def read_response(data: bytes, provider: str, *, lost: bool = False) -> Response:
    """Raises Failure for what is no answer: unreadable, an error, or a prompt that was blocked."""
    try:
        response = _responses.decode(data)
        failed = bytes(response.error) != _NULL
    except UNREADABLE as error:
        raise broken(provider, "sent an answer that cannot be read.", detail=str(error)) from None
    if failed:
        raise in_stream(provider, error_answer(data, {}), lost=lost)
    feedback = response.prompt_feedback
    if feedback and feedback.block_reason and not response.candidates:
        why = feedback.block_reason_message or feedback.block_reason
        blocked = ErrorAnswer(
            f"The provider's content filter blocked this prompt ({why}); change the prompt.",
            code="content_filter",
        )
        raise refused(provider, 400, blocked)
    return response


def call_of(call: FunctionCall, part: Part, *, id: str) -> dict[str, Any]:
    """A tool call of the normal form; `id` serves where Gemini gave none."""
    spoken: dict[str, Any] = {
        "id": call.id or id,
        "type": "function",
        "function": {"name": call.name, "arguments": _compact(call.args)},
    }
    return {**spoken, **signed(part.thought_signature)}


def signed(signature: str | None) -> dict[str, Any]:
    """Where Google's own OpenAI-compatible endpoint puts a signature."""
    return {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}


def call_id(answer: str, choice: int, position: int) -> str:
    """The same for a whole answer and a streamed one, and another one for each call."""
    name = f"{answer}/{choice}/{position}".encode("utf-8", "replace")
    return f"call_{hashlib.blake2b(name, digest_size=12).hexdigest()}"


def end_of(candidate: Candidate, provider: str, *, said: bool, called: bool) -> str:
    """A finish reason of the normal form. Raises Failure for an answer that is of no use."""
    reason = candidate.finish_reason or "STOP"
    if reason in FAILURES or (reason not in ENDS and not said):
        problem = f"ended its answer for the reason {reason[:100]}; try again."
        raise broken(provider, problem, detail=candidate.finish_message or reason)
    end = ENDS.get(reason, "stop")
    return "tool_calls" if called and end == "stop" else end


def logprobs_of(result: Logprobs | None) -> dict[str, Any] | None:
    if result is None or result.chosen_candidates is None:
        return None
    tops = [top.candidates or [] for top in result.top_candidates or []]
    tops += [[]] * (len(result.chosen_candidates) - len(tops))
    content = [
        {**_logprob(token), "top_logprobs": [_logprob(other) for other in top]}
        for token, top in zip(result.chosen_candidates, tops, strict=False)
    ]
    return {"content": content, "refusal": None}


def usage_of(counts: Counts | None) -> Usage | None:
    if counts is None:
        return None
    reasoning = _count(counts.thoughts_token_count)
    completion = [_count(counts.candidates_token_count), reasoning]
    known = [count for count in completion if count is not None]
    return Usage(
        prompt=_count(counts.prompt_token_count),
        completion=sum(known) if known else None,
        cached=_count(counts.cached_content_token_count),
        reasoning=reasoning,
    )


def wire_usage(counts: Counts) -> dict[str, Any]:
    """The three counts, which callers rely on, and those details that were reported."""
    usage = usage_of(counts) or Usage()
    prompt, total = usage.prompt or 0, _count(counts.total_token_count)
    completion = usage.completion
    if completion is None:
        # Gemini leaves out what is zero; the total then says the same.
        completion = max(0, (total or 0) - prompt)
    wire: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
    }
    if usage.cached is not None:
        wire["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning is not None:
        wire["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return wire


def _logprob(token: _Token) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.log_probability,
        "bytes": list(token.token.encode("utf-8", "replace")),
    }


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_TOKENS else None


def _compact(args: msgspec.Raw) -> str:
    text = bytes(args)
    return "{}" if text == _NULL else msgspec.json.format(text, indent=-1).decode()
