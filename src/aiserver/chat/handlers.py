"""Answers the operations about chat."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from aiserver.chat.adapters.openai import OpenAiAdapter, body_for, events
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.contract.errors import FieldError, Forbidden, InvalidRequest
from aiserver.contract.operation import Answer, Call, EventStream, Handler, JsonBytes
from aiserver.providers.endpoints import Endpoint, Endpoints
from aiserver.providers.pool import Lease, ProviderPool


class ChatHandlers:
    """`wait` is how many seconds a call may wait for a free slot."""

    def __init__(
        self, pool: ProviderPool, endpoints: Endpoints, adapter: OpenAiAdapter, *, wait: float
    ) -> None:
        self._pool = pool
        self._endpoints = endpoints
        self._adapter = adapter
        self._wait = wait

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {OpenAiChatCompletion: self.complete}

    async def complete(self, request: OpenAiChatCompletion, call: Call) -> Answer:
        _check(request, call)
        provider = request.provider if isinstance(request.provider, str) else None
        lease = await self._pool.acquire(request.model, provider=provider, wait=self._wait)
        try:
            endpoint = await self._endpoints.of(lease.provider)
            if request.stream:
                return await self._stream(request, call, lease, endpoint)
            body = body_for(call.members, model=lease.api_model, ask_usage=False)
            name = lease.provider.name
            answer = await self._adapter.complete(endpoint, name, body, call.request_id)
        except BaseException:
            lease.release()
            raise
        lease.release()
        return JsonBytes(answer)

    async def _stream(
        self, request: OpenAiChatCompletion, call: Call, lease: Lease, endpoint: Endpoint
    ) -> EventStream:
        asked = bool((request.stream_options or {}).get("include_usage"))
        body = body_for(
            call.members, model=lease.api_model, ask_usage=endpoint.type.asks_usage and not asked
        )
        name = lease.provider.name
        response = await self._adapter.stream(endpoint, name, body, call.request_id)

        def close() -> None:
            response.close()
            lease.release()

        stripped = endpoint.type.asks_usage and not asked
        upstream = events(response, name, strip_usage=stripped)
        try:
            # Nothing has gone to the caller yet: a failure here is still an ordinary error.
            first = await anext(upstream)
        except BaseException:
            response.close()
            raise
        return EventStream(_resumed(first, upstream), close)


async def _resumed(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _check(request: OpenAiChatCompletion, call: Call) -> None:
    if not request.messages:
        message = "'Messages' must not be empty."
        raise InvalidRequest.of([FieldError("NotEmpty", "Messages", message)], param="messages")
    if not call.caller.may_use(request.model):
        allowed = ", ".join(sorted(call.caller.models))
        raise Forbidden(
            f"This API key may not use model {request.model}; it may use {allowed}.",
            param="model",
            reason="model_not_allowed",
        )
