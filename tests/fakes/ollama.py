"""An Ollama server on a loopback socket, as strict as the real one where that is strict.

It runs on the machinery of `fakes.upstream`. A model named `fault:NAME` fails in that way; the
names are the keys of `FAULTS`. What it was asked is in `requests`.
"""

import base64
import binascii
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from fakes.upstream import (
    Exchange,
    FakeUpstream,
    Script,
    invalid_json,
    raw,
    reset,
    stall,
    status,
)

Members = dict[str, Any]

MODEL = "fake-model:latest"
CREATED = "2026-08-21T18:48:22.706015396Z"
THOUGHT = "The user wants an echo."
LEVELS = ("low", "medium", "high", "max")
DETAILS: Members = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "1M",
    "quantization_level": "F32",
}
LISTED: Members = {
    "name": MODEL,
    "model": MODEL,
    "modified_at": "2025-05-04T17:37:44.706015396-07:00",
    "size": 3_825_819_519,
    "digest": "fe938a131f40e6f6d40083c9f0f430a515233eb2edaa6d72eb85c50d64f2300e",
    "details": DETAILS,
}
BUSY = "server busy, please try again.  maximum pending requests exceeded"


class Bad(Exception):
    """The request is refused with status 400."""


class _Scripts(deque[Script]):
    """Scripts that tests queued, and the normal answer when there is none."""

    def __init__(self, normal: Script) -> None:
        super().__init__()
        self._normal = normal

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Script:
        return super().popleft() if len(self) else self._normal


class FakeOllama(FakeUpstream):
    """Use as `async with FakeOllama() as fake`; `fake.base_url` is what OLLAMA_HOST would hold.

    `cached`: its prompt cache answers, so that no count of the prompt's tokens is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cached = False
        self.queue = _Scripts(self._answer)

    def next(self, *scripts: Script | str) -> None:
        self.queue.extend(FAULTS[item] if isinstance(item, str) else item for item in scripts)

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        match (request.method, request.path):
            case ("GET" | "HEAD", "/"):
                await exchange.answer(200, b"Ollama is running", "Content-Type: text/plain")
            case ("GET", "/api/version"):
                await status(200, {"version": "0.12.6"})(exchange)
            case ("GET", "/api/tags"):
                await status(200, {"models": [LISTED]})(exchange)
            case ("GET", "/api/ps"):
                await status(200, {"models": [_running()]})(exchange)
            case ("POST", "/api/show" | "/api/chat" | "/api/generate"):
                await self._of_model(exchange)
            case _:
                await exchange.answer(404, b"404 page not found", "Content-Type: text/plain")

    async def _of_model(self, exchange: Exchange) -> None:
        try:
            asked = _object(exchange.request.body)
            model = str(asked.get("model") or "")
            if model.startswith("fault:"):
                await FAULTS[model.removeprefix("fault:")](exchange)
                return
            if not model:
                raise Bad("model is required")
            if model not in (MODEL, MODEL.removesuffix(":latest")):
                await status(404, {"error": f"model '{model}' not found"})(exchange)
            elif exchange.request.path == "/api/show":
                await status(200, _shown())(exchange)
            else:
                given = lines_of(exchange.request.path, asked, cached=self.cached)
                await (streamed(given) if asked.get("stream", True) else whole(given))(exchange)
        except Bad as error:
            await status(400, {"error": str(error)})(exchange)


def lines_of(path: str, asked: Members, *, cached: bool = False) -> list[Members]:
    """Every line of a streamed answer. Raises Bad."""
    chats = path == "/api/chat"
    _check_options(asked)
    if chats and not asked.get("messages"):
        return [_last(asked, "load")]
    said = _chat_said(asked) if chats else _prompt_said(asked)
    words, calls = said
    reason, most = "stop", (asked.get("options") or {}).get("num_predict")
    if isinstance(most, int) and 0 < most < len(words.split()):
        words, reason = " ".join(words.split()[:most]), "length"
    pieces: list[Members] = []
    if asked.get("think"):
        pieces.append({"thinking": THOUGHT})
    pieces += [{"content": words[at : at + 8]} for at in range(0, len(words), 8)]
    if calls:
        pieces.append({"tool_calls": calls})
    given = [_piece(asked, chats, piece) for piece in pieces]
    last = _last(asked, reason, chats=chats)
    last["eval_count"] = len(words.split()) or 1
    if not cached:
        last["prompt_eval_count"] = _prompt_words(asked)
    return [*given, last]


def whole(lines: list[Members]) -> Script:
    """The same as one object, for `stream` false."""
    joined = dict(lines[-1])
    text = "".join(_text(line) for line in lines)
    thinking = "".join(_said(line).get("thinking") or "" for line in lines)
    calls = [call for line in lines for call in _said(line).get("tool_calls") or ()]
    members: Members = {"thinking": thinking} if thinking else {}
    if "message" in joined:
        members |= {"role": "assistant", "content": text}
        joined["message"] = {**members, "tool_calls": calls} if calls else members
    else:
        joined |= {"response": text, **members}
    if probable := [each for line in lines for each in line.get("logprobs") or ()]:
        joined["logprobs"] = probable
    return status(200, joined)


def streamed(lines: Iterable[Members], *, end: bool = True) -> Script:
    """Newline-delimited JSON, one HTTP chunk each; without `end` the connection is cut."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
        for line in lines:
            await exchange.chunk(json.dumps(line).encode() + b"\n")
        if end:
            await exchange.end_stream()
        else:
            exchange.close()

    return script


