"""Four OpenAI-compatible providers on loopback sockets, each as odd and as strict as the real one.

Behaviour follows the question: "weather" calls every declared tool, a JSON schema is filled in,
pictures are counted, anything else is echoed. A model named `fault:NAME` fails as the provider's
`faults` say, and scripts queued with `next` come first. `stated` holds the usage of each answer.
"""

import base64
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import groq.types.chat as groq_chat
from groq.types.chat.completion_create_params import CompletionCreateParams as GroqParams
from mistralai.client import models as mistral
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as OpenAiParams

from fakes.upstream import DONE, Exchange, FakeUpstream, Script, scripted, sse, status
from fakes.upstream import FAULTS as TRANSPORT_FAULTS

KEY = "fake-key"
THOUGHT = "Let me think."
CREATED = 1_700_000_000
# Exactly what JSON shows, and nothing that a float can hold.
COST = "0.00012345678901234567891"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")

Members = dict[str, Any]


class Refusal(Exception):
    """The request is answered by this error."""

    def __init__(self, code: int, body: Members) -> None:
        super().__init__(str(body))
        self.code = code
        self.body = body


@dataclass(frozen=True)
class Said:
    """What the model says; `calls` are (id, name, arguments)."""

    text: str
    calls: tuple[tuple[str, str, str], ...] = ()
    thought: str = ""
    prompt: int = 0
    completion: int = 0

    @property
    def reasoned(self) -> int:
        return len(self.thought.split())

    def counts(self) -> Members:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Provider:
    """One provider: where it answers, what it lists and refuses, and how its answers look."""

    root: str
    models: tuple[str, ...]
    listed: Callable[[str], Members]
    refused_key: Members
    unknown_model: Callable[[str], Refusal]
    check: Callable[[Members], None]
    whole: Callable[[Members, Said], Members]
    frames: Callable[[Members, Said], list[bytes]]
    usage: Callable[[Said], Members] = Said.counts
    headers: tuple[str, ...] = ()
    call_id: str = "call_fake{}weather"
    reasons: Callable[[Members], bool] = lambda _: False
    faults: Mapping[str, Script] = field(default_factory=dict[str, Script])


class _Endless(deque[Script]):
    """What tests queued, and past that the normal answer, for ever."""

    def __init__(self, normal: Script) -> None:
        super().__init__()
        self._normal = normal

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Script:
        return super().popleft() if len(self) else self._normal


class FakeCompatible(FakeUpstream):
    """`base_url` is what comes before /v1."""

    provider: Provider
    base_url: str

    def __init__(self) -> None:
        super().__init__()
        self.queue = _Endless(self._answer)
        self.stated: list[Members] = []

    @property
    def model(self) -> str:
        return self.provider.models[0]

    async def __aenter__(self) -> "FakeCompatible":
        await super().__aenter__()
        self.base_url += self.provider.root.removesuffix("/v1")
        return self

    def next(self, *scripts: Script | str) -> None:
        self.queue.extend(self._fault(item) if isinstance(item, str) else item for item in scripts)

    def _fault(self, name: str) -> Script:
        return self.provider.faults.get(name) or TRANSPORT_FAULTS[name]

    async def _answer(self, exchange: Exchange) -> None:
        request, provider = exchange.request, self.provider
        path = request.path.split("?")[0]
        if request.header("authorization") != f"Bearer {KEY}":
            await status(401, provider.refused_key)(exchange)
        elif request.method == "GET" and path == f"{provider.root}/models":
            data = [provider.listed(name) for name in provider.models]
            extra = (
                {"links": {"next": None}, "total_count": len(data)}
                if provider is OPENROUTER
                else {}
            )
            await status(200, {"object": "list", "data": data, **extra})(exchange)
        elif request.method == "POST" and path == f"{provider.root}/chat/completions":
            await self._chat(exchange, request.json())
        else:
            await status(404, {"error": {"message": f"no route {request.path}"}})(exchange)

    async def _chat(self, exchange: Exchange, asked: Members) -> None:
        provider, model = self.provider, str(asked.get("model"))
        if model.startswith("fault:"):
            await self._fault(model.removeprefix("fault:"))(exchange)
            return
        try:
            if model not in provider.models:
                raise provider.unknown_model(model)
            provider.check(asked)
        except Refusal as refusal:
            await status(refusal.code, refusal.body, *provider.headers)(exchange)
            return
        said = said_to(asked, provider)
        self.stated.append(provider.usage(said))
        if asked.get("stream"):
            await _streamed(provider.frames(asked, said), provider.headers)(exchange)
        else:
            body = json.dumps(provider.whole(asked, said)).replace('"$cost"', COST)
            sent = ("Content-Type: application/json", *provider.headers)
            await exchange.answer(200, body.encode(), *sent)


