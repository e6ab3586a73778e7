"""Answers Ollama's generate by any provider: Ollama's own words, or another's translated."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from aiserver.chat.adapters.ollama import NativeAnswer, NativeChat, native_images
from aiserver.chat.adapters.ollama_stream import UNREADABLE, NativeReader
from aiserver.chat.handlers import kept, permitted
from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.relay import Relay, closed, rest
from aiserver.chat.streaming import EventSplitter, data_of
from aiserver.contract.errors import UpstreamFailed
from aiserver.contract.operation import (
    Answer,
    Call,
    EventStream,
    Handler,
    JsonBytes,
    StreamForm,
)
from aiserver.contract.scalars import read_datetime
from aiserver.contract.trace import Usage
from aiserver.history.store import MOST_KEPT
from aiserver.kit.clock import Clock
from aiserver.kit.times import iso

# The path of Ollama's own clients, which typed ones of some languages call too.
SHARED_PATH = "/api/generate"

_OURS = ("refId", "provider", "tag", "replyTo")
_ONLY_OLLAMA = ("suffix", "template", "raw", "context", "logprobs")
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "seed", "stop")
_PENALTIES = ("presence_penalty", "frequency_penalty")
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_OWN = "ollama"
_MOST_INT32 = 2**31 - 1
# What base64 of each kind of image begins with.
_IMAGES = {"iVBORw0KGgo": "png", "R0lGOD": "gif", "UklGR": "webp"}
Members = dict[str, Any]


class GenerationHandlers:
    """`keep_prompts`: what is said goes into the history too."""

    def __init__(self, relay: Relay, clock: Clock, *, keep_prompts: bool = False) -> None:
        self._relay = relay
        self._clock = clock
        self._keep_prompts = keep_prompts

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {OllamaGeneration: self.generate}

    async def generate(self, request: OllamaGeneration, call: Call) -> Answer:
        permitted(request.model, call)
        trace = call.trace
        trace.tag, trace.ref_id = request.tag, request.ref_id
        trace.model, trace.streamed = request.model, bool(request.stream)
        form = GenerationForm(self._clock, began=self._clock.monotonic())
        chat = self._chat(request, call)
        if self._keep_prompts:
            trace.prompt = msgspec.json.encode(chat.native)[:MOST_KEPT]
        if chat.stream:
            return await self._stream(chat, call, request.provider, form)
        answered = await self._relay.complete(chat, trace, request.provider)
        if isinstance(answered, NativeAnswer):
            members: Members = msgspec.json.decode(answered.body)
        else:
            members = form.generated(answered.body, answered.usage)
        if call.job is not None:
            members = form.kept(members)
        elif not speaks_as_ollama(trace.path, call.members):
            members = form.in_contract(members)
        body = msgspec.json.encode(members)
        if self._keep_prompts:
            trace.answer = body[:MOST_KEPT]
        return JsonBytes(body)

    async def _stream(
        self, chat: NativeChat, call: Call, provider: str | None, form: "GenerationForm"
    ) -> EventStream:
        opened = await self._relay.stream(chat, call.trace, provider)
        lines = rest(opened)
        if not isinstance(opened.reader, NativeReader):
            lines = form.lines(lines, lambda: opened.reader.usage)
        if self._keep_prompts:
            lines = kept(lines, call)
        return EventStream(lines, lambda: closed(opened), StreamForm.NDJSON)

    def _chat(self, request: OllamaGeneration, call: Call) -> NativeChat:
        native = native_members(call.members)
        stream = bool(request.stream)
        return NativeChat(
            members=normal_members(native, stream=stream),
            native=native,
            only="ollama" if any(native.get(name) for name in _ONLY_OLLAMA) else None,
            model=request.model,
            stream=stream,
            # The last line is written from what the reader counts.
            wants_usage=False,
            request_id=call.request_id,
            created=int(self._clock.now().timestamp()),
        )


def speaks_as_ollama(path: str, members: Members) -> bool:
    """Whether the caller reads Ollama's own form, where `created_at` is text.

    The wire contract has numbers there. On the path that both use, Ollama's clients always say
    `stream`, and typed clients leave out what was not set.
    """
    return path == SHARED_PATH and members.get("stream") is not None


def told(kept: bytes, *, as_ollama: bool) -> bytes:
    """What a job kept, as a direct call is answered: to Ollama's clients or as the contract has it.

    One that was kept without Ollama's own members has their times in seconds.
    """
    members: Members = msgspec.json.decode(kept)
    own = members.pop(_OWN, {})
    if as_ollama:
        members.pop("prompt_tokens", None)
        if isinstance(created := members.get("created_at"), int):
            members["created_at"] = iso(datetime.fromtimestamp(created, UTC))
        members |= own
    return msgspec.json.encode(members)


def native_members(members: Members) -> Members:
    """What goes to Ollama itself, less the gateway's own members. Raises InvalidRequest."""
    native = {n: v for n, v in members.items() if n not in _OURS and v not in (None, "", [])}
    if "images" in native:
        native["images"] = native_images(native["images"])
    options = native.get("options")
    if isinstance(options, dict):
        given = {n: v for n, v in cast("Members", options).items() if v is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        native["options"] = given
    return native


def normal_members(native: Members, *, stream: bool) -> Members:
    """The same as a chat in the normal form; what only runs Ollama's own engine is left out."""
    content: Any = native["prompt"]
    if images := native.get("images"):
        content = [{"type": "text", "text": content}, *(_image(image) for image in images)]
    messages: list[Members] = [{"role": "user", "content": content}]
    if native.get("system"):
        messages.insert(0, {"role": "system", "content": native["system"]})
    members: Members = {"messages": messages}
    if stream:
        members["stream"] = True
    options = cast("Members", native.get("options") or {})
    members |= {name: options[name] for name in (*_OPTIONS, *_PENALTIES) if name in options}
    most = options.get("num_predict")
    # Below zero is how Ollama is told to go on as long as it can.
    if isinstance(most, int) and most > 0:
        members["max_tokens"] = most
    if wanted := native.get("format"):
        members["response_format"] = _response_format(wanted)
    think = native.get("think")
    if isinstance(think, str):
        members["reasoning_effort"] = think
    elif think is False:
        members["reasoning_effort"] = "none"
    return members


def _response_format(wanted: Any) -> Members:
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    return {"type": "json_object"}


def _image(image: str) -> Members:
    kind = next((kind for start, kind in _IMAGES.items() if image.startswith(start)), "jpeg")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}


