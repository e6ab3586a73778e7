"""CPU of making a chat request of its bytes: decode, respell, convert."""

import json
import os
import statistics
import time
from typing import Any

from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.contract.binding import Binder

# What the server runs for a JSON body once all of it has arrived.
from aiserver.doors.body import _json as decoded  # pyright: ignore[reportPrivateUsage]

LIMIT_US = 25.0
_REPEATS, _CALLS = 7, 20_000
# Another program on this core only ever adds time, so the quietest series counts.
_SERIES = 3


def report() -> None:
    print(
        f"Binding a chat request, {_REPEATS} repeats of {_CALLS} calls, best of {_SERIES} "
        f"medians, load average {os.getloadavg()[0]:.1f}:"
    )
    print(f"{'':24}{'bytes':>8}{'CPU us/call':>13}{'limit':>8}")
    plain = chat(messages=4, letters=170)
    shown = [
        ("1 kB", plain, f"{LIMIT_US:g}"),
        ("1 kB, names mis-cased", miscased(plain), ""),
        ("20 kB", chat(messages=20, letters=950), ""),
    ]
    for name, request, limit in shown:
        body = json.dumps(request).encode()
        print(f"{name:24}{len(body):8}{measure(body):13.1f}{limit:>8}")


def chat(*, messages: int, letters: int) -> dict[str, Any]:
    """A streamed chat of so many messages with so many letters each."""
    roles = ["system", *("user" if turn % 2 == 0 else "assistant" for turn in range(messages - 1))]
    return {
        "model": "bench-model",
        "messages": [{"role": role, "content": "x" * letters} for role in roles],
        "temperature": 0.7,
        "max_tokens": 1000,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "someone",
    }


def miscased(request: dict[str, Any]) -> dict[str, Any]:
    """The same request as some typed clients spell it: MaxTokens, Messages, Role."""
    changed = {_pascal(name): value for name, value in request.items()}
    changed["Messages"] = [
        {_pascal(name): value for name, value in message.items()} for message in request["messages"]
    ]
    return changed


def measure(body: bytes) -> float:
    """Microseconds of this process a call."""
    binder = Binder(OpenAiChatCompletion)
    return min(
        statistics.median(_once(binder, body) for _ in range(_REPEATS)) for _ in range(_SERIES)
    )


def _once(binder: Binder[OpenAiChatCompletion], body: bytes) -> float:
    before = time.process_time_ns()
    for _ in range(_CALLS):
        binder.bind(decoded(body).members)
    return (time.process_time_ns() - before) / 1000 / _CALLS


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
