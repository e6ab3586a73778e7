"""Answers the operations about chat."""

import time
from collections.abc import AsyncGenerator
from typing import Any, cast

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.operations import ChatAiProvider, OpenAiChatCompletion
from aiserver.chat.relay import Relay, closed, rest
from aiserver.contract.errors import FieldError, Forbidden, InvalidRequest
from aiserver.contract.operation import Answer, Call, EventStream, Handler, JsonBytes
from aiserver.history.store import MOST_KEPT

# Members that steer the gateway and mean nothing to an upstream.
_OURS = ("refId", "tag", "replyTo")
_PROMPT_TOKENS = 512


class ChatHandlers:
    """`keep_prompts`: what is said goes into the history too."""

    def __init__(self, relay: Relay, *, keep_prompts: bool = False) -> None:
        self._relay = relay
        self._keep_prompts = keep_prompts

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {OpenAiChatCompletion: self.complete, ChatAiProvider: self.at_provider}

    async def complete(self, request: OpenAiChatCompletion, call: Call) -> Answer:
        check(request, call)
        provider = request.provider if isinstance(request.provider, str) else None
        asked = bool((request.stream_options or {}).get("include_usage"))
        call.trace.tag, call.trace.ref_id = request.tag, request.ref_id
        return await self._answer(
            Chat(
                members=normal_form(call.members),
                model=request.model,
                stream=bool(request.stream),
                wants_usage=asked,
                request_id=call.request_id,
                created=int(time.time()),
            ),
            call,
            provider,
        )

    async def at_provider(self, request: ChatAiProvider, call: Call) -> Answer:
        members = _members_of(request, call)
        model = _model_of(request)
        permitted(model, call)
        chat = Chat(
            members={**members, "model": model},
            model=model,
            stream=False,
            wants_usage=False,
            request_id=call.request_id,
            created=int(time.time()),
        )
        return await self._answer(chat, call, request.provider)

    async def _answer(self, chat: Chat, call: Call, provider: str | None) -> Answer:
        trace = call.trace
        trace.model, trace.streamed = chat.model, chat.stream
        if self._keep_prompts:
            trace.prompt = msgspec.json.encode(chat.members)[:MOST_KEPT]
        if not chat.stream:
            answered = await self._relay.complete(chat, trace, provider)
            if self._keep_prompts:
                trace.answer = answered.body[:MOST_KEPT]
            return JsonBytes(answered.body)
        opened = await self._relay.stream(chat, trace, provider)
        events = rest(opened)
        if self._keep_prompts:
            events = kept(events, call)
        return EventStream(events, lambda: closed(opened))


async def kept(events: AsyncGenerator[bytes], call: Call) -> AsyncGenerator[bytes]:
    """The same events; as much of them as is kept goes into the call's trace."""
    answer = bytearray()
    try:
        async for event in events:
            answer += event[: MOST_KEPT - len(answer)]
            yield event
    finally:
        call.trace.answer = bytes(answer)
        await events.aclose()


def normal_form(members: dict[str, Any]) -> dict[str, Any]:
    """What the caller sent, less the gateway's own members and what typed clients add."""
    body = {name: value for name, value in members.items() if name not in _OURS}
    if not isinstance(body.get("provider"), dict):
        body.pop("provider", None)
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and "response_format" in response_format:
        body["response_format"] = _modern(cast("dict[str, Any]", response_format))
    body["messages"] = [_without_empty_images(message) for message in body.get("messages") or ()]
    return body


def permitted(model: str, call: Call) -> None:
    """Raises Forbidden where the key's list of models leaves this one out."""
    if not call.caller.may_use(model):
        allowed = ", ".join(sorted(call.caller.models))
        raise Forbidden(
            f"This API key may not use model {model}; it may use {allowed}.",
            param="model",
            reason="model_not_allowed",
        )


def check(request: OpenAiChatCompletion, call: Call) -> None:
    """Raises InvalidRequest or Forbidden for a chat that nobody needs to be asked about."""
    if not request.messages:
        message = "'Messages' must not be empty."
        raise InvalidRequest.of([FieldError("NotEmpty", "Messages", message)], param="messages")
    permitted(request.model, call)


def _members_of(request: ChatAiProvider, call: Call) -> dict[str, Any]:
    if request.request is not None:
        members = normal_form(cast("dict[str, Any]", call.members["request"]))
        members.pop("stream", None)
        members.pop("stream_options", None)
        if members["messages"]:
            return members
    elif request.prompt:
        message = {"role": "user", "content": request.prompt}
        return {"messages": [message], "max_tokens": _PROMPT_TOKENS}
    message = "'Request' or 'Prompt' must not be empty."
    raise InvalidRequest.of([FieldError("NotEmpty", "Request", message)], param="request")


def _model_of(request: ChatAiProvider) -> str:
    inner = request.request.model if request.request is not None else None
    if model := request.model or inner:
        return model
    message = "'Model' must not be empty; give it here or inside 'Request'."
    raise InvalidRequest.of([FieldError("NotEmpty", "Model", message)], param="model")


def _without_empty_images(message: Any) -> Any:
    # Typed clients fill this list by themselves; strict upstreams refuse a member unknown to them.
    members = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    if "images" in members and not members["images"]:
        return {name: value for name, value in members.items() if name != "images"}
    return cast("Any", message)


def _modern(response_format: dict[str, Any]) -> dict[str, Any]:
    spelled = dict(response_format)
    legacy = spelled.pop("response_format")
    return {"type": legacy, **spelled}
