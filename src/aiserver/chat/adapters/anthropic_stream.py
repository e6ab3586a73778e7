"""Reads a streamed answer of Anthropic's and tells it in OpenAI's chunks."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.anthropic_wire import (
    UNREADABLE,
    Block,
    Counts,
    Event,
    block_of,
    event_of,
    finish_of,
    in_answer,
    usage_members,
)
from aiserver.chat.failures import Failure, broken, in_stream
from aiserver.chat.streaming import DONE, MAX_EVENT, EventSplitter, data_of
from aiserver.contract.errors import UpstreamFailed
from aiserver.contract.trace import Usage

MAX_OPEN_BLOCKS = 100


class _Open(msgspec.Struct):
    """A block under way. `call`: which tool call it is; `length`: of the thinking that is kept."""

    block: Block
    call: int | None = None
    spoken: bool = False
    thinking: list[str] = []
    length: int = 0


class AnthropicReader:
    """See StreamReader. The role goes out with the first word, so that nothing is begun before."""

    def __init__(self, chat: Chat, provider: str) -> None:
        self.native = False
        self.begun = False
        self.finished = False
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self._chat = chat
        self._provider = provider
        self._splitter = EventSplitter()
        self._counts = Counts()
        self._head = self._head_of(None, None)
        self._open: dict[int, _Open] = {}
        self._calls = 0
        self._thoughts = 0
        self._stop: str | None = None
        self._refusal: str | None = None
        self._handlers: dict[str, Callable[[Event], bytes]] = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": lambda _: self._close(),
            "error": self._error,
        }

    def feed(self, data: bytes) -> bytes:
        given: list[bytes] = []
        if self.finished or self.failure is not None:
            return b""
        try:
            for event in self._splitter.feed(data):
                given.append(self._take(data_of(event)))
                if self.finished or self.failure is not None:
                    break
        except (UpstreamFailed, *UNREADABLE) as error:
            self._break("sent a stream that cannot be read.", str(error))
        return b"".join(given)

    def end(self) -> bytes:
        if self.finished or self.failure is not None:
            return b""
        given = b""
        # The last event may lack its blank line; one that was cut tells nothing.
        with contextlib.suppress(*UNREADABLE):
            given = self._take(data_of(self._splitter.rest()))
        if self.finished or self.failure is not None:
            return given
        if self._stop is None:
            self._break("broke off its stream before the end.")
            return given
        return given + self._close()

    def _take(self, payload: bytes | None) -> bytes:
        event = event_of(payload) if payload and payload != b"[DONE]" else None
        return self._handlers[event.type](event) if event is not None else b""

    def _message_start(self, event: Event) -> bytes:
        if event.message is not None:
            self._head = self._head_of(event.message.id, event.message.model)
            self._count(event.message.usage)
        return b""

    def _block_start(self, event: Event) -> bytes:
        block = block_of(event.content_block)
        if block is None:
            return b""
        if len(self._open) >= MAX_OPEN_BLOCKS:
            self._break(f"sent more than {MAX_OPEN_BLOCKS} blocks at once.")
            return b""
        opened = self._open[event.index] = _Open(block)
        if block.type == "text":
            return self._say({"content": block.text}) if block.text else b""
        if block.type == "thinking":
            return self._think(opened, block.thinking)
        if block.type == "tool_use":
            opened.call = self._calls
            self._calls += 1
            function = {"name": block.name, "arguments": ""}
            return self._call(opened.call, id=block.id, type="function", function=function)
        return b""

    def _block_delta(self, event: Event) -> bytes:
        delta, opened = event.delta, self._open.get(event.index)
        if delta is None:
            return b""
        if delta.text:
            return self._say({"content": delta.text})
        if opened is None:
            return b""
        if delta.signature:
            opened.block.signature = delta.signature
        if delta.thinking:
            return self._think(opened, delta.thinking)
        if delta.partial_json and opened.call is not None:
            opened.spoken = True
            return self._call(opened.call, function={"arguments": delta.partial_json})
        return b""

    def _block_stop(self, event: Event) -> bytes:
        opened = self._open.pop(event.index, None)
        return self._stopped(opened) if opened is not None else b""

    def _stopped(self, opened: _Open) -> bytes:
        if opened.call is not None and not opened.spoken:
            return self._call(opened.call, function={"arguments": opened.block.arguments})
        opened.block.thinking = "".join(opened.thinking)
        replayable = opened.block.replayable()
        if replayable is None:
            return b""
        # OpenAI's clients join lists across chunks by an index.
        index, self._thoughts = self._thoughts, self._thoughts + 1
        return self._say({"thinking_blocks": [{"index": index, **replayable}]})

    def _message_delta(self, event: Event) -> bytes:
        self._count(event.usage)
        if event.delta is not None:
            self._stop = event.delta.stop_reason or self._stop
            if event.delta.stop_details is not None:
                self._refusal = event.delta.stop_details.explanation
        return b""

    def _error(self, event: Event) -> bytes:
        self.failure = in_stream(self._provider, in_answer(event.error), lost=self.begun)
        return b""

    def _close(self) -> bytes:
        given = [self._stopped(opened) for opened in self._open.values()]
        self._open.clear()
        if self._refusal:
            given.append(self._say({"refusal": self._refusal}))
        if not self.begun:
            given.append(self._say({"content": ""}))
        given.append(self._chunk({}, finish_of(self._stop, calls=self._calls > 0)))
        usage = usage_members(self.usage)
        if self._chat.wants_usage and usage is not None:
            given.append(self._head + b'[],"usage":' + msgspec.json.encode(usage) + b"}\n\n")
        self.finished = True
        return b"".join([*given, DONE])

    def _count(self, counts: Counts | None) -> None:
        if counts is not None:
            self._counts.update(counts)
            self.usage = self._counts.usage()

    def _think(self, opened: _Open, text: str | None) -> bytes:
        if not text:
            return b""
        opened.thinking.append(text)
        opened.length += len(text)
        if opened.length > MAX_EVENT:
            self._break("sent a thought without an end.")
            return b""
        return self._say({"reasoning_content": text})

    def _call(self, index: int, **members: Any) -> bytes:
        return self._say({"tool_calls": [{"index": index, **members}]})

    def _say(self, delta: dict[str, Any]) -> bytes:
        opening = b""
        if not self.begun:
            self.begun = True
            content = "" if "content" in delta else None
            opening = self._chunk({"role": "assistant", "content": content})
        return opening + self._chunk(delta)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self._head + msgspec.json.encode([choice]) + b"}\n\n"

    def _head_of(self, id: str | None, model: str | None) -> bytes:
        """A chunk up to its choices."""
        members = {
            "id": id or f"chatcmpl-{self._chat.request_id}",
            "object": "chat.completion.chunk",
            "created": self._chat.created,
            "model": model or self._chat.model,
        }
        return b"data: " + msgspec.json.encode(members)[:-1] + b',"choices":'

    def _break(self, problem: str, detail: str = "") -> None:
        self.failure = broken(self._provider, problem, detail=detail)
