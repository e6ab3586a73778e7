"""Tells a whole answer as the stream that its caller asked for."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.streaming import as_events
from aiserver.contract.operation import StreamForm
from aiserver.kit.times import iso

Members = dict[str, Any]


def tellings() -> dict[str, tuple[StreamForm, Callable[[Members, bytes], list[bytes]]]]:
    """By operation: the form, and the pieces of an answer to a call with these members."""
    return {
        OpenAiChatCompletion.__name__: (StreamForm.SSE, _chat),
        OllamaGeneration.__name__: (StreamForm.NDJSON, _generation),
    }


def _chat(asked: Members, answer: bytes) -> list[bytes]:
    options: Any = asked.get("stream_options") or {}
    return as_events(answer, with_usage=bool(options.get("include_usage")))


def _generation(_: Members, answer: bytes) -> list[bytes]:
    members: Members = msgspec.json.decode(answer)
    # A job keeps its answer in the form of the contract, where this is a number.
    if isinstance(created := members.get("created_at"), int):
        members["created_at"] = iso(datetime.fromtimestamp(created, UTC))
    return [msgspec.json.encode(members) + b"\n"]