class _Said(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None

    @property
    def members(self) -> Members:
        """As Ollama names them; {} where nothing is said."""
        thinking = self.reasoning_content or self.reasoning
        said: Members = {}
        if isinstance(thinking, str) and thinking:
            said["thinking"] = thinking
        if isinstance(self.content, str) and self.content:
            said["response"] = self.content
        return said


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    """A whole answer or a chunk of one, as much of it as Ollama has a place for."""

    model: str = ""
    choices: list[_Choice] | None = None


_completions = msgspec.json.Decoder(_Completion)


class GenerationForm:
    """Prints answers of the normal form as Ollama does; `began` is the clock's at the call."""

    def __init__(self, clock: Clock, *, began: float) -> None:
        self._clock = clock
        self._began = began

    def generated(self, completion: bytes, usage: Usage | None) -> Members:
        """Raises UpstreamFailed for an answer without a choice."""
        read = _read(completion)
        if not read.choices:
            raise UpstreamFailed("The provider sent an answer without choices.")
        [choice, *_] = read.choices
        said = (choice.message or _Said()).members
        return {**self._line(read.model, said), **self._ended(choice.finish_reason, usage)}

    async def lines(
        self, events: AsyncGenerator[bytes], usage: Callable[[], Usage | None]
    ) -> AsyncGenerator[bytes]:
        """A line of JSON for each event that says something, and a last one that is done."""
        splitter = EventSplitter()
        model, reason = "", None
        async with aclosing(events):
            async for data in events:
                given: list[Members] = []
                for event in splitter.feed(data):
                    payload = data_of(event)
                    if payload == b"[DONE]":
                        given.append({**self._line(model, {}), **self._ended(reason, usage())})
                    elif payload is not None:
                        read = _read(payload)
                        model = read.model or model
                        for choice in (read.choices or [])[:1]:
                            reason = choice.finish_reason or reason
                            if said := (choice.delta or _Said()).members:
                                given.append(self._line(model, said))
                if given:
                    yield b"".join(msgspec.json.encode(line) + b"\n" for line in given)

    def in_contract(self, members: Members) -> Members:
        """As the wire contract declares it: seconds, and nanoseconds only where 32 bits hold."""
        given = {
            name: value
            for name, value in members.items()
            if name not in _DURATIONS or (type(value) is int and value <= _MOST_INT32)
        }
        given["created_at"] = int(self._moment(members.get("created_at")).timestamp())
        if "prompt_eval_count" in given:
            given["prompt_tokens"] = given["prompt_eval_count"]
        return given

    def kept(self, members: Members) -> Members:
        """For a job, whose readers are of both kinds: beside the contract's members those of
        Ollama that it has no room for.
        """
        given = self.in_contract(members)
        own = {name: value for name, value in members.items() if given.get(name) != value}
        return {**given, _OWN: own}

    def _line(self, model: str, said: Members) -> Members:
        moment = self._clock.now().isoformat().replace("+00:00", "Z")
        return {"model": model, "created_at": moment, "response": "", **said, "done": False}

    def _ended(self, reason: str | None, usage: Usage | None) -> Members:
        ended: Members = {
            "done": True,
            "done_reason": "stop" if reason in (None, "tool_calls") else reason,
            "total_duration": round((self._clock.monotonic() - self._began) * 1e9),
        }
        counted = usage or Usage()
        counts = {"prompt_eval_count": counted.prompt, "eval_count": counted.completion}
        return ended | {name: count for name, count in counts.items() if count is not None}

    def _moment(self, written: Any) -> datetime:
        try:
            return read_datetime(written)
        except (TypeError, ValueError):
            return self._clock.now()


def _read(payload: bytes) -> _Completion:
    try:
        return _completions.decode(payload)
    except UNREADABLE as error:
        raise UpstreamFailed("The provider sent an answer that cannot be read.") from error
