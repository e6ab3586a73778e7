"""Calls that have ended, as the history and the ledger get them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.kit.ids import first_of

NOVEMBER = datetime(2026, 11, 15, 12, tzinfo=UTC)
_numbers = count(1)


class StillClock:
    """A clock that only a test moves."""

    def __init__(self, now: datetime = NOVEMBER) -> None:
        self.moment = now

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


def ended_call(at: datetime = NOVEMBER, *, seconds: float = 1.5, **members: Any) -> Trace:
    """A chat call that provider `fake` answered; each has a number of its own."""
    milliseconds = round(at.timestamp() * 1000)
    given: dict[str, Any] = {
        "id": first_of(at) + next(_numbers) % 2**21,
        "at": milliseconds / 1000,
        "started": 100.0,
        "operation": "OpenAiChatCompletion",
        "request_id": "request-1",
        "key_id": 7,
        "address": "10.1.2.3",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "model-a",
        "served": "model-a",
        "provider": "fake",
        "attempts": [Attempt(provider="fake", model="model-a", began=0.0, outcome="ok")],
        "usage": Usage(prompt=10, completion=20),
        "duration": seconds,
        "status": 200,
        "cost": Decimal("0.000123"),
    }
    return Trace(**(given | members))


def ended_calls(number: int, at: datetime = NOVEMBER, **members: Any) -> list[Trace]:
    """One a second."""
    return [ended_call(at + timedelta(seconds=n), **members) for n in range(number)]
