"""Anthropic's Messages API on a loopback socket, as strict as the real one about what it is sent.

It tells what it was asked: the last text, the images and documents, a tool's result. A question
about the weather calls the tools that it was given. Scripts and faults work as in `fakes.upstream`.
"""

import base64
import binascii
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from fakes.upstream import Exchange, FakeUpstream, Request, Script, scripted, stall, status

Json = dict[str, Any]

MODELS = ("claude-opus-5", "claude-opus-4-7", "claude-sonnet-4-5", "claude-haiku-4-5")
SIGNATURE = "c2lnbmVkIGJ5IHRoZSBmYWtl"

_MEMBERS = {
    "model", "max_tokens", "messages", "system", "metadata", "output_config", "service_tier",
    "stop_sequences", "stream", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
}  # fmt: skip
# Each kind of block: what it must have, and what it may have.
_BLOCKS: dict[str, tuple[set[str], set[str]]] = {
    "text": ({"text"}, {"cache_control", "citations"}),
    "image": ({"source"}, {"cache_control"}),
    "document": ({"source"}, {"cache_control", "title", "context", "citations"}),
    "tool_use": ({"id", "name", "input"}, {"cache_control"}),
    "tool_result": ({"tool_use_id"}, {"content", "is_error", "cache_control"}),
    "thinking": ({"thinking", "signature"}, set()),
    "redacted_thinking": ({"data"}, set()),
}
_TOOL = {"name", "description", "input_schema", "strict", "cache_control", "type"}
_CHOICE = {"type", "name", "disable_parallel_tool_use"}
_NEWER = ("opus-4-7", "opus-4-8", "opus-5", "sonnet-5", "haiku-5", "fable")
_NO_EFFORT = ("claude-3", "sonnet-4-5", "haiku-4-5")
_NO_ADAPTIVE = (*_NO_EFFORT, "opus-4-5")
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_EXTRA = "Extra inputs are not permitted"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, message: str, code: int = 400, kind: str = "invalid_request_error") -> None:
        self.script = failing(code, kind, message)


def problem(kind: str, message: str) -> Json:
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "req_fake",
    }


def failing(code: int, kind: str, message: str, *headers: str) -> Script:
    return status(code, problem(kind, message), "request-id: req_fake", *headers)


def event(payload: Json) -> bytes:
    return f"event: {payload['type']}\ndata: {json.dumps(payload)}\n\n".encode()


def _need(condition: object, message: str) -> None:
    if not condition:
        raise Refused(message)


def _only(value: Json, allowed: set[str], at: str = "") -> None:
    for name in value:
        _need(name in allowed, f"{at}{name}: {_EXTRA}")


def check(asked: Json, version: str) -> None:
    """Raises Refused, in the real one's words where they are known."""
    _only(asked, _MEMBERS)
    for name in ("model", "max_tokens", "messages"):
        _need(name in asked, f"{name}: Field required")
    _need(asked["messages"], "messages: at least one message is required")
    if asked["model"] == "claude-missing":
        raise Refused(f"model: {asked['model']}", 404, "not_found_error")
    _check_sampling(asked, version)
    _check_thinking(asked)
    _check_format(asked.get("output_config") or {})
    for stop in asked.get("stop_sequences") or ():
        _need(stop.strip(), "stop_sequences: each stop sequence must contain non-whitespace")
    for index, message in enumerate(asked["messages"]):
        _check_message(message, f"messages.{index}")
    _check_calls(asked)
    for index, tool in enumerate(asked.get("tools") or ()):
        _only(tool, _TOOL, f"tools.{index}.custom.")
        _need("input_schema" in tool, f"tools.{index}.custom.input_schema: Field required")
        typed = tool["input_schema"].get("type") == "object"
        _need(typed, f"tools.{index}.custom.input_schema.type: Field required")
    if choice := asked.get("tool_choice"):
        _only(choice, _CHOICE, f"tool_choice.{choice['type']}.")
        _need(asked.get("tools"), "tool_choice: may only be specified while providing tools")
        _need(choice["type"] in ("auto", "any", "tool", "none"), "tool_choice: Input tag unknown")


