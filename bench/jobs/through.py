"""The gateway's queue in a process of its own: what a caller waits, then jobs from many callers."""

import asyncio
import statistics
import time
from itertools import count

import uvloop

from aiserver.jobs.job import State
from aiserver.jobs.queue import EarlyAnswer
from bench.jobs import lap
from bench.jobs.desk import Desk, nothing, opened

_CALLS, _MODELS, _PATIENCE_SECONDS = 200, 4, 30.0


async def main() -> None:
    told, numbers = lap.given(), count()
    async with opened(told.place) as desk:
        before = await _completed(desk)

        async def add(_: int) -> None:
            await desk.add(next(numbers), models=_MODELS)

        starts = [await _start(desk, number) for number in range(_CALLS)]
        lone = [await _wait(desk, number, rested=True) for number in range(_CALLS)]
        waits = [await _wait(desk, number) for number in range(_CALLS)]
        # Where slots are busy, as under such a load, jobs are claimed.
        desk.queue.starter = None
        rate = await lap.warmed(add, desk.queue.done, told)
        done = await _completed(desk) - before
    if done != next(numbers) + 3 * _CALLS:
        raise SystemExit(f"{done} jobs were done, not those that were added; no figure counts.")
    times = {"start_ms": starts, "wait_ms": waits, "lone_ms": lone}
    lap.show({"rate": rate, **{name: statistics.median(found) for name, found in times.items()}})


async def _start(desk: Desk, number: int) -> float:
    """Milliseconds to the start of a queued job that comes when nothing is left of others."""
    starts: list[float] = []
    await _rest(desk)
    began = time.perf_counter()
    desk.on_start = lambda: starts.append((time.perf_counter() - began) * 1000)
    await _result(desk, await desk.add(number))
    desk.on_start = nothing
    return starts[0]


async def _wait(desk: Desk, number: int, *, rested: bool = False) -> float:
    """Milliseconds to the result for a caller who waits: one who has just had another, or `rested`.

    What there was to write of that other may be under way.
    """
    if rested:
        await _rest(desk)
    began, answer = time.perf_counter(), EarlyAnswer()
    await _result(desk, await desk.add(number, answer=answer), answer)
    return (time.perf_counter() - began) * 1000


async def _result(desk: Desk, id: int, answer: EarlyAnswer | None = None) -> None:
    job = await desk.queue.ended(id, seconds=_PATIENCE_SECONDS, answer=answer)
    if job is None or job.result is None:
        raise SystemExit(f"Job {id} has no result.")


async def _rest(desk: Desk) -> None:
    tasks = [attempt.task for attempt in desk.worker.running if attempt.task is not None]
    await asyncio.gather(*tasks)
    # The worker has looked, and found nothing.
    await asyncio.sleep(0.005)


async def _completed(desk: Desk) -> int:
    return (await desk.queue.store.counts()).states.get(State.COMPLETED, 0)


if __name__ == "__main__":
    uvloop.run(main())
