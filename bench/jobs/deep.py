"""A long queue in a process of its own: the memory that it costs, and claims from it."""

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from itertools import count

import uvloop

from aiserver.jobs.store import Want
from bench.jobs import lap
from bench.jobs.desk import Desk, opened
from bench.machines import resident

MODELS, CLAIMED = 50, 10
_CALLERS, _CLAIMS, _LEASE_MS = 256, 40, 60_000


async def main() -> None:
    told, numbers = lap.given(), count()
    async with opened(told.place, working=False, most=CLAIMED) as desk:
        # What a burst of callers takes is no part of what the queue holds.
        await _filled(desk, numbers, told.jobs // 50)
        await _emptied(desk)
        empty = resident(os.getpid())
        await _filled(desk, numbers, told.jobs // 2)
        grown = resident(os.getpid()) - empty
        await _filled(desk, numbers, told.jobs - told.jobs // 2)
        wants = [Want("chat", f"model-{number}", "", CLAIMED) for number in range(MODELS)]
        claims = [await _claim(desk, wants) for _ in range(_CLAIMS)]
        looks = [await _look(desk) for _ in range(_CLAIMS)]
    figures = {"claim_ms": statistics.median(claims), "worker_ms": statistics.median(looks)}
    lap.show({"grown": grown, **figures})


async def _filled(desk: Desk, numbers: "count[int]", jobs: int) -> None:
    todo = iter(range(jobs))

    async def caller() -> None:
        for _ in todo:
            await desk.add(next(numbers), models=MODELS)

    await asyncio.gather(*(caller() for _ in range(_CALLERS)))


async def _emptied(desk: Desk) -> None:
    while await desk.worker.claim():
        await _rest(desk)


async def _claim(desk: Desk, wants: Sequence[Want]) -> float:
    """Milliseconds of the store's claim of some jobs of any model."""
    until, began = time.time_ns() // 1_000_000 + _LEASE_MS, time.perf_counter()
    jobs = await desk.queue.store.claim("bench", wants, until=until, most=CLAIMED)
    spent = time.perf_counter() - began
    if len(jobs) != CLAIMED:
        raise SystemExit(f"A claim took {len(jobs)} jobs for {CLAIMED}.")
    return spent * 1000


async def _look(desk: Desk) -> float:
    """Milliseconds of a worker's whole round: which models wait, slots for them, the claim."""
    began = time.perf_counter()
    await desk.worker.claim()
    spent = time.perf_counter() - began
    await _rest(desk)
    return spent * 1000


async def _rest(desk: Desk) -> None:
    running = [attempt.task for attempt in desk.worker.running if attempt.task is not None]
    await asyncio.gather(*running)


if __name__ == "__main__":
    uvloop.run(main())
