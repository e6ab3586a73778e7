"""Runs one chat over the providers of its model, each asked once, until one of them answers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec

from aiserver.chat.adapters.adapter import Adapter, Answered, Chat, Outgoing, StreamReader
from aiserver.chat.failures import Failure, broken, unreachable
from aiserver.chat.flavours import left_out
from aiserver.chat.outcomes import Tries, exhausted, resumed
from aiserver.chat.parameters import Adjusted, Parameters
from aiserver.chat.streaming import as_events
from aiserver.chat.upstreams import Upstreams
from aiserver.contract.errors import ApiError, InvalidRequest, UpstreamTimedOut
from aiserver.contract.trace import Trace, Usage
from aiserver.kit.upstream import Timeouts, UpstreamError, UpstreamResponse
from aiserver.providers.endpoints import Endpoint, Endpoints
from aiserver.providers.health import FailureKind
from aiserver.providers.pool import Lease, NobodyLeft, ProviderPool

MAX_ANSWER = 64 * 1024 * 1024
# Output held back until the model speaks; an upstream that sends more is taken at its word.
MAX_HELD = 1024 * 1024
# How often one provider is asked again without what its model turned out not to take.
MOST_CHANGES = 3

T = TypeVar("T")


class Asked(msgspec.Struct, frozen=True):
    """One provider about to be asked."""

    lease: Lease
    endpoint: Endpoint
    adapter: Adapter
    outgoing: Outgoing
    timeouts: Timeouts


class Opened(msgspec.Struct):
    """A stream whose model has begun to speak; `held` has not been given out yet."""

    asked: Asked
    response: UpstreamResponse
    reader: StreamReader
    held: bytes
    tries: Tries


class Relay:
    """`wait` is how many seconds a call may wait for a free slot."""

    def __init__(
        self,
        pool: ProviderPool,
        endpoints: Endpoints,
        upstreams: Upstreams,
        parameters: Parameters,
        *,
        timeouts: Timeouts,
        wait: float,
    ) -> None:
        self._pool = pool
        self._endpoints = endpoints
        self._upstreams = upstreams
        self._parameters = parameters
        self._timeouts = timeouts
        self._wait = wait

    async def complete(self, chat: Chat, trace: Trace, provider: str | None = None) -> Answered:
        """The whole answer. Raises ApiError once nobody is left to ask."""

        async def speak(asked: Asked, tries: Tries) -> Answered:
            answered = await self._whole(asked, chat)
            tries.done(answered.usage)
            asked.lease.succeeded()
            asked.lease.release()
            return answered

        return await self._over_providers(chat, trace, provider, speak)

    async def stream(self, chat: Chat, trace: Trace, provider: str | None = None) -> Opened:
        """A stream at the model's first word. Raises ApiError once nobody is left to ask."""

        async def speak(asked: Asked, tries: Tries) -> Opened:
            return await self._open(asked, chat, tries)

        opened = await self._over_providers(chat, trace, provider, speak)
        opened.tries.begun()
        return opened

    async def _over_providers(
        self,
        chat: Chat,
        trace: Trace,
        provider: str | None,
        speak: Callable[[Asked, Tries], Awaitable[T]],
    ) -> T:
        tries = resumed(trace)
        # One deadline for all of it: a faster path, every wait and every provider.
        left = self._timeouts.total - (time.monotonic() - trace.started)
        ends = asyncio.get_running_loop().time() + left
        while True:
            lease, failure = tries.take_up() or (
                await self._next(chat, provider, tries, ends),
                None,
            )
            try:
                return await self._try(lease, chat, tries, ends, speak, failure)
            except Failure as failure:
                tries.lose(lease.provider.id, failure)
                lease.failed(failure.kind, retry_after=failure.retry_after)
                lease.release()
                if failure.kind is FailureKind.REQUEST:
                    raise failure.error from failure
            except ApiError as unfit:
                # It cannot carry the request, or is not set up; another one of the model may do.
                invalid = isinstance(unfit, InvalidRequest)
                kind = FailureKind.REQUEST if invalid else FailureKind.UNREACHABLE
                tries.lose(lease.provider.id, Failure(kind, unfit))
                lease.release()
            except BaseException:
                tries.abandon()
                lease.release()
                raise

    async def _next(self, chat: Chat, provider: str | None, tries: Tries, ends: float) -> Lease:
        left = ends - asyncio.get_running_loop().time()
        if left <= 0:
            raise exhausted(tries, chat.model) if tries.failures else UpstreamTimedOut()
        try:
            return await self._pool.acquire(
                chat.model, provider=provider, tried=tries.tried, wait=min(self._wait, left)
            )
        except NobodyLeft as error:
            raise exhausted(tries, chat.model, error) from error

    async def _try(
        self,
        lease: Lease,
        chat: Chat,
        tries: Tries,
        ends: float,
        speak: Callable[[Asked, Tries], Awaitable[T]],
        failure: Failure | None,
    ) -> T:
        """Asks one provider; again without a parameter that its model turns out not to take.

        `failure` is what came of asking it already.
        """
        fitting = self._fitting(lease, chat)
        for _ in range(MOST_CHANGES):
            if failure is None:
                try:
                    return await self._ask(lease, chat, fitting, tries, ends, speak)
                except Failure as met:
                    failure = met
            added = chat.stream and not chat.wants_usage and fitting.asks_usage
            change = self._parameters.unwanted(failure, fitting.members, usage_added=added)
            if change is None:
                raise failure
            tries.lose(None, failure)
            self._parameters.learn(lease.provider.id, lease.api_model, change)
            fitting, failure = self._fitting(lease, chat), None
        return await self._ask(lease, chat, fitting, tries, ends, speak)

    def _fitting(self, lease: Lease, chat: Chat) -> Adjusted:
        provider = lease.provider
        return self._parameters.adjusted(
            chat.members,
            provider_id=provider.id,
            ai_type_id=provider.ai_type_id,
            model=lease.api_model,
        )

    async def _ask(
        self,
        lease: Lease,
        chat: Chat,
        fitting: Adjusted,
        tries: Tries,
        ends: float,
        speak: Callable[[Asked, Tries], Awaitable[T]],
    ) -> T:
        name = lease.provider.name
        flavoured = left_out(fitting.members, lease.provider.ai_type_id)
        tries.begin(lease, (*fitting.dropped, *flavoured))
        endpoint = await self._endpoint(lease, ends)
        if not fitting.asks_usage:
            endpoint = _without_usage(endpoint)
        if chat.only not in (None, endpoint.type.dialect):
            raise InvalidRequest(
                f"Provider {name} does not speak {chat.only}, which alone can carry this request."
            )
        adapter = self._upstreams.adapter(endpoint)
        fitted = msgspec.structs.replace(chat, members=fitting.members)
        outgoing = adapter.request(fitted, endpoint, model=lease.api_model, provider=name)
        left = max(0.001, ends - asyncio.get_running_loop().time())
        timeouts = msgspec.structs.replace(self._timeouts, total=left)
        return await speak(Asked(lease, endpoint, adapter, outgoing, timeouts), tries)

    async def _endpoint(self, lease: Lease, ends: float) -> Endpoint:
        try:
            # The embedded engine may still be loading its model.
            async with asyncio.timeout_at(ends):
                return await self._endpoints.of(lease.provider)
        except TimeoutError:
            raise UpstreamTimedOut(
                f"Provider {lease.provider.name} was not ready in time."
            ) from None

    async def _whole(self, asked: Asked, chat: Chat) -> Answered:
        name = asked.lease.provider.name
        response = await self._send(asked, chat)
        try:
            body = await self._upstreams.read(response, MAX_ANSWER, name)
        except BaseException:
            response.close()
            raise
        return asked.adapter.answer(body, chat, provider=name)

    async def _open(self, asked: Asked, chat: Chat, tries: Tries) -> Opened:
        name = asked.lease.provider.name
        response = await self._send(asked, chat)
        try:
            reader = asked.adapter.reader(chat, asked.endpoint, provider=name)
            whole = response.headers.get(b"content-type", b"").startswith(b"application/json")
            if whole and not reader.native:
                body = await self._upstreams.read(response, MAX_ANSWER, name)
                answered = asked.adapter.answer(body, chat, provider=name)
                held, reader = replayed(answered, chat, name), _Replay(answered.usage)
            else:
                held = await _until_begun(response, reader, name)
        except BaseException:
            response.close()
            raise
        return Opened(asked, response, reader, held, tries)

    async def _send(self, asked: Asked, chat: Chat) -> UpstreamResponse:
        return await self._upstreams.send(
            asked.endpoint,
            asked.outgoing,
            provider=asked.lease.provider.name,
            request_id=chat.request_id,
            timeouts=asked.timeouts,
        )