def _faulty(change: Callable[[list[Members]], list[Members]], *, end: bool = True) -> Script:
    async def script(exchange: Exchange) -> None:
        asked = {**_object(exchange.request.body), "model": MODEL}
        given = change(lines_of(exchange.request.path, asked))
        await streamed(given, end=end)(exchange)

    return script


async def error_in_answer(exchange: Exchange) -> None:
    await status(200, {"error": "the runner fell over"})(exchange)


FAULTS: dict[str, Script] = {
    "busy": status(503, {"error": BUSY}),
    "busy-in-stream": streamed([{"error": BUSY}]),
    "missing": status(404, {"error": "model 'gone' not found"}),
    "server-error": status(500, {"error": "llama runner process has terminated"}),
    "unauthorized": status(401, {"error": "unauthorized", "signin_url": "http://127.0.0.1/in"}),
    "too-long": status(400, {"error": "the request exceeds the available context size"}),
    "error-first": streamed([{"error": "the runner fell over"}]),
    "error-in-answer": error_in_answer,
    "error-in-stream": _faulty(lambda lines: [*lines[:2], {"error": "the runner fell over"}]),
    "error-at-end": _faulty(
        lambda lines: [*lines[:2], {**lines[-1], "done_reason": "error", "error": "it fell over"}]
    ),
    "no-done": _faulty(lambda lines: lines[:-1]),
    "truncated-stream": _faulty(lambda lines: lines[:2], end=False),
    "invalid-json": invalid_json,
    "garbage": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot json\n"),
    "stall": stall,
    "reset": reset,
}


def _object(body: bytes) -> Members:
    try:
        asked: Any = json.loads(body)
    except ValueError:
        raise Bad("invalid character looking for beginning of value") from None
    if not isinstance(asked, dict):
        raise Bad("json: cannot unmarshal value into Go value of type api.ChatRequest")
    return cast(Members, asked)


def _check_options(asked: Members) -> None:
    think = asked.get("think")
    if think is not None and not isinstance(think, bool) and think not in LEVELS:
        raise Bad(f'invalid think value: "{think}"')
    options = asked.get("options") or {}
    if not isinstance(options.get("stop", []), list):
        raise Bad('option "stop" must be of type array')
    for name in ("seed", "num_predict", "top_k", "num_ctx"):
        if not isinstance(options.get(name, 0), int):
            raise Bad(f'option "{name}" must be of type integer')
    for name in ("temperature", "top_p", "min_p"):
        if not isinstance(options.get(name, 0.0), int | float):
            raise Bad(f'option "{name}" must be of type float32')
    for name in ("n", "max_tokens"):
        # The real one ignores them; here they show what an adapter forgot.
        if name in asked:
            raise Bad(f"{name} is not a member of Ollama's requests")