def _check_sampling(asked: Json, version: str) -> None:
    newer = any(name in asked["model"] for name in _NEWER)
    for name in ("temperature", "top_p", "top_k"):
        if name in asked:
            _need(version < "2026", f"{name}: {_EXTRA}")
            _need(not newer, f"`{name}` is deprecated for this model.")
    _need(0 <= asked.get("temperature", 1) <= 1, "temperature: range: 0..1")
    both = "temperature" in asked and "top_p" in asked
    _need(
        not both,
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
    )
    if thinks(asked):
        _need(
            asked.get("temperature", 1) == 1,
            "`temperature` may only be set to 1 when thinking is enabled or in adaptive mode.",
        )


def _check_thinking(asked: Json) -> None:
    model, thinking = asked["model"], asked.get("thinking") or {}
    effort = (asked.get("output_config") or {}).get("effort")
    if effort is not None:
        weak = any(name in model for name in _NO_EFFORT)
        _need(not weak, "This model does not support the effort parameter.")
        known = effort in ("low", "medium", "high", "xhigh", "max")
        _need(known, "output_config.effort: Input should be 'low', 'medium', 'high'")
    if thinking.get("type") == "adaptive":
        weak = any(name in model for name in _NO_ADAPTIVE)
        _need(not weak, "adaptive thinking is not supported on this model")
    if thinking.get("type") == "enabled":
        newer = any(name in model for name in _NEWER)
        _need(not newer, '"thinking.type.enabled" is not supported for this model.')
        budget = thinking.get("budget_tokens", 0)
        _need(budget >= 1024, "thinking.enabled.budget_tokens: Input should be at least 1024")
        _need(budget < asked["max_tokens"], "`max_tokens` must be greater than the budget")
    if thinks(asked):
        forced = (asked.get("tool_choice") or {}).get("type") in ("any", "tool")
        _need(not forced, "Thinking may not be enabled when tool_choice forces tool use.")


def thinks(asked: Json) -> bool:
    return (asked.get("thinking") or {}).get("type") in ("enabled", "adaptive")


def _check_format(config: Json) -> None:
    _only(config, {"effort", "format"}, "output_config.")
    wanted = config.get("format")
    if wanted is None:
        return
    _only(wanted, {"type", "schema"}, "output_config.format.")
    _need(wanted.get("type") == "json_schema", "output_config.format.type: Input should be")
    for schema in _objects(wanted["schema"]):
        _need(
            schema.get("additionalProperties") is False,
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be "
            "explicitly set to false",
        )


def _objects(schema: Any) -> Iterator[Json]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)


def _check_message(message: Json, at: str) -> None:
    _only(message, {"role", "content"}, f"{at}.")
    role = message["role"]
    _need(
        role in ("user", "assistant"),
        f'messages: Unexpected role "{role}". The Messages API accepts a top-level `system` '
        'parameter, not "system" as an input message role.',
    )
    _need(message["content"], f"{at}: all messages must have non-empty content")
    for index, block in enumerate(blocks_of(message)):
        _check_block(block, f"{at}.content.{index}")


