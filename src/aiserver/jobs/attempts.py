"""Judges one attempt to deliver a callback: done, again and when, or given up."""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from aiserver.jobs.store import DeliveryState
from aiserver.kit.outbound import Answer

# Seconds before each attempt, after the one before it: a little over three days in all.
SCHEDULE = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
LONGEST_WAIT = 86_400.0
LONGEST_EXCERPT = 1_024
_JITTER = 0.2
_ASKS_TO_WAIT = frozenset({429, 502, 503, 504})


class Verdict(msgspec.Struct, frozen=True):
    """`wait` in seconds from now, for Pending only; `status` None when there was no answer."""

    state: DeliveryState
    wait: float | None = None
    status: int | None = None
    error: str | None = None


def judge(
    answer: Answer | None,
    *,
    attempt: int,
    now: datetime,
    random: Callable[[], float],
    error: str | None = None,
) -> Verdict:
    """`attempt` counts from 1, past the plan's last into the next round of it; without an answer
    `error` says what happened.
    """
    if answer is None:
        return _again(attempt, random, 0.0, None, error or "No answer.")
    if 200 <= answer.status < 300:
        return Verdict(DeliveryState.DELIVERED, status=answer.status)
    said = f"The receiver answered {answer.status}{_excerpt(answer.body)}"
    if answer.status == 410:
        return Verdict(DeliveryState.DISABLED, status=410, error=said)
    if 300 <= answer.status < 400:
        said = f"The receiver answered {answer.status}; redirects are not followed."
    asked = answer.headers.get("retry-after") if answer.status in _ASKS_TO_WAIT else None
    return _again(attempt, random, retry_after(asked, now=now), answer.status, said)


def retry_after(value: str | None, *, now: datetime) -> float:
    """Seconds that a receiver asks to be left alone, a day at most; 0 for none or nonsense."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
    # An offset from UTC without end overflows.
    except (ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_WAIT)


def _again(
    attempt: int, random: Callable[[], float], asked: float, status: int | None, error: str
) -> Verdict:
    made = attempt % len(SCHEDULE)
    if made == 0:
        return Verdict(DeliveryState.FAILED, status=status, error=error)
    # Never sooner than planned, or a receiver could spend all attempts within seconds.
    wait = max(SCHEDULE[made], asked) * (1 + _JITTER * random())
    return Verdict(DeliveryState.PENDING, wait, status, error)


def _excerpt(body: bytes) -> str:
    text = body[:LONGEST_EXCERPT].decode(errors="replace")
    plain = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return f": {plain}" if plain else "."