def _chat_said(asked: Members) -> tuple[str, list[Members]]:
    messages = asked["messages"]
    for message in messages:
        _check_message(message)
    last = messages[-1]
    if last["role"] == "tool":
        return f"{last.get('tool_name', 'a tool')} said: {last['content']}", []
    question = next(m for m in reversed(messages) if m["role"] == "user")
    if asked.get("tools") and "weather" in question["content"]:
        arguments = {"city": "Paris", "days": 2}
        names = [tool["function"]["name"] for tool in asked["tools"]]
        return "", [
            {
                "id": f"call_fake{at}",
                "function": {"index": at, "name": name, "arguments": arguments},
            }
            for at, name in enumerate(names)
        ]
    return _formed(asked, question["content"], question.get("images") or []), []


def _prompt_said(asked: Members) -> tuple[str, list[Members]]:
    if not isinstance(asked.get("prompt", ""), str):
        raise Bad("json: cannot unmarshal value into Go struct field GenerateRequest.prompt")
    return _formed(asked, asked.get("prompt") or "", asked.get("images") or []), []


def _formed(asked: Members, question: str, images: list[str]) -> str:
    wanted = asked.get("format")
    if wanted == "json":
        return json.dumps({"echo": question})
    if isinstance(wanted, dict):
        schema = cast(Members, wanted)
        return json.dumps({name: _example(kind) for name, kind in schema["properties"].items()})
    if wanted:
        raise Bad(f'invalid format: "{wanted}"; expected "json" or a valid JSON Schema object')
    seen = f" (images of {', '.join(str(_size(image)) for image in images)} bytes)"
    return f"echo: {question}" + (seen if images else "")


def _check_message(message: Members) -> None:
    if not isinstance(message.get("content", ""), str):
        raise Bad("json: cannot unmarshal array into Go struct field ChatRequest.messages.content")
    for image in message.get("images") or ():
        _size(image)
    for call in message.get("tool_calls") or ():
        if not isinstance(call["function"]["arguments"], dict):
            raise Bad(
                "json: cannot unmarshal string into Go struct field ChatRequest.messages.tool_calls"
            )


def _size(image: str) -> int:
    try:
        return len(base64.b64decode(image, validate=True))
    except (binascii.Error, ValueError):
        raise Bad("illegal base64 data at input byte 4") from None


def _example(kind: Members) -> Any:
    if "enum" in kind:
        return kind["enum"][0]
    return {"string": "text", "integer": 1, "number": 1.5, "boolean": True}.get(kind["type"])


def _piece(asked: Members, chats: bool, piece: Members) -> Members:
    line: Members = {"model": asked["model"], "created_at": CREATED}
    if chats:
        line["message"] = {"role": "assistant", "content": "", **piece}
    else:
        piece = dict(piece)
        line |= {"response": piece.pop("content", ""), **piece}
    line["done"] = False
    if asked.get("logprobs") and _text(line):
        line["logprobs"] = [{"token": _text(line), "logprob": -0.25}]
    return line


def _last(asked: Members, reason: str, *, chats: bool = True) -> Members:
    line = _piece({**asked, "logprobs": False}, chats, {})
    line |= {"done": True, "done_reason": reason}
    if reason != "load":
        line |= {
            "total_duration": 5_043_500_667,
            "load_duration": 25_026_458,
            "prompt_eval_duration": 325_953_000,
            "eval_duration": 4_709_213_000,
        }
    if not chats:
        line["context"] = [1, 2, 3]
    return line


def _prompt_words(asked: Members) -> int:
    texts = [m["content"] for m in asked.get("messages") or ()] or [
        asked.get("system") or "",
        asked.get("prompt") or "",
    ]
    return sum(len(text.split()) for text in texts)


def _said(line: Members) -> Members:
    return line.get("message") or line


def _text(line: Members) -> str:
    return str(_said(line).get("content") or line.get("response") or "")


def _running() -> Members:
    return {
        **LISTED,
        "expires_at": "2026-08-21T18:53:22.706015396Z",
        "size_vram": 3_825_819_519,
        "context_length": 4096,
    }


def _shown() -> Members:
    return {
        "modelfile": f"FROM {MODEL}",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": DETAILS,
        "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
        "capabilities": ["completion", "tools", "vision", "thinking"],
    }