def _check_block(block: Json, at: str) -> None:
    kind = block.get("type", "")
    _need(kind in _BLOCKS, f"{at}: Input tag '{kind}' found using 'type' does not match")
    required, optional = _BLOCKS[kind]
    _only(block, {"type"} | required | optional, f"{at}.{kind}.")
    for name in required:
        _need(name in block, f"{at}.{kind}.{name}: Field required")
    if kind == "text":
        _need(
            block["text"].strip(), "messages: text content blocks must contain non-whitespace text"
        )
    if kind in ("image", "document"):
        _check_source(block["source"], f"{at}.{kind}.source")
    if kind == "thinking":
        ours = block["signature"] == SIGNATURE
        _need(ours, f"{at}: Invalid `signature` in `thinking` block")
    for id in (block[name] for name in ("id", "tool_use_id") if name in block):
        _need(_ID.fullmatch(id), f"{at}.{kind}.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if kind == "tool_use":
        _need(isinstance(block["input"], dict), f"{at}.tool_use.input: Input should be an object")
    if kind == "tool_result" and isinstance(block.get("content"), list):
        for index, inner in enumerate(block["content"]):
            _check_block(inner, f"{at}.content.{index}")


def _check_source(source: Json, at: str) -> None:
    if source["type"] == "url":
        _only(source, {"type", "url"}, f"{at}.url.")
        _need(source["url"].startswith("https://"), "Only HTTPS URLs are supported.")
        return
    _only(source, {"type", "media_type", "data"}, f"{at}.base64.")
    kinds = ("image/jpeg", "image/png", "image/gif", "image/webp", "application/pdf")
    _need(source["media_type"] in kinds, f"{at}.base64.media_type: Input should be 'image/jpeg'")
    try:
        base64.b64decode(source["data"], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{at}.base64.data: Invalid base64 data") from None


def _check_calls(asked: Json) -> None:
    """Each call is answered in the next turn, and no result comes without its call."""
    waiting: set[str] = set()
    for index, message in enumerate(asked["messages"]):
        blocks = blocks_of(message)
        results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        _need(
            waiting <= results,
            f"messages.{index - 1}: `tool_use` ids were found without `tool_result` blocks "
            "immediately after",
        )
        _need(
            results <= waiting,
            f"messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks",
        )
        waiting = {block["id"] for block in blocks if block["type"] == "tool_use"}
        declared = asked.get("tools") or not waiting
        _need(declared, "Requests which include `tool_use` blocks must define tools")


def blocks_of(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text_of(block: Json) -> str:
    content = block.get("content", "")
    return content if isinstance(content, str) else " ".join(_words(content))


def _words(blocks: list[Json]) -> Iterator[str]:
    """What a turn holds, in words."""
    for block in blocks:
        match block["type"]:
            case "text":
                yield block["text"]
            case "tool_result":
                yield f"result {_text_of(block)}"
            case "image" | "document":
                source = block["source"]
                what = source.get("url") or (
                    f"{source['media_type']} of {len(base64.b64decode(source['data']))} bytes"
                )
                yield f"[{block['type']} {what}]"
            case _:
                pass


def _instance(schema: Json) -> Any:
    match schema.get("type"):
        case "object":
            return {name: _instance(of) for name, of in schema.get("properties", {}).items()}
        case "array":
            return [_instance(schema.get("items", {}))]
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case _:
            return (schema.get("enum") or ["word"])[0]


def _calls(asked: Json, text: str) -> list[Json]:
    choice = asked.get("tool_choice") or {"type": "auto"}
    forced = choice["type"] in ("any", "tool")
    tools = asked.get("tools") or []
    if choice["type"] == "none" or not tools or not (forced or "weather" in text):
        return []
    if choice["type"] == "tool":
        tools = [tool for tool in tools if tool["name"] == choice["name"]]
    if choice.get("disable_parallel_tool_use"):
        tools = tools[:1]
    return [
        {
            "type": "tool_use",
            "id": f"toolu_fake{index}",
            "name": tool["name"],
            "input": _instance(tool["input_schema"]),
        }
        for index, tool in enumerate(tools)
    ]


def content_of(asked: Json) -> list[Json]:
    last = blocks_of(asked["messages"][-1])
    text = " ".join(_words(last))
    content: list[Json] = []
    if thinks(asked):
        shown = asked["thinking"].get("display") != "omitted"
        thought = f"thinking of: {text}" if shown else ""
        content.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
    calls = [] if any(block["type"] == "tool_result" for block in last) else _calls(asked, text)
    if calls:
        return [*content, {"type": "text", "text": "Let me look."}, *calls]
    wanted = (asked.get("output_config") or {}).get("format")
    said = json.dumps(_instance(wanted["schema"])) if wanted else f"echo: {text}"
    return [*content, {"type": "text", "text": said}]


def message_of(asked: Json) -> Json:
    content = content_of(asked)
    called = any(block["type"] == "tool_use" for block in content)
    cached = b"cache_control" in json.dumps(asked).encode()
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": asked["model"],
        "content": content,
        "stop_reason": "tool_use" if called else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": sum(
                len(" ".join(_words(blocks_of(message))).split()) for message in asked["messages"]
            ),
            "cache_creation_input_tokens": 7 if cached else 0,
            "cache_read_input_tokens": 5 if cached else 0,
            "output_tokens": sum(len(json.dumps(block).split()) for block in content),
        },
    }


