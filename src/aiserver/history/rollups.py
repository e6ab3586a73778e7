"""Sums by the hour and by the day, written with the rows they count; pages read only these."""

from collections.abc import Iterable
from typing import TypeVar

from aiserver.history.rows import (
    AT,
    COMPLETION,
    COST,
    DURATION,
    KEY,
    LOST,
    MODEL,
    PROMPT,
    PROVIDER,
    STATUS,
)
from aiserver.kit.db import Row

NOBODY = -1

_HOUR_MS = 3_600_000
_HOURS_A_DAY = 24
# `counted` are the calls whose tokens were reported and `counted_ms` their time; `unpriced` those
# whose cost is unknown. Unknown is in no sum.
SUMS = (
    *("calls", "failed", "duration_ms", "counted", "counted_ms"),
    *("prompt_tokens", "completion_tokens", "cost", "unpriced", "lost"),
)

_Group = TypeVar("_Group")


class Tally:
    """Adds rows up in memory."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str, str, int], list[int]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        sums = self._sums
        for row in rows:
            provider, key = row[PROVIDER], row[KEY]
            # What a caller made up must not become a line here: only served names count apart.
            model = row[MODEL] or "" if provider else ""
            group = (row[AT] // _HOUR_MS, model, provider or "", NOBODY if key is None else key)
            total = sums.get(group)
            if total is None:
                total = sums[group] = [0] * len(SUMS)
            duration, prompt, cost = row[DURATION], row[PROMPT], row[COST]
            total[0] += 1
            if row[STATUS] >= 400:
                total[1] += 1
            total[2] += duration
            if prompt is not None:
                total[3] += 1
                total[4] += duration
                total[5] += prompt
            if row[COMPLETION] is not None:
                total[6] += row[COMPLETION]
            if cost is None:
                total[8] += 1
            else:
                total[7] += cost
            total[9] += row[LOST]

    def groups(self) -> tuple[list[Row], list[Row]]:
        """Rows by (hour, model, provider) and by (day, key, model), each followed by SUMS."""
        hours: dict[tuple[int, str, str], list[int]] = {}
        days: dict[tuple[int, int, str], list[int]] = {}
        for (hour, model, provider, key), sums in self._sums.items():
            _fold(hours, (hour, model, provider), sums)
            _fold(days, (hour // _HOURS_A_DAY, key, model), sums)
        return [(*k, *sums) for k, sums in hours.items()], [(*k, *sums) for k, sums in days.items()]


def _fold(into: dict[_Group, list[int]], group: _Group, sums: list[int]) -> None:
    found = into.get(group)
    into[group] = sums if found is None else [a + b for a, b in zip(found, sums, strict=True)]
