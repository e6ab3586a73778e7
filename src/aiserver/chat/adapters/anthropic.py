"""Anthropic's dialect: OpenAI's chat completion as a call of its Messages API, and back."""

from collections.abc import Mapping
from typing import Any

import msgspec

from aiserver.chat.adapters.adapter import Answered, Chat, Outgoing
from aiserver.chat.adapters.anthropic_request import body_for
from aiserver.chat.adapters.anthropic_stream import AnthropicReader
from aiserver.chat.adapters.anthropic_wire import (
    NULL,
    UNREADABLE,
    Block,
    Message,
    block_of,
    error_answer,
    finish_of,
    in_answer,
    messages,
    usage_members,
)
from aiserver.chat.failures import ErrorAnswer, broken, in_stream
from aiserver.providers.endpoints import Endpoint


class _Listed(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Listed]


_listings = msgspec.json.Decoder(_Listing)


class AnthropicAdapter:
    """One for all upstreams of this dialect; what it cannot carry is said in the request module."""

    def request(self, chat: Chat, endpoint: Endpoint, *, model: str, provider: str) -> Outgoing:
        body = body_for(chat, model=model, provider=provider)
        return Outgoing("/messages", msgspec.json.encode(body))

    def answer(self, body: bytes, chat: Chat, *, provider: str) -> Answered:
        try:
            message = messages.decode(body)
            failed = in_answer(message.error) if bytes(message.error) != NULL else None
            blocks = [block for raw in message.content or () if (block := block_of(raw))]
        except UNREADABLE as error:
            problem = "sent an answer that cannot be read."
            raise broken(provider, problem, detail=str(error)) from None
        if failed is not None:
            raise in_stream(provider, failed, lost=False)
        if message.content is None:
            raise broken(provider, "sent an answer without content.")
        usage = message.usage.usage() if message.usage is not None else None
        said = _said(message, blocks)
        finish = finish_of(message.stop_reason, calls="tool_calls" in said)
        completion: dict[str, Any] = {
            "id": message.id or f"chatcmpl-{chat.request_id}",
            "object": "chat.completion",
            "created": chat.created,
            "model": message.model or chat.model,
            "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        }
        counted = usage_members(usage)
        if counted is not None:
            completion["usage"] = counted
        return Answered(msgspec.json.encode(completion), usage)

    def reader(self, chat: Chat, endpoint: Endpoint, *, provider: str) -> AnthropicReader:
        return AnthropicReader(chat, provider)

    def error(self, body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
        return error_answer(body, headers)

    def listing(self) -> str:
        return "/models?limit=1000"

    def models(self, body: bytes) -> list[str]:
        return [model.id for model in _listings.decode(body).data]


def _said(message: Message, blocks: list[Block]) -> dict[str, Any]:
    """The one message that all blocks make; its thinking can be sent back as it is."""
    text = "".join(block.text or "" for block in blocks)
    calls = [_call(block) for block in blocks if block.type == "tool_use"]
    said: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
    if calls:
        said["tool_calls"] = calls
    if reasoning := "".join(block.thinking or "" for block in blocks):
        said["reasoning_content"] = reasoning
    if replayable := [kept for block in blocks if (kept := block.replayable())]:
        said["thinking_blocks"] = replayable
    if message.stop_details is not None and message.stop_details.explanation:
        said["refusal"] = message.stop_details.explanation
    return said


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block.name, "arguments": block.arguments}
    return {"id": block.id, "type": "function", "function": function}
