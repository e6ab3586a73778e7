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

_WAITS, _MODELS, _PATIENCE_SECONDS = 200, 4, 30.0


async def main() -> None:
    told, numbers = lap.given(), count()
    async with opened(told.place) as desk:
        before = await _completed(desk)

        async def add(_: int) -> None:
            await desk.add(next(numbers), models=_MODELS)

        starts, waits = await _waits(desk)
        # Where slots are busy, as under such a load, jobs are claimed.
        desk.queue.starter = None
        rate = await lap.warmed(add, desk.queue.done, told)
        done = await _completed(desk) - before
    if done != next(numbers) + 2 * _WAITS:
        raise SystemExit(f"{done} jobs were done, not those that were added; no figure counts.")
    found = {"rate": rate, "start_ms": statistics.median(starts)}
    lap.show({**found, "wait_ms": statistics.median(waits)})


async def _waits(desk: Desk) -> tuple[list[float], list[float]]:
    """Milliseconds to the start of a queued job, and to the result for a caller who waits for it.

    Callers come one at a time, each when nothing is left of the one before.
    """
    starts: list[float] = []
    waits: list[float] = []
    for number in range(_WAITS):
        await _rest(desk)
        began = time.perf_counter()

        def note(began: float = began) -> None:
            starts.append((time.perf_counter() - began) * 1000)

        desk.on_start = note
        await _result(desk, await desk.add(number))
        desk.on_start = nothing
        await _rest(desk)
        began, answer = time.perf_counter(), EarlyAnswer()
        await _result(desk, await desk.add(number, answer=answer), answer)
        waits.append((time.perf_counter() - began) * 1000)
    return starts, waits


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
