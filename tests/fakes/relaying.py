"""A relay whose upstreams say what a test tells them to, without a socket in between."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiserver.chat.adapters.adapter import Adapter, Chat, Outgoing
from aiserver.chat.adapters.openai import OpenAiAdapter
from aiserver.chat.error_answers import error_answer
from aiserver.chat.failures import Failure, refused
from aiserver.chat.parameters import Parameters
from aiserver.chat.relay import Relay
from aiserver.contract.trace import Trace
from aiserver.kit.upstream import Timeouts, UpstreamError, UpstreamReset, UpstreamResponse
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.endpoints import Endpoint
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider
from fakes.upstream import DONE, sse

JSON, EVENTS = b"application/json", b"text/event-stream"
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
WHOLE = json.dumps({"id": "1", "choices": [_CHOICE], "usage": USAGE}).encode()
FIRST = sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
WORD = sse({"choices": [{"index": 0, "delta": {"content": "hi"}}]})
LAST = sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
STREAM = (FIRST, WORD, LAST, sse({"choices": [], "usage": USAGE}), DONE)

Say = Callable[["Line"], Awaitable[UpstreamResponse]]


class Line:
    """One request that went upstream; `open` until its answer was read or given up."""

    def __init__(self, provider: str, body: bytes, timeouts: Timeouts) -> None:
        self.provider = provider
        self.body: Any = json.loads(body)
        self.timeouts = timeouts
        self.open = False
        self.response = UpstreamResponse(self)

    def resume(self) -> None: ...

    def expect_end(self, seconds: float) -> bool:
        self.fail(UpstreamReset())
        return True

    def fail(self, error: UpstreamError) -> None:
        self.open = False
        self.response.end(error)

    def answer(
        self, kind: bytes, *pieces: bytes, error: UpstreamError | None = None, ends: bool = True
    ) -> UpstreamResponse:
        """Status 200, then a piece with each turn of the loop, then the end, `error` or silence."""
        self.open, self._ends = True, ends
        self.response.start(200, {b"content-type": kind})
        self._say(list(pieces), error)
        return self.response

    def _say(self, pieces: list[bytes], error: UpstreamError | None) -> None:
        if not self.open:
            return
        if pieces:
            self.response.feed(pieces[0])
            asyncio.get_running_loop().call_soon(self._say, pieces[1:], error)
        elif self._ends:
            self.open = False
            self.response.end(error)


async def well(line: Line) -> UpstreamResponse:
    if line.body.get("stream"):
        return line.answer(EVENTS, *STREAM)
    return line.answer(JSON, WHOLE)


def answers(
    kind: bytes, *pieces: bytes, error: UpstreamError | None = None, ends: bool = True
) -> Say:
    async def say(line: Line) -> UpstreamResponse:
        return line.answer(kind, *pieces, error=error, ends=ends)

    return say


def raises(error: Exception) -> Say:
    async def say(line: Line) -> UpstreamResponse:
        raise error

    return say


def refusing(number: int, message: str = "no", **more: Any) -> Failure:
    """What an upstream of OpenAI's dialect says with an error status."""
    answer = error_answer(json.dumps({"error": {"message": message, **more}}).encode(), {})
    return refused("acme", number, answer)


async def never(line: Line) -> UpstreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


class ScriptedUpstreams:
    """Stands in for both the upstreams and their endpoints; `say` decides call by call."""

    def __init__(self, say: Say = well) -> None:
        self.say = say
        self.lines: list[Line] = []
        self.trouble: dict[str, Exception] = {}

    async def of(self, provider: Provider) -> Endpoint:
        await asyncio.sleep(0)
        if provider.name in self.trouble:
            raise self.trouble[provider.name]
        return Endpoint("http://127.0.0.1:9/v1", (), BY_ID[provider.ai_type_id])

    def adapter(self, endpoint: Endpoint) -> Adapter:
        return OpenAiAdapter()

    async def send(
        self,
        endpoint: Endpoint,
        outgoing: Outgoing,
        *,
        provider: str,
        request_id: str,
        timeouts: Timeouts,
    ) -> UpstreamResponse:
        line = Line(provider, outgoing.body, timeouts)
        self.lines.append(line)
        return await self.say(line)

    async def read(self, response: UpstreamResponse, limit: int, provider: str) -> bytes:
        return await response.read(limit)


def relay_over(
    pool: ProviderPool, upstreams: ScriptedUpstreams, *, total: float = 60.0, wait: float = 30.0
) -> Relay:
    fake: Any = upstreams
    timeouts = Timeouts(connect=1, first_byte=30, gap=30, total=total)
    return Relay(pool, fake, fake, Parameters(), timeouts=timeouts, wait=wait)


def chat(**more: Any) -> Chat:
    given: dict[str, Any] = {
        "members": {"messages": [{"role": "user", "content": "x"}], **more.pop("members", {})},
        "model": "a",
        "stream": False,
        "wants_usage": False,
        "request_id": "r",
        "created": 1,
    }
    asked = Chat(**(given | more))
    if asked.stream:
        asked.members["stream"] = True
    return asked


def trace(**more: Any) -> Trace:
    given: dict[str, Any] = {"operation": "OpenAiChatCompletion", "request_id": "r", "key_id": 1}
    return Trace(id=1, at=0.0, started=time.monotonic(), **(given | more))
