"""Reads what Ollama answers, whole or by lines; prints it in the normal form or as it came."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.error_answers import error_answer
from aiserver.chat.failures import ErrorAnswer, Failure, broken, in_stream
from aiserver.chat.streaming import DONE
from aiserver.chat.usage import MOST_TOKENS
from aiserver.contract.trace import Usage
from aiserver.kit.ids import random_hex

# A tool call's arguments come in one line; more than this is not an answer's line.
MAX_LINE = 16 * 1024 * 1024
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_TOO_LONG = re.compile(r"context (length|size|window)|exceeds? the available context", re.I)
_MEANINGS: tuple[tuple[re.Pattern[str], int, str | None], ...] = (
    (re.compile(r"server busy|maximum pending requests", re.I), 503, None),
    (re.compile(r"not found", re.I), 404, "model_not_found"),
    (_TOO_LONG, 400, "context_length_exceeded"),
)


class Function(msgspec.Struct):
    name: str = ""
    arguments: Any = None


class ToolCall(msgspec.Struct):
    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None


class Line(msgspec.Struct):
    """One line of a stream, or a whole answer, of /chat (`message`) or /generate (`response`)."""

    model: str | None = None
    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[Any] | None = None
    image: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None

    @property
    def speaks(self) -> bool:
        """Whether it holds anything of the model's."""
        said = self.message
        if said is not None and (said.content or said.thinking or said.tool_calls):
            return True
        return bool(self.response or self.thinking or self.tool_calls or self.image)

    @property
    def usage(self) -> Usage | None:
        """Ollama leaves a count out where its cache answered; that is not zero."""
        prompt, completion = _count(self.prompt_eval_count), _count(self.eval_count)
        if prompt is None and completion is None:
            return None
        return Usage(prompt=prompt, completion=completion)


lines = msgspec.json.Decoder(Line)


class LineSplitter:
    """Collects bytes until a line's end, LF or CRLF; lines come without it, empty ones not."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._waiting = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Raises ValueError for a line without an end."""
        first, end, rest = data.partition(b"\n")
        self._parts.append(first)
        self._waiting += len(first)
        if self._waiting > MAX_LINE:
            raise ValueError("a line has no end")
        if not end:
            return []
        complete, self._parts, self._waiting = b"".join(self._parts), [], 0
        *others, last = rest.split(b"\n")
        self._parts, self._waiting = [last], len(last)
        return [line.strip() for line in (complete, *others) if line.strip()]

    def rest(self) -> bytes:
        """What came after the last line's end."""
        return b"".join(self._parts).strip()


class OllamaReader(ABC):
    """Reads a streamed answer line by line; a subclass says how a line is printed."""

    native = False

    def __init__(self, provider: str) -> None:
        self.begun = False
        self.finished = False
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self._provider = provider
        self._splitter = LineSplitter()

    @abstractmethod
    def printed(self, line: Line, raw: bytes) -> bytes:
        """What the caller reads for a line."""

    def feed(self, data: bytes) -> bytes:
        try:
            return b"".join(self._take(line) for line in self._splitter.feed(data))
        except ValueError as error:
            self._unreadable(error)
            return b""

    def end(self) -> bytes:
        rest = b"" if self.failure is not None else self._splitter.rest()
        given = self._take(rest) if rest else b""
        if not self.finished and self.failure is None:
            self.failure = broken(self._provider, "broke off its stream before the end.")
        return given

    def _take(self, raw: bytes) -> bytes:
        if self.finished or self.failure is not None:
            return b""
        try:
            line = lines.decode(raw)
            if line.error is not None:
                self.failure = in_stream(self._provider, error_in(raw), lost=self.begun)
                return b""
            self.usage = line.usage or self.usage
            given = self.printed(line, raw)
        except UNREADABLE as error:
            self._unreadable(error)
            return b""
        self.begun = self.begun or line.speaks or line.done
        self.finished = line.done
        return given

    def _unreadable(self, error: Exception) -> None:
        problem = "sent a stream that cannot be read."
        self.failure = broken(self._provider, problem, detail=str(error))


class NativeReader(OllamaReader):
    """Passes the lines on as they came, one JSON object each."""

    native = True

    def printed(self, line: Line, raw: bytes) -> bytes:
        return raw + b"\n"


class ChunkReader(OllamaReader):
    """Prints lines as chunks of a chat completion."""

    def __init__(self, provider: str, chat: Chat) -> None:
        super().__init__(provider)
        self._wants_usage = chat.wants_usage
        self._calls = 0
        self._frame: dict[str, Any] = {
            "id": completion_id(),
            "object": "chat.completion.chunk",
            "created": chat.created,
            "model": chat.model,
        }

    def printed(self, line: Line, raw: bytes) -> bytes:
        if line.model and not self.begun:
            self._frame["model"] = line.model
        deltas = self._deltas(line.message or Message()) if line.speaks else []
        if not self.begun and (deltas or line.done):
            deltas = deltas or [{"content": ""}]
            deltas[0] = {"role": "assistant", **deltas[0]}
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
        ]
        if choices and line.logprobs:
            choices[-1]["logprobs"] = log_probabilities(line.logprobs)
        events = [self._event([choice]) for choice in choices]
        if line.done:
            reason = finish_reason(line.done_reason, called=self._calls > 0)
            events.append(self._event([{"index": 0, "delta": {}, "finish_reason": reason}]))
            counted = usage_members(self.usage)
            if self._wants_usage and counted is not None:
                events.append(self._event([], usage=counted))
            events.append(DONE)
        return b"".join(events)

    def _deltas(self, said: Message) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if said.thinking:
            deltas.append({"reasoning_content": said.thinking})
        if said.content:
            deltas.append({"content": said.content})
        if said.tool_calls:
            calls = tool_calls(said.tool_calls)
            numbered = [{"index": self._calls + at, **call} for at, call in enumerate(calls)]
            self._calls += len(calls)
            deltas.append({"tool_calls": numbered})
        return deltas

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return (
            b"data: " + msgspec.json.encode({**self._frame, "choices": choices, **more}) + b"\n\n"
        )


def completion_id() -> str:
    return f"chatcmpl-{random_hex(12)}"


def tool_calls(calls: list[ToolCall]) -> list[dict[str, Any]]:
    """In the normal form: arguments as text, and an id even where the upstream gives none."""
    return [
        {
            "id": call.id or f"call_{random_hex(12)}",
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": _text_of(call.function.arguments),
            },
        }
        for call in calls
    ]


def _text_of(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return msgspec.json.encode({} if arguments is None else arguments).decode()


def finish_reason(done_reason: str | None, *, called: bool) -> str:
    if done_reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def usage_members(usage: Usage | None) -> dict[str, int] | None:
    """As callers read it; None where a count is missing, as they would take it for zero."""
    if usage is None or usage.prompt is None or usage.completion is None:
        return None
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def log_probabilities(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The normal form's members, of which Ollama leaves out those that are empty."""
    return {"content": [{"bytes": None, "top_logprobs": [], **entry} for entry in entries]}


def error_in(payload: bytes) -> ErrorAnswer:
    """An error inside an answer of status 200; its words alone say what it means, if they do."""
    answer = error_in_words(payload, {})
    if answer.status is None:
        found = (status for words, status, _ in _MEANINGS if words.search(answer.message))
        answer.status = next(found, None)
    return answer


def error_in_words(body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
    """An error body; Ollama gives no code, so its words do."""
    answer = error_answer(body, headers)
    if answer.code is None:
        found = (code for words, _, code in _MEANINGS if words.search(answer.message))
        answer.code = next(found, None)
    return answer


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
