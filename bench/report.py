"""Prints the tables of the benchmarks and whether a limit is kept."""

import os
from collections.abc import Sequence
from typing import Any


class Table:
    """A column for each head, a row for each server."""

    def __init__(self, title: str, heads: Sequence[str]) -> None:
        self.title = title
        self.heads = heads
        self.rows: list[tuple[str, Sequence[str]]] = []

    def add(self, name: str, cells: Sequence[str]) -> None:
        self.rows.append((name, cells))

    def show(self) -> None:
        columns = zip(*(cells for _, cells in [("", self.heads), *self.rows]), strict=True)
        widths = [max(map(len, column)) + 2 for column in columns]
        print(f"\n{self.title}; load average {os.getloadavg()[0]:.1f}")
        for name, cells in [("", self.heads), *self.rows]:
            aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            print(f"  {name:<22}{''.join(aligned)}")


def verdict(
    said: str, value: float, most: float, spread: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Prints PASS or MISS; `spread` is the least and the most over the rounds."""
    return {**_judged(said, value, value <= most, spread), "most": most}


def at_least(
    said: str, value: float, least: float, spread: tuple[float, float] | None = None
) -> dict[str, Any]:
    """As `verdict`, where more is better."""
    return {**_judged(said, value, value >= least, spread), "least": least}


def _judged(
    said: str, value: float, kept: bool, spread: tuple[float, float] | None
) -> dict[str, Any]:
    outcome = "PASS" if kept else "MISS"
    between = f" ({spread[0]:.2f}..{spread[1]:.2f})" if spread else ""
    print(f"  {outcome}  {said}: {value:.2f}{between}", flush=True)
    return {"what": said, "value": value, "outcome": outcome, "spread": spread}