async def rest(opened: Opened) -> AsyncGenerator[bytes]:
    """Everything of a stream from its first word on. Raises ApiError where it broke off."""
    name = opened.asked.lease.provider.name
    reader, response = opened.reader, opened.response
    yield opened.held
    try:
        while reader.failure is None and not reader.finished:
            data = await anext(response, None)
            given = reader.end() if data is None else reader.feed(data)
            if given:
                yield given
    except UpstreamError as error:
        reader.failure = unreachable(error, name)
        reader.failure.lost = True
    if reader.failure is not None:
        raise reader.failure.error


def closed(opened: Opened) -> None:
    """Frees what a stream holds, and says how it ended."""
    reader, lease = opened.reader, opened.asked.lease
    if reader.finished:
        # The slot stays taken until the upstream has let go of the call too.
        opened.response.let_go(lease.release)
    else:
        opened.response.close()
        lease.release()
    if reader.failure is not None:
        lease.failed(reader.failure.kind, retry_after=reader.failure.retry_after)
        opened.tries.broke(reader.failure, reader.usage)
    elif reader.finished:
        lease.succeeded()
        opened.tries.done(reader.usage)
    else:
        opened.tries.abandon(reader.usage)


async def _until_begun(response: UpstreamResponse, reader: StreamReader, name: str) -> bytes:
    held: list[bytes] = []
    size = 0
    try:
        while not (reader.begun or reader.finished) and size < MAX_HELD:
            data = await anext(response, None)
            held.append(reader.end() if data is None else reader.feed(data))
            size += len(held[-1])
            if reader.failure is not None and not reader.begun:
                raise reader.failure
            if data is None:
                break
    except UpstreamError as error:
        raise unreachable(error, name) from error
    return b"".join(held)


def _without_usage(endpoint: Endpoint) -> Endpoint:
    """The same for a model whose streams may not be asked for their usage."""
    kind = msgspec.structs.replace(endpoint.type, asks_usage=False)
    return msgspec.structs.replace(endpoint, type=kind)


class _Replay:
    """The reader of a stream that is known already."""

    native = False

    def __init__(self, usage: Usage | None) -> None:
        self.begun = self.finished = True
        self.usage = usage
        self.failure: Failure | None = None

    def feed(self, data: bytes) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


def replayed(answered: Answered, chat: Chat, provider: str) -> bytes:
    """A whole answer as the events of the stream that was asked for. Raises Failure."""
    try:
        return b"".join(as_events(answered.body, with_usage=chat.wants_usage))
    except (msgspec.MsgspecError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise broken(provider, "sent choices of no known form.", detail=str(error)) from error