def _streamed(frames: Iterable[bytes], headers: tuple[str, ...]) -> Script:
    async def script(exchange: Exchange) -> None:
        kinds = ("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        await exchange.head(200, *kinds, *headers)
        for frame in frames:
            await exchange.chunk(frame)
        await exchange.end_stream()

    return script


def said_to(asked: Members, provider: Provider) -> Said:
    messages: list[Members] = asked["messages"]
    prompt = sum(len(_text(message).split()) for message in messages) + 8 * _images(messages)
    thought = THOUGHT if provider.reasons(asked) else ""
    text, calls = _words(asked, messages, provider)
    words = " ".join([text, *(f"{name} {arguments}" for _, name, arguments in calls)])
    completion = len(words.split()) + len(thought.split())
    return Said(text, calls, thought, prompt, completion)


def _words(
    asked: Members, messages: list[Members], provider: Provider
) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    last = messages[-1]
    if last["role"] == "tool":
        return f"the tool said: {_text(last)}", ()
    question = _text(next(each for each in reversed(messages) if each["role"] == "user"))
    if asked.get("tools") and "weather" in question:
        names = [tool["function"]["name"] for tool in asked["tools"]]
        arguments = json.dumps({"city": "Paris", "days": 2})
        return "", tuple(
            (provider.call_id.format(at), name, arguments) for at, name in enumerate(names)
        )
    wanted: Members = asked.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(_example(wanted["json_schema"]["schema"])), ()
    if count := _images(messages):
        return f"saw {count} images: {question}", ()
    return f"echo: {question}", ()


def _text(message: Members) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = cast("list[Members]", content)
        return "".join(part.get("text", "") for part in parts)
    return str(content or "")


def _images(messages: list[Members]) -> int:
    """Counts pictures; one that came along must be one."""
    count = 0
    for message in messages:
        if not isinstance(message.get("content"), list):
            continue
        for part in message["content"]:
            if part["type"] == "image_url":
                base64.b64decode(part["image_url"]["url"].partition("base64,")[2], validate=True)
                count += 1
    return count


def _example(schema: Members) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _example(each) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [_example(schema.get("items", {}))]
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case _:
            return "text"


def _calls(said: Said) -> list[Members]:
    return [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in said.calls
    ]


def _finish(said: Said) -> str:
    return "tool_calls" if said.calls else "stop"


def _answer(asked: Members, message: Members, said: Said, **more: Any) -> Members:
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(said)}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": CREATED,
        "model": asked["model"],
        "choices": [choice],
        **more,
    }


def _chunk(asked: Members, choices: list[Members], **more: Any) -> Members:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": asked["model"],
        "choices": choices,
        **more,
    }


def _delta(delta: Members, finish: str | None = None) -> list[Members]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


def _pieces(text: str) -> list[str]:
    return [text[at : at + 8] for at in range(0, len(text), 8)]


