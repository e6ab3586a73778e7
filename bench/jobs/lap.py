"""What every queue is put through: jobs one at a time, then from many callers at once.

Peers run it in environments of their own, so it stands on the standard library alone.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

# Callers at once, each with one job a call, as the callers of a server are.
CALLERS = 64
_WARM_UP, _WAITS = 0.1, 100

Add = Callable[[int], Awaitable[object]]


class Tally:
    """Counts the jobs that are done; `reached` waits until there are so many."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._there = asyncio.Event()

    def one_more(self) -> None:
        self.count += 1
        if self.count >= self._wanted:
            self._there.set()

    async def reached(self, count: int) -> None:
        self._wanted = count
        self._there.clear()
        if self.count < count:
            await self._there.wait()


class Given(NamedTuple):
    """What a queue's process is told: the database, and how much to do."""

    place: str
    jobs: int
    a_call: int


def given() -> Given:
    parser = argparse.ArgumentParser()
    parser.add_argument("--place", required=True, help="a folder, or a PostgreSQL URL")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--a-call", type=int, default=1, help="jobs that a caller adds at once")
    found = parser.parse_args()
    return Given(found.place, found.jobs, found.a_call)


async def run(add: Add, done: Tally, told: Given) -> None:
    """Prints jobs a second and the p50 of the way from `add` to the work, in ms, as JSON."""
    rate = await warmed(add, done, told)
    starts = [await _one(add, done) for _ in range(_WAITS if told.a_call == 1 else 1)]
    show({"rate": rate, "start_ms": statistics.median(starts)})


async def warmed(add: Add, done: Tally, told: Given) -> float:
    """Jobs a second, after a tenth of them."""
    callers = CALLERS if told.a_call == 1 else 2
    await _through(add, done, round(told.jobs * _WARM_UP), callers, told.a_call)
    return await _through(add, done, told.jobs, callers, told.a_call)


def show(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


async def _one(add: Add, done: Tally) -> float:
    count, began = done.count, time.perf_counter()
    await add(1)
    await done.reached(count + 1)
    return (time.perf_counter() - began) * 1000


async def _through(add: Add, done: Tally, jobs: int, callers: int, a_call: int) -> float:
    """Jobs a second from the first `add` until all are done."""
    calls = iter(range(max(jobs // a_call, 1)))
    wanted = done.count + len(range(max(jobs // a_call, 1))) * a_call

    async def caller() -> None:
        for _ in calls:
            await add(a_call)

    before, began = done.count, time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    await done.reached(wanted)
    return (wanted - before) / (time.perf_counter() - began)
