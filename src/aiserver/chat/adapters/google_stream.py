"""Reads Gemini's streams: every event is a whole answer, and the last one has no mark."""

from typing import Any

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.google_answers import (
    FAILURES,
    Candidate,
    Counts,
    Part,
    Response,
    call_id,
    call_of,
    end_of,
    logprobs_of,
    read_response,
    signed,
    usage_of,
    wire_usage,
)
from aiserver.chat.adapters.google_errors import UNREADABLE
from aiserver.chat.failures import Failure, broken
from aiserver.chat.streaming import DONE, EventSplitter, data_of
from aiserver.contract.errors import UpstreamFailed
from aiserver.contract.trace import Usage

# As many as Gemini gives; a stream that names more choices is not one.
_MOST_CHOICES = 128


class _Choice:
    """What is known of one choice; its end is given out last, for some models repeat it."""

    def __init__(self) -> None:
        self.spoken = False
        self.calls = 0
        self.last: Candidate | None = None


class GoogleReader:
    """Gives out the chunks of one streamed answer."""

    def __init__(self, chat: Chat, provider: str) -> None:
        self.native = False
        self.begun = False
        self.finished = False
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self._chat = chat
        self._provider = provider
        self._splitter = EventSplitter()
        self._choices: dict[int, _Choice] = {}
        self._counts: Counts | None = None
        self._id = chat.request_id
        self._model = chat.model

    def feed(self, data: bytes) -> bytes:
        if self.failure is not None:
            return b""
        try:
            events = self._splitter.feed(data)
        except UpstreamFailed as error:
            self.failure = broken(
                self._provider, "sent an event without an end.", detail=str(error)
            )
            return b""
        return b"".join(self._read(event) for event in events)

    def end(self) -> bytes:
        given = b"" if self.failure else self._read(self._splitter.rest())
        if self.failure is not None:
            return given
        if not self._choices or any(choice.last is None for choice in self._choices.values()):
            self.failure = broken(self._provider, "broke off its stream before the end.")
            return given
        try:
            ends = [self._end(index, choice) for index, choice in self._choices.items()]
        except Failure as failure:
            self.failure = failure
            return given
        self.begun = self.finished = True
        if self._chat.wants_usage and self._counts is not None:
            ends.append(self._chunk([], usage=wire_usage(self._counts)))
        return b"".join((given, *ends, DONE))

    def _read(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None or self.failure is not None:
            return b""
        chunks: list[bytes] = []
        try:
            response = read_response(data, self._provider, lost=self.begun)
            self._note(response)
            for position, candidate in enumerate(response.candidates or ()):
                self._say(candidate, position, chunks)
        except Failure as failure:
            self.failure = failure
        except UNREADABLE as error:
            detail = str(error)
            self.failure = broken(
                self._provider, "sent an event that cannot be read.", detail=detail
            )
        return b"".join(chunks)

    def _note(self, response: Response) -> None:
        self._id = response.response_id or self._id
        self._model = response.model_version or self._model
        if response.usage_metadata is not None:
            # Counts grow from event to event, and the last one may leave out what stays.
            new = msgspec.structs.asdict(response.usage_metadata)
            known = {name: count for name, count in new.items() if count is not None}
            self._counts = msgspec.structs.replace(self._counts or Counts(), **known)
            self.usage = usage_of(self._counts)

    def _say(self, candidate: Candidate, position: int, chunks: list[bytes]) -> None:
        index = position if candidate.index is None else candidate.index
        if not 0 <= index < _MOST_CHOICES:
            raise broken(self._provider, f"sent a choice of number {index}.")
        choice = self._choices.setdefault(index, _Choice())
        logprobs = logprobs_of(candidate.logprobs_result)
        for part in candidate.parts:
            delta = self._delta(part, index, choice)
            if delta:
                chunks.append(self._choice(index, choice, delta, logprobs=logprobs))
                logprobs = None
        if candidate.finish_reason:
            choice.last = candidate
            if candidate.finish_reason in FAILURES:
                end_of(candidate, self._provider, said=choice.spoken, called=choice.calls > 0)

    def _delta(self, part: Part, index: int, choice: _Choice) -> dict[str, Any]:
        if part.function_call is not None:
            call = call_of(part.function_call, part, id=call_id(self._id, index, choice.calls))
            choice.calls += 1
            return {"tool_calls": [{"index": choice.calls - 1, **call}]}
        if part.text and part.thought:
            return {"reasoning_content": part.text, **signed(part.thought_signature)}
        if part.text:
            return {"content": part.text, **signed(part.thought_signature)}
        # A signature may come behind the text that it signs.
        return signed(part.thought_signature) if choice.spoken else {}

    def _choice(
        self,
        index: int,
        choice: _Choice,
        delta: dict[str, Any],
        *,
        end: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        if not choice.spoken:
            delta = {"role": "assistant", **delta}
            choice.spoken = self.begun = True
        said: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": end}
        if logprobs is not None:
            said["logprobs"] = logprobs
        return self._chunk([said])

    def _end(self, index: int, choice: _Choice) -> bytes:
        last = choice.last or Candidate()
        end = end_of(last, self._provider, said=choice.spoken, called=choice.calls > 0)
        return self._choice(index, choice, {}, end=end)

    def _chunk(
        self, choices: list[dict[str, Any]], *, usage: dict[str, Any] | None = None
    ) -> bytes:
        members: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._chat.created,
            "model": self._model,
            "choices": choices,
        }
        if usage is not None:
            members["usage"] = usage
        return b"data: " + msgspec.json.encode(members) + b"\n\n"