def _deltas(said: Said, *, whole_calls: bool = False, thought: str = "reasoning") -> list[Members]:
    """What streams, in order: role, thoughts, text, tool calls in several pieces or whole."""
    given: list[Members] = [{"role": "assistant", "content": None if said.calls else ""}]
    given += [{thought: piece} for piece in _pieces(said.thought)]
    given += [{"content": piece} for piece in _pieces(said.text)]
    if whole_calls and said.calls:
        given.append(
            {"tool_calls": [{"index": at, **call} for at, call in enumerate(_calls(said))]}
        )
        return given
    for at, (id, name, arguments) in enumerate(said.calls):
        function = {"name": name, "arguments": ""}
        opening = {"index": at, "id": id, "type": "function", "function": function}
        given.append({"tool_calls": [opening]})
        for piece in _pieces(arguments):
            given.append({"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
    return given


def _asks_usage(asked: Members) -> bool:
    return bool((asked.get("stream_options") or {}).get("include_usage"))


def _listed(owner: str, **more: Any) -> Callable[[str], Members]:
    def listed(id: str) -> Members:
        return {"id": id, "object": "model", "created": CREATED, "owned_by": owner, **more}

    return listed


def _error(number: int, message: str, **more: Any) -> Refusal:
    body = {"message": message, "type": "invalid_request_error", **more}
    return Refusal(number, {"error": body})


# OpenAI: reasoning models refuse older parameters; usage null in every chunk, obfuscation


def _openai_error(message: str, param: str | None, code: str | None) -> Refusal:
    return _error(400, message, param=param, code=code)


def _check_openai(asked: Members) -> None:
    unknown = [name for name in asked if name not in OpenAiParams.__annotations__]
    unknown = [name for name in unknown if name != "stream"]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise _openai_error(
            f"Unrecognized request argument{plural} supplied: {', '.join(unknown)}", None, None
        )
    if not asked["model"].startswith("o"):
        return
    if asked.get("max_tokens") is not None:
        raise _openai_error(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        )
    if asked.get("temperature") not in (None, 1):
        raise _openai_error(
            f"Unsupported value: 'temperature' does not support {asked['temperature']} with this "
            "model. Only the default (1) value is supported.",
            "temperature",
            "unsupported_value",
        )


def _openai_usage(said: Said) -> Members:
    return said.counts() | {
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": said.reasoned,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _openai_whole(asked: Members, said: Said) -> Members:
    message: Members = {
        "role": "assistant",
        "content": said.text or None,
        "refusal": None,
        "annotations": [],
    }
    if said.calls:
        message["tool_calls"] = _calls(said)
    usage = _openai_usage(said)
    return _answer(asked, message, said, usage=usage, service_tier="default")


def _openai_frames(asked: Members, said: Said) -> list[bytes]:
    more: Members = {"service_tier": "default", "system_fingerprint": "fp_fake"}
    if _asks_usage(asked):
        more["usage"] = None
    if (asked.get("stream_options") or {}).get("include_obfuscation", True):
        more["obfuscation"] = "aZ3"
    quiet = Said(said.text, said.calls)
    frames = [sse(_chunk(asked, _delta(each), **more)) for each in _deltas(quiet)]
    frames.append(sse(_chunk(asked, _delta({}, _finish(said)), **more)))
    if _asks_usage(asked):
        frames.append(sse(_chunk(asked, [], **more | {"usage": _openai_usage(said)})))
    return [*frames, DONE]


_OPENAI_LIMITED = {
    "error": {
        "message": "Rate limit reached for gpt-4o in organization org-fake on requests per min "
        "(RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
}
_OPENAI_QUOTA = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}
OPENAI = Provider(
    root="/v1",
    models=("gpt-4o", "o3-mini"),
    listed=_listed("system"),
    refused_key={
        "error": {
            "message": "Incorrect API key provided: sk-wr**ng.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    },
    unknown_model=lambda name: _error(
        404,
        f"The model `{name}` does not exist or you do not have access to it.",
        param=None,
        code="model_not_found",
    ),
    check=_check_openai,
    whole=_openai_whole,
    frames=_openai_frames,
    usage=_openai_usage,
    headers=("x-request-id: req_fake", "openai-processing-ms: 12"),
    call_id="call_Fake{}weather",
    reasons=lambda asked: asked["model"].startswith("o"),
    faults={
        "rate-limited": status(429, _OPENAI_LIMITED, "retry-after: 20", "retry-after-ms: 19500"),
        "no-quota": status(429, _OPENAI_QUOTA, "x-should-retry: false"),
        "refused": status(
            400,
            {
                "error": {
                    "message": "Invalid value: 'x'.",
                    "type": "invalid_request_error",
                    "param": "messages[0].role",
                    "code": "invalid_value",
                }
            },
        ),
    },
)


# Groq: n is 1, members that it does not know are refused by name, usage beside usage in x_groq

_GROQ_MESSAGES: dict[str, Any] = {
    "system": groq_chat.ChatCompletionSystemMessageParam,
    "developer": groq_chat.ChatCompletionSystemMessageParam,
    "user": groq_chat.ChatCompletionUserMessageParam,
    "assistant": groq_chat.ChatCompletionAssistantMessageParam,
    "tool": groq_chat.ChatCompletionToolMessageParam,
}


def _check_groq(asked: Members) -> None:
    for name in asked:
        if name not in (*GroqParams.__annotations__, "stream_options"):
            raise _error(400, f"property '{name}' is unsupported")
    for at, message in enumerate(asked["messages"]):
        role = message["role"]
        for name in message:
            if name not in _GROQ_MESSAGES[role].__annotations__:
                raise _error(
                    400,
                    f"'messages.{at}' : for 'role:{role}' the following must be satisfied"
                    f"[('messages.{at}' : property '{name}' is unsupported)]",
                )
    if (asked.get("n") or 1) > 1:
        raise _error(400, "'n' : number must be at most 1")


def _groq_usage(said: Said) -> Members:
    return {"queue_time": 0.01, "prompt_time": 0.002, "total_time": 0.1, **said.counts()}


def _groq_whole(asked: Members, said: Said) -> Members:
    message: Members = {"role": "assistant", "content": said.text or None}
    if said.thought:
        message["reasoning"] = said.thought
    if said.calls:
        message["tool_calls"] = _calls(said)
    return _answer(asked, message, said, usage=_groq_usage(said), x_groq={"id": "req_fake"})


def _groq_frames(asked: Members, said: Said) -> list[bytes]:
    first, *deltas = _deltas(said, whole_calls=True)
    chunks = [_chunk(asked, _delta(first), x_groq={"id": "req_fake", "seed": 7})]
    chunks += [_chunk(asked, _delta(each)) for each in deltas]
    tail = {"id": "req_fake", "usage": _groq_usage(said)}
    chunks.append(_chunk(asked, _delta({}, _finish(said)), x_groq=tail))
    if _asks_usage(asked):
        chunks.append(_chunk(asked, [], usage=_groq_usage(said)))
    return [*map(sse, chunks), DONE]


_GROQ_LIMITS = (
    "x-ratelimit-limit-requests: 14400",
    "x-ratelimit-remaining-requests: 14370",
    "x-ratelimit-reset-requests: 2m59.56s",
    "x-ratelimit-limit-tokens: 18000",
    "x-ratelimit-remaining-tokens: 17997",
    "x-ratelimit-reset-tokens: 7.66s",
)
_GROQ_LIMITED = {
    "error": {
        "message": "Rate limit reached for model `llama-3.3-70b-versatile` in organization "
        "`org_fake` on tokens per minute (TPM): Limit 6000, Used 5990, Requested 30. Please try "
        "again in 7.66s.",
        "type": "tokens",
        "code": "rate_limit_exceeded",
    }
}
_GROQ_TOOL = {
    "error": {
        "message": "Failed to call a function. Please adjust your prompt. See "
        "'failed_generation' for more details.",
        "type": "invalid_request_error",
        "code": "tool_use_failed",
        "failed_generation": "<function=get_weather{city}",
    }
}
_GROQ_CAPACITY = {
    "error": {
        "message": "flex tier capacity exceeded, please try again later",
        "type": "service_unavailable",
        "code": "capacity_exceeded",
    }
}


async def _groq_error_in_stream(exchange: Exchange) -> None:
    asked = {"model": "llama-3.3-70b-versatile"}
    good = _chunk(asked, _delta({"role": "assistant", "content": "half"}), x_groq={"id": "r"})
    error = {"error": {"message": "the model fell over", "type": "internal_server_error"}}
    failed = b"event: error\n" + sse(error)
    await scripted([sse(good), failed])(exchange)


GROQ = Provider(
    root="/openai/v1",
    models=("llama-3.3-70b-versatile", "openai/gpt-oss-20b"),
    listed=_listed("Meta", active=True, context_window=131072, public_apps=None),
    refused_key={
        "error": {
            "message": "Invalid API Key",
            "type": "invalid_request_error",
            "code": "invalid_api_key",
        }
    },
    unknown_model=lambda name: _error(
        404,
        f"The model `{name}` does not exist or you do not have access to it.",
        code="model_not_found",
    ),
    check=_check_groq,
    whole=_groq_whole,
    frames=_groq_frames,
    usage=_groq_usage,
    headers=_GROQ_LIMITS,
    call_id="wq7e2k9a{}",
    reasons=lambda asked: asked.get("reasoning_format") == "parsed",
    faults={
        "rate-limited": status(429, _GROQ_LIMITED, "retry-after: 8", *_GROQ_LIMITS),
        "tool-failed": status(400, _GROQ_TOOL),
        "capacity": status(498, _GROQ_CAPACITY),
        "refused": status(400, _error(400, "'temperature' : number must be at most 2").body),
        "error-in-stream": _groq_error_in_stream,
    },
)


# Mistral: members it does not know are 422; ids of nine characters; usage always, tool calls whole

_MISTRAL_MESSAGES: dict[str, Any] = {
    "system": mistral.SystemMessage,
    "user": mistral.UserMessage,
    "assistant": mistral.AssistantMessage,
    "tool": mistral.ToolMessage,
}


def _invalid(*problems: tuple[list[Any], str, str]) -> Refusal:
    detail = [
        {"type": kind, "loc": ["body", *loc], "msg": text, "input": None}
        for loc, kind, text in problems
    ]
    return Refusal(422, {"detail": detail})


def _extra(names: Iterable[str], known: Iterable[str], *loc: Any) -> list[Any]:
    text = "Extra inputs are not permitted"
    return [([*loc, name], "extra_forbidden", text) for name in names if name not in known]


def mistral_error(code: int, message: str, kind: str, number: str) -> Refusal:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": number}
    return Refusal(code, body | {"raw_status_code": code})


def _check_mistral(asked: Members) -> None:
    fields = mistral.ChatCompletionRequest.model_fields
    problems = _extra(asked, fields)
    for at, message in enumerate(asked["messages"]):
        kind = _MISTRAL_MESSAGES.get(message["role"])
        if kind is None:
            tag = f"Input tag '{message['role']}' found using 'role' does not match"
            problems.append((["messages", at], "union_tag_invalid", tag))
        else:
            known = kind.model_fields
            problems += _extra(message, known, "messages", at, message["role"])
    for name in ("tool_choice", "response_format", "parallel_tool_calls", "stream"):
        if name in asked and asked[name] is None:
            problems.append(([name], "none_not_allowed", "Input should not be null"))
    for at, tool in enumerate(asked.get("tools") or ()):
        if "parameters" not in tool["function"]:
            problems.append((["tools", at, "function", "parameters"], "missing", "Field required"))
    if problems:
        raise _invalid(*problems)
    _check_mistral_order(asked["messages"])


def _check_mistral_order(messages: list[Members]) -> None:
    for before, message in zip([None, *messages], messages, strict=False):
        ids = [call["id"] for call in message.get("tool_calls") or ()]
        for id in [*ids, message.get("tool_call_id") or "wq7e2k9ah"]:
            if not _SHORT_ID.fullmatch(id):
                text = f"Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9."
                raise mistral_error(400, text, "invalid_function_call", "3280")
        if before and (before["role"], message["role"]) == ("tool", "user"):
            text = "Unexpected role 'user' after role 'tool'"
            raise mistral_error(400, text, "invalid_request_message_order", "3230")
    if messages[-1]["role"] == "assistant" and not messages[-1].get("prefix"):
        text = (
            "Expected last role User or Tool (or Assistant with prefix True) for serving but got "
            "assistant"
        )
        raise mistral_error(400, text, "invalid_request_message_order", "3230")


def _thinking(text: str) -> list[Members]:
    return [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]


def _mistral_whole(asked: Members, said: Said) -> Members:
    content: Any = said.text
    if said.thought:
        content = [*_thinking(said.thought), {"type": "text", "text": said.text}]
    message: Members = {"role": "assistant", "content": content, "tool_calls": None}
    if said.calls:
        message["tool_calls"] = _mistral_calls(said)
    answer = _answer(asked, message, said, usage=said.counts())
    del answer["choices"][0]["logprobs"]
    return answer


def _mistral_calls(said: Said) -> list[Members]:
    return [
        {"id": id, "function": {"name": name, "arguments": arguments}, "index": at}
        for at, (id, name, arguments) in enumerate(said.calls)
    ]


def _mistral_frames(asked: Members, said: Said) -> list[bytes]:
    deltas: list[Members] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": _thinking(piece)} for piece in _pieces(said.thought)]
    deltas += [{"content": piece} for piece in _pieces(said.text)]
    last: Members = {"content": ""}
    if said.calls:
        last["tool_calls"] = _mistral_calls(said)
    chunks = [_chunk(asked, _delta(each)) for each in deltas]
    chunks.append(_chunk(asked, _delta(last, _finish(said)), usage=said.counts()))
    for chunk in chunks:
        del chunk["choices"][0]["logprobs"]
    return [*map(sse, chunks), DONE]


def _mistral_finished(reason: str) -> Script:
    async def script(exchange: Exchange) -> None:
        asked = exchange.request.json()
        said = said_to(asked, MISTRAL)
        if asked.get("stream"):
            frames = _mistral_frames(asked, said)
            name = f'"finish_reason": "{reason}"'.encode()
            await scripted([f.replace(b'"finish_reason": "stop"', name) for f in frames])(exchange)
            return
        answer = _mistral_whole(asked, said)
        answer["choices"][0]["finish_reason"] = reason
        await status(200, answer)(exchange)

    return script


_MISTRAL_REFUSED = mistral_error(400, "Prompt contains 9 tokens too many", "invalid_prompt", "3051")
_MISTRAL_LIMITED = mistral_error(429, "Rate limit exceeded", "rate_limited", "1300")
MISTRAL = Provider(
    root="/v1",
    models=("mistral-small-latest", "magistral-medium-latest"),
    listed=_listed(
        "mistralai",
        capabilities={"completion_chat": True, "function_calling": True},
        max_context_length=131072,
        type="base",
    ),
    refused_key={"detail": "Unauthorized"},
    unknown_model=lambda name: mistral_error(
        400, f"Invalid model: {name}", "invalid_model", "1500"
    ),
    check=_check_mistral,
    whole=_mistral_whole,
    frames=_mistral_frames,
    headers=("mistral-correlation-id: fake",),
    call_id="fakeCall{}",
    reasons=lambda asked: asked["model"].startswith("magistral"),
    faults={
        "rate-limited": status(429, _MISTRAL_LIMITED.body),
        "refused": status(400, _MISTRAL_REFUSED.body),
        "model-length": _mistral_finished("model_length"),
        "finish-error": _mistral_finished("error"),
    },
)


# OpenRouter: comments first, provider and native_finish_reason, cost, errors after tokens


def _check_openrouter(asked: Members) -> None:
    """It takes members that it does not know."""


def _openrouter_usage(said: Said) -> Members:
    return said.counts() | {
        "cost": "$cost",
        "is_byok": False,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0, "audio_tokens": 0},
        "cost_details": {
            "upstream_inference_cost": None,
            "upstream_inference_prompt_cost": 0.0001,
            "upstream_inference_completions_cost": 0.0002,
        },
        "completion_tokens_details": {"reasoning_tokens": said.reasoned, "audio_tokens": 0},
    }


def _dressed(answer: Members) -> Members:
    for choice in answer["choices"]:
        finish = choice["finish_reason"]
        choice["native_finish_reason"] = "completed" if finish == "stop" else finish
    return {**answer, "id": "gen-1700000000-fake", "provider": "Acme", "system_fingerprint": "f"}


def _openrouter_whole(asked: Members, said: Said) -> Members:
    message: Members = {"role": "assistant", "content": said.text or None, "refusal": None}
    message["reasoning"] = said.thought or None
    if said.calls:
        message["tool_calls"] = _calls(said)
    return _dressed(_answer(asked, message, said, usage=_openrouter_usage(said)))


def _openrouter_frames(asked: Members, said: Said) -> list[bytes]:
    comment = b": OPENROUTER PROCESSING\n\n"
    chunks = [_chunk(asked, _delta(each)) for each in _deltas(said)]
    chunks.append(_chunk(asked, _delta({"content": ""}, _finish(said))))
    # Its counts come with a choice that says nothing.
    nothing = _delta({"role": "assistant", "content": ""})
    chunks.append(_chunk(asked, nothing, usage=_openrouter_usage(said)))
    frames = [sse(_dressed(each)).replace(b'"$cost"', COST.encode()) for each in chunks]
    return [comment, comment, *frames[:2], comment, *frames[2:], DONE]


def _openrouter_error(code: int, message: str, **metadata: Any) -> Script:
    error: Members = {"code": code, "message": message}
    if metadata:
        error["metadata"] = metadata
    return status(code, {"error": error, "user_id": "user_fake"})


async def _openrouter_error_in_stream(exchange: Exchange) -> None:
    asked = exchange.request.json()
    frames = _openrouter_frames(asked, said_to(asked, OPENROUTER))
    error = {
        "code": 502,
        "message": "Provider disconnected",
        "metadata": {"error_type": "provider_unavailable", "provider_code": "x"},
    }
    failed = _dressed(_chunk(asked, _delta({"content": ""}, "error"), error=error))
    await scripted([*frames[:4], sse(failed), DONE])(exchange)


def _openrouter_listed(id: str) -> Members:
    return {
        "id": id,
        "canonical_slug": id,
        "name": id,
        "created": CREATED,
        "context_length": 128000,
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "tokenizer": "GPT",
            "instruct_type": None,
        },
        "pricing": {"prompt": "0.0000025", "completion": "0.00001"},
        "top_provider": {
            "context_length": 128000,
            "max_completion_tokens": 16384,
            "is_moderated": True,
        },
        "per_request_limits": None,
        "supported_parameters": ["tools", "temperature"],
        "supported_voices": None,
        "default_parameters": None,
        "links": {"details": f"/api/v1/models/{id}/endpoints"},
    }


_RAW = json.dumps({"error": {"message": "slow down", "type": "requests"}})
OPENROUTER = Provider(
    root="/api/v1",
    models=("acme/smart-1",),
    listed=_openrouter_listed,
    refused_key={"error": {"message": "No auth credentials found", "code": 401}},
    unknown_model=lambda name: Refusal(
        400, {"error": {"message": f"{name} is not a valid model ID", "code": 400}}
    ),
    check=_check_openrouter,
    whole=_openrouter_whole,
    frames=_openrouter_frames,
    usage=_openrouter_usage,
    headers=("X-Generation-Id: gen-1700000000-fake",),
    call_id="call_fake{}weather",
    reasons=lambda asked: bool(asked.get("reasoning") or asked.get("reasoning_effort")),
    faults={
        "rate-limited": _openrouter_error(
            429, "Provider returned error", raw=_RAW, provider_name="Acme"
        ),
        "no-credits": _openrouter_error(402, "Insufficient credits"),
        "provider-down": _openrouter_error(
            502, "Provider returned error", raw="upstream is down", provider_name="Acme"
        ),
        "no-provider": _openrouter_error(503, "No available model provider"),
        "refused": _openrouter_error(400, "Input must have at least 1 token."),
        "error-in-stream": _openrouter_error_in_stream,
    },
)


class FakeOpenAi(FakeCompatible):
    provider = OPENAI


class FakeGroq(FakeCompatible):
    provider = GROQ


class FakeMistral(FakeCompatible):
    provider = MISTRAL


class FakeOpenRouter(FakeCompatible):
    provider = OPENROUTER
