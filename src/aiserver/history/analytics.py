"""Sums over many months, from the roll-ups alone."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from aiserver.history.archive import Shelf, month_of
from aiserver.history.logs import total_of
from aiserver.kit.ids import began_ms, first_of

_HOUR_MS = 3_600_000
_END_OF_TIME = 2**62

# Calls that no provider was asked for stand under the provider "".
_SUMMARY = """
SELECT provider, model, CAST(sum(calls) AS bigint), CAST(sum(prompt_tokens) AS bigint),
  CAST(sum(completion_tokens) AS bigint), CAST(sum(duration_ms) AS bigint),
  CAST(sum(counted_ms) AS bigint)
FROM hours WHERE hour >= ? AND hour < ? AND provider <> '' GROUP BY provider, model
"""


class Sums(NamedTuple):
    """`counted_ms` is the time of the calls whose tokens are known."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_ms: int = 0
    counted_ms: int = 0

    def __add__(self, other: object) -> "Sums":
        if not isinstance(other, Sums):
            return NotImplemented
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class Summary(NamedTuple):
    """By name, each name once."""

    providers: dict[str, Sums]
    models: dict[str, Sums]
    months: dict[str, Sums]


def summary(shelf: Shelf, *, since: datetime | None, until: datetime | None) -> Summary:
    """Calls that reached a provider, from the hour of `since` through the UTC day of `until`."""
    first, last = _bounds(since, until)
    found = Summary({}, {}, {})
    for month in _between(shelf.months(), first, last):
        opened = shelf.open(month)
        if opened is None:
            continue
        hours = (first // _HOUR_MS, -(-last // _HOUR_MS))
        for provider, model, *figures in opened.rows(_SUMMARY, hours):
            sums = Sums(*figures)
            for group, name in zip(found, (provider, model, month), strict=True):
                group[name] = group.get(name, Sums()) + sums
    return found


def total_calls(shelf: Shelf) -> int:
    """Every call in all months that can be read."""
    opened = map(shelf.open, shelf.months())
    return sum(total_of(month) for month in opened if month is not None)


def _bounds(since: datetime | None, until: datetime | None) -> tuple[int, int]:
    """Milliseconds: the first one of the first hour, and the one after the last day."""
    first = began_ms(first_of(since)) if since else 0
    if until is None:
        return first, _END_OF_TIME
    day = until.replace(hour=0, minute=0, second=0, microsecond=0)
    return first, began_ms(first_of(day)) + timedelta(days=1) // timedelta(milliseconds=1)


def _between(months: Iterable[str], first: int, last: int) -> list[str]:
    """Months that overlap; `last` is the first millisecond that is not asked for."""
    newest = month_of(last - 1) if last < _END_OF_TIME else "9999-12"
    return [month for month in months if month_of(first) <= month <= newest]
