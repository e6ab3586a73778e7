"""Gemini's API on a loopback socket, as strict as the real one about what it is sent.

Behaviour follows the question: "weather" calls a function when some are declared, "unsafe" is
blocked, anything else is echoed. A model named `fault:NAME` fails as `FAULTS` says, and scripts
queued with `FakeGoogle.next` come first.
"""

import base64
import json
import re
from collections import deque
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from fakes.upstream import FAULTS as TRANSPORT_FAULTS
from fakes.upstream import Exchange, FakeUpstream, Script, raw, status

KEY = "fake-key"
SIGNATURE = base64.b64encode(b"signed by the fake").decode()
# What the real one takes instead of a signature that was lost.
BYPASS = "skip_thought_signature_validator"
RESPONSE_ID = "fakeR3sponse1d"
MODELS = ("gemini-3-flash", "gemini-2.5-flash")

_ROUTE = re.compile(r"/v1beta/models/(.+):(generateContent|streamGenerateContent)")
_NAME = re.compile(r"[A-Za-z_][\w.:-]{0,127}")
# The members that each message of a request has; lists hold messages of the named kind.
_KNOWN: dict[str, dict[str, str | None]] = {
    "request": {
        "contents": "content",
        "systemInstruction": "content",
        "generationConfig": "config",
        "tools": "tool",
        "toolConfig": "tool_config",
        "safetySettings": None,
    },
    "content": {"role": None, "parts": "part"},
    "part": {
        "text": None,
        "inlineData": "blob",
        "fileData": "file",
        "functionCall": "call",
        "functionResponse": "result",
        "thought": None,
        "thoughtSignature": None,
    },
    "blob": {"mimeType": None, "data": None},
    "file": {"mimeType": None, "fileUri": None},
    "call": {"id": None, "name": None, "args": None},
    "result": {"id": None, "name": None, "response": None},
    "config": {
        **dict.fromkeys(
            ("temperature", "topP", "topK", "maxOutputTokens", "stopSequences", "seed")
        ),
        **dict.fromkeys(("presencePenalty", "frequencyPenalty", "candidateCount")),
        **dict.fromkeys(("responseMimeType", "responseJsonSchema", "responseSchema")),
        **dict.fromkeys(("responseLogprobs", "logprobs")),
        "thinkingConfig": "thinking",
    },
    "thinking": dict.fromkeys(("thinkingBudget", "thinkingLevel", "includeThoughts")),
    "tool": {"functionDeclarations": "declaration"},
    "declaration": dict.fromkeys(("name", "description", "parameters", "parametersJsonSchema")),
    "tool_config": {"functionCallingConfig": "calling"},
    "calling": dict.fromkeys(("mode", "allowedFunctionNames")),
}