def frames(asked: Json) -> list[bytes]:
    """The same answer as events."""
    whole = message_of(asked)
    usage = whole["usage"]
    opening = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**usage, "output_tokens": 1},
    }
    events: list[Json] = [{"type": "message_start", "message": opening}]
    for index, block in enumerate(whole["content"]):
        start, deltas = _streamed(block)
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "ping"}] if index == 0 else []
        events += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        events.append({"type": "content_block_stop", "index": index})
    ending = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": ending, "usage": usage},
        {"type": "message_stop"},
    ]
    return [event(payload) for payload in events]


def _streamed(block: Json) -> tuple[Json, list[Json]]:
    def pieces(kind: str, member: str, text: str) -> list[Json]:
        return [{"type": kind, member: text[at : at + 8]} for at in range(0, len(text), 8)]

    match block["type"]:
        case "thinking":
            deltas = pieces("thinking_delta", "thinking", block["thinking"])
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case "tool_use":
            text = json.dumps(block["input"]) if block["input"] else ""
            first = {"type": "input_json_delta", "partial_json": ""}
            return {**block, "input": {}}, [
                first,
                *pieces("input_json_delta", "partial_json", text),
            ]
        case _:
            return {"type": "text", "text": ""}, pieces("text_delta", "text", block["text"])


async def answer_normally(exchange: Exchange) -> None:
    request = exchange.request
    try:
        script = _script_for(request)
    except Refused as refused:
        script = refused.script
    await script(exchange)


def _script_for(request: Request) -> Script:
    key = request.header("x-api-key") or (request.header("authorization") or "")[7:]
    if not key or key == "wrong":
        raise Refused("invalid x-api-key", 401, "authentication_error")
    version = request.header("anthropic-version") or ""
    _need(version, "anthropic-version: header is required")
    path = request.path.partition("?")[0]
    if request.method == "GET" and path == "/v1/models":
        return status(200, _listing())
    if request.method != "POST" or path != "/v1/messages":
        raise Refused("Not found", 404, "not_found_error")
    asked = request.json()
    model = str(asked.get("model", ""))
    if model.startswith("fault:"):
        return FAULTS[model.removeprefix("fault:")]
    check(asked, version)
    if asked.get("stream"):
        return scripted(frames(asked))
    return status(200, message_of(asked), "request-id: req_fake")


def _listing() -> Json:
    models = [
        {
            "type": "model",
            "id": name,
            "display_name": name.title(),
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
        }
        for name in MODELS
    ]
    return {"data": models, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}


def cut(after: int, *then: bytes, stalls: bool = False) -> Script:
    """So many good events, then these bytes and the end, or silence."""

    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for item in [*frames(exchange.request.json())[:after], *then]:
            await exchange.chunk(item)
        if stalls:
            await exchange.until_gone()
        await exchange.end_stream()

    return script


_OVERLOADED = event(
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
)
_BROKE = event(
    {"type": "error", "error": {"type": "api_error", "message": "Internal server error"}}
)

FAULTS: dict[str, Script] = {
    "stall": stall,
    "stall-mid-stream": cut(5, stalls=True),
    "overloaded": failing(529, "overloaded_error", "Overloaded"),
    "overloaded-first": cut(0, _OVERLOADED),
    "overloaded-after-start": cut(1, _OVERLOADED),
    "error-mid-stream": cut(5, _BROKE),
    "truncated-stream": cut(5),
    "no-stop-event": cut(-1),
    "garbage-mid-stream": cut(5, b"event: content_block_delta\ndata: {oops\n\n"),
    "rate-limited": failing(
        429, "rate_limit_error", "This request would exceed your rate limit.", "retry-after: 7"
    ),
    "unauthorized": failing(401, "authentication_error", "invalid x-api-key"),
    "no-credit": failing(
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API.",
    ),
    "server-error": failing(500, "api_error", "Internal server error"),
}


class _Endless(deque[Script]):
    """A queue of scripts that goes on with the normal answer once it is empty."""

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Script:
        return super().popleft() if len(self) else answer_normally


class FakeAnthropic(FakeUpstream):
    """Use as `async with FakeAnthropic() as fake`; then `fake.base_url` is its address."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = _Endless()

    def next(self, *scripts: Script | str) -> None:
        self.queue.extend(FAULTS[item] if isinstance(item, str) else item for item in scripts)
