"""Tells an answer that a job kept in the form that its caller asked for."""

from collections.abc import Callable
from typing import Any, NamedTuple

from aiserver.chat.generation import speaks_as_ollama, told
from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.streaming import as_events
from aiserver.contract.operation import StreamForm

Members = dict[str, Any]


class Telling(NamedTuple):
    """`pieces` of a stream of this form, or the `whole` answer, to a call with these members.

    A whole answer goes by the call's path too.
    """

    form: StreamForm
    pieces: Callable[[Members, bytes], list[bytes]]
    whole: Callable[[str, Members, bytes], bytes]


def tellings() -> dict[str, Telling]:
    """By operation."""
    return {
        OpenAiChatCompletion.__name__: Telling(StreamForm.SSE, _chat, _as_kept),
        OllamaGeneration.__name__: Telling(StreamForm.NDJSON, _generation, _whole_generation),
    }


def _chat(asked: Members, answer: bytes) -> list[bytes]:
    options: Any = asked.get("stream_options") or {}
    return as_events(answer, with_usage=bool(options.get("include_usage")))


def _generation(_: Members, answer: bytes) -> list[bytes]:
    return [told(answer, as_ollama=True) + b"\n"]


def _as_kept(_: str, __: Members, answer: bytes) -> bytes:
    return answer


def _whole_generation(path: str, asked: Members, answer: bytes) -> bytes:
    return told(answer, as_ollama=speaks_as_ollama(path, asked))