class Refusal(Exception):
    """The request is answered by this error."""

    def __init__(self, code: int, name: str, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.body = error(code, name, message, *details)
        self.code = code


def error(code: int, name: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"code": code, "message": message, "status": name}
    return {"error": {**body, "details": list(details)} if details else body}


def _info(reason: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": "googleapis.com"}


BAD_KEY = error(
    400,
    "INVALID_ARGUMENT",
    "API key not valid. Please pass a valid API key.",
    _info("API_KEY_INVALID"),
)
LIMITED = error(
    429,
    "RESOURCE_EXHAUSTED",
    "You exceeded your current quota, please check your plan and billing details.",
    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"},
)
OVERLOADED = error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")


class _Endless(deque[Script]):
    """What tests queued, and past that the normal answer, for ever."""

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Script:
        return super().popleft() if len(self) else answer


class FakeGoogle(FakeUpstream):
    """Use as `async with FakeGoogle() as fake`; `fake.base_url` is what comes before /v1beta."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = _Endless()

    def next(self, *scripts: Script | str) -> None:
        """Names are those of `FAULTS`."""
        self.queue.extend(FAULTS[item] if isinstance(item, str) else item for item in scripts)


async def answer(exchange: Exchange) -> None:
    """What the real one would, as far as the question asks for it."""
    request = exchange.request
    url = urlsplit(request.path)
    query = parse_qs(url.query)
    try:
        _admit(request.header("x-goog-api-key"), query)
        if request.method == "GET" and url.path == "/v1beta/models":
            await status(200, listing())(exchange)
            return
        route = _ROUTE.fullmatch(unquote(url.path))
        if request.method != "POST" or route is None:
            raise Refusal(404, "NOT_FOUND", f"no route {request.method} {url.path}")
        model, method = route.groups()
        if model.startswith("fault:"):
            await FAULTS[model.removeprefix("fault:")](exchange)
            return
        asked = checked(request.json(), model)
        if method == "generateContent":
            await status(200, whole(asked, model))(exchange)
        elif query.get("alt") == ["sse"]:
            await _stream([sse(event) for event in events(asked, model)])(exchange)
        else:
            await status(200, list(events(asked, model)))(exchange)
    except Refusal as refusal:
        await status(refusal.code, refusal.body)(exchange)


def _admit(key: str | None, query: dict[str, list[str]]) -> None:
    if "key" in query:
        raise Refusal(
            400, "INVALID_ARGUMENT", "this fake takes no key in a URL, where logs show it"
        )
    if key is None:
        message = (
            "Method doesn't allow unregistered callers (callers without established identity)."
        )
        raise Refusal(403, "PERMISSION_DENIED", message)
    if key != KEY:
        raise Refusal(
            400, "INVALID_ARGUMENT", BAD_KEY["error"]["message"], _info("API_KEY_INVALID")
        )


def listing() -> dict[str, Any]:
    chats = [
        {
            "name": f"models/{name}",
            "displayName": name,
            "inputTokenLimit": 1048576,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }
        for name in MODELS
    ]
    embedder = {
        "name": "models/gemini-embedding-001",
        "supportedGenerationMethods": ["embedContent"],
    }
    return {"models": [*chats, embedder]}


def checked(asked: dict[str, Any], model: str) -> dict[str, Any]:
    """The request, unless the real one would refuse it."""
    asked = _read(asked, "request", "")
    contents = asked.get("contents")
    if not contents or not all(content.get("parts") for content in contents):
        raise _invalid("* GenerateContentRequest.contents: contents is not specified")
    config = asked.get("generationConfig", {})
    if len(config.get("stopSequences", [])) > 5:
        raise _invalid("The number of stop sequences must be at most 5.")
    if "responseJsonSchema" in config and config.get("responseMimeType") != "application/json":
        raise _invalid("Function calling with a response mime type: text is unsupported")
    thinking = config.get("thinkingConfig", {})
    if "2.5" in model and "thinkingLevel" in thinking:
        raise _invalid("Thinking level is not supported for this model.")
    if "thinkingLevel" in thinking and "thinkingBudget" in thinking:
        raise _invalid("You can only set only one of thinking budget and thinking level.")
    for name in _declared(asked):
        if not _NAME.fullmatch(name):
            raise _invalid("Invalid function name. Must start with a letter or an underscore.")
    _check_turns(contents, signed="gemini-3" in model)
    return asked


def _read(message: dict[str, Any], kind: str, path: str) -> dict[str, Any]:
    """The message with its names in camelCase: the real one takes snake_case as well."""
    known, read = _KNOWN[kind], {}
    for sent, value in message.items():
        name = re.sub(r"_(\w)", lambda found: found[1].upper(), sent)
        if name not in known:
            raise _invalid(
                f"Invalid JSON payload received. Unknown name \"{sent}\" at '{path}': "
                "Cannot find field."
            )
        place, inner = f"{path}.{name}".lstrip("."), known[name]
        if inner is None:
            read[name] = value
        elif isinstance(value, list):
            items = enumerate(cast("list[Any]", value))
            read[name] = [_read(item, inner, f"{place}[{index}]") for index, item in items]
        else:
            read[name] = _read(value, inner, place)
    return read


def _check_turns(contents: list[dict[str, Any]], *, signed: bool) -> None:
    current = max(
        (index for index, content in enumerate(contents) if _is_question(content)), default=0
    )
    for index, content in enumerate(contents):
        calls = [part for part in content["parts"] if "functionCall" in part]
        if not calls:
            continue
        after = contents[index + 1]["parts"] if index + 1 < len(contents) else []
        if len([part for part in after if "functionResponse" in part]) != len(calls):
            raise _invalid(
                "Please ensure that the number of function response parts is equal to the number "
                "of function call parts of the function call turn."
            )
        if (
            signed
            and index > current
            and calls[0].get("thoughtSignature") not in (SIGNATURE, BYPASS)
        ):
            name = calls[0]["functionCall"]["name"]
            raise _invalid(
                "Function call is missing a thought_signature in functionCall parts. Additional "
                f"data, function call `{name}`, position {index}."
            )


def _is_question(content: dict[str, Any]) -> bool:
    asks = any("functionResponse" not in part for part in content["parts"])
    return content.get("role", "user") == "user" and asks


def _invalid(message: str) -> Refusal:
    return Refusal(400, "INVALID_ARGUMENT", message)


def _declared(asked: dict[str, Any]) -> list[str]:
    tools = asked.get("tools", [])
    return [each["name"] for tool in tools for each in tool.get("functionDeclarations", [])]


def question(asked: dict[str, Any]) -> str:
    """The text of the last turn."""
    return "".join(part.get("text", "") for part in asked["contents"][-1]["parts"])


def _parts(asked: dict[str, Any]) -> list[dict[str, Any]]:
    last, text = asked["contents"][-1]["parts"], question(asked)
    config = asked.get("generationConfig", {})
    names, calling = _declared(asked), asked.get("toolConfig", {}).get("functionCallingConfig", {})
    results = [part["functionResponse"] for part in last if "functionResponse" in part]
    if results:
        told = ", ".join(f"{item['name']} said {json.dumps(item['response'])}" for item in results)
        return [{"text": told, "thoughtSignature": SIGNATURE}]
    forced = calling.get("mode") == "ANY"
    if names and calling.get("mode") != "NONE" and (forced or "weather" in text):
        name = calling.get("allowedFunctionNames", names)[0]
        cities = re.findall(r"in (\w+)", text) or ["Paris"]
        calls: list[dict[str, Any]] = [
            {"functionCall": {"name": name, "args": {"city": city}}} for city in cities
        ]
        calls[0]["thoughtSignature"] = SIGNATURE
        return calls
    if "responseJsonSchema" in config:
        return [{"text": json.dumps(_example(config["responseJsonSchema"]))}]
    seen = [part["inlineData"] for part in last if "inlineData" in part]
    if seen:
        sizes = [str(len(base64.urlsafe_b64decode(blob["data"]))) for blob in seen]
        return [{"text": f"saw {len(seen)} images of {', '.join(sizes)} bytes: {text}"}]
    return [{"text": f"echo: {text}"}]


def _example(schema: dict[str, Any]) -> Any:
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


def _thoughts(asked: dict[str, Any]) -> list[dict[str, Any]]:
    thinking = asked.get("generationConfig", {}).get("thinkingConfig", {})
    if not thinking.get("includeThoughts"):
        return []
    return [{"text": "Let me think.", "thought": True}]


def usage(asked: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, int]:
    """One token a word; counts that are zero are left out, as the real one does."""
    prompt = sum(len(json.dumps(content).split()) for content in asked["contents"])
    counts = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": sum(len(json.dumps(part).split()) for part in parts),
        "thoughtsTokenCount": sum(len(part["text"].split()) for part in _thoughts(asked)),
    }
    return {name: n for name, n in {**counts, "totalTokenCount": sum(counts.values())}.items() if n}


def _blocked(asked: dict[str, Any], model: str) -> dict[str, Any]:
    counts = {"promptTokenCount": 3, "totalTokenCount": 3}
    return _envelope(model) | {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": counts,
    }


def _envelope(model: str) -> dict[str, Any]:
    return {"modelVersion": model, "responseId": RESPONSE_ID}


def _candidates(asked: dict[str, Any], parts: list[dict[str, Any]], **more: Any) -> list[Any]:
    count = asked.get("generationConfig", {}).get("candidateCount", 1)
    content = {"parts": parts, "role": "model"}
    return [{"content": content, "index": index, **more} for index in range(count)]


def whole(asked: dict[str, Any], model: str) -> dict[str, Any]:
    if "unsafe" in question(asked):
        return _blocked(asked, model)
    parts = _parts(asked)
    return _envelope(model) | {
        "candidates": _candidates(asked, [*_thoughts(asked), *parts], finishReason="STOP"),
        "usageMetadata": usage(asked, parts),
    }


def events(asked: dict[str, Any], model: str) -> list[dict[str, Any]]:
    """Texts come in pieces, function calls whole, counts in every event and final in the last."""
    if "unsafe" in question(asked):
        return [_blocked(asked, model)]
    parts = _parts(asked)
    pieces: list[dict[str, Any]] = [*_thoughts(asked)]
    for part in parts:
        text = cast("str", part.get("text", ""))
        if not text:
            pieces.append(part)
        pieces += [{**part, "text": text[at : at + 8]} for at in range(0, len(text), 8)]
    final = usage(asked, parts)
    prompt = final["promptTokenCount"]
    growing = {"promptTokenCount": prompt, "totalTokenCount": prompt}
    told = [
        _envelope(model) | {"candidates": _candidates(asked, [piece]), "usageMetadata": growing}
        for piece in pieces
    ]
    last = _candidates(asked, [{"text": ""}], finishReason="STOP")
    return [*told, _envelope(model) | {"candidates": last, "usageMetadata": final}]


def sse(event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\r\n\r\n"


def _stream(frames: list[bytes], *, cut: bool = False) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.start_stream()
        for frame in frames:
            await exchange.chunk(frame)
        if cut:
            exchange.close()
        else:
            await exchange.end_stream()

    return script


def _said(count: int, *, then: list[bytes], cut: bool = False) -> Script:
    """So many good events of the answer, then these frames."""

    async def script(exchange: Exchange) -> None:
        frames = [sse(event) for event in events(exchange.request.json(), MODELS[0])[:count]]
        await _stream([*frames, *then], cut=cut)(exchange)

    return script


def ended(reason: str, *parts: dict[str, Any]) -> Script:
    """An answer of these parts that ends for this reason, streamed or whole as it was asked for."""
    candidate = {"content": {"parts": list(parts), "role": "model"}, "finishReason": reason}
    body = _envelope(MODELS[0]) | {"candidates": [candidate if parts else {"finishReason": reason}]}

    async def script(exchange: Exchange) -> None:
        streamed = "streamGenerateContent" in exchange.request.path
        await (_stream([sse(body)]) if streamed else status(200, body))(exchange)

    return script


FAULTS: dict[str, Script] = {
    **TRANSPORT_FAULTS,
    "normal": answer,
    "rate-limited": status(429, LIMITED),
    "overloaded": status(503, OVERLOADED),
    "server-error": status(500, error(500, "INTERNAL", "An internal error has occurred.")),
    "bad-key": status(400, BAD_KEY),
    "wrong-region": status(
        400,
        error(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    ),
    "error-first": _said(0, then=[sse(LIMITED)]),
    "error-in-stream": _said(2, then=[sse(OVERLOADED)]),
    "truncated-stream": _said(2, then=[], cut=True),
    "no-finish": _said(2, then=[]),
    "half-event": _said(2, then=[sse({"candidates": []})[:-9]]),
    "malformed-call": ended("MALFORMED_FUNCTION_CALL"),
    "filtered": ended("SAFETY"),
    "cut-short": ended("MAX_TOKENS", {"text": "It was a"}),
    "invalid-json": raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        b'{"candidates":['
    ),
}
