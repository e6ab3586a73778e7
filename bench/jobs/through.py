"""The gateway's queue in a process of its own: what a caller waits, then jobs from many callers."""

import statistics
import time
from itertools import count

import uvloop

from aiserver.jobs.job import State
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
        rate = await lap.warmed(add, desk.queue.done, told)
        done = await _completed(desk) - before
    if done != next(numbers) + _WAITS:
        raise SystemExit(f"{done} jobs were done, not those that were added; no figure counts.")
    found = {"rate": rate, "start_ms": statistics.median(starts)}
    lap.show({**found, "wait_ms": statistics.median(waits)})


async def _waits(desk: Desk) -> tuple[list[float], list[float]]:
    """Milliseconds to the start and to the result, of callers that come one at a time."""
    starts: list[float] = []
    waits: list[float] = []
    for number in range(_WAITS):
        began = time.perf_counter()

        def note(began: float = began) -> None:
            starts.append((time.perf_counter() - began) * 1000)

        desk.on_start = note
        id = await desk.add(number)
        job = await desk.queue.ended(id, seconds=_PATIENCE_SECONDS)
        waits.append((time.perf_counter() - began) * 1000)
        if job is None or job.result is None:
            raise SystemExit(f"Job {id} has no result.")
    desk.on_start = nothing
    return starts, waits


async def _completed(desk: Desk) -> int:
    return (await desk.queue.store.counts()).states.get(State.COMPLETED, 0)


if __name__ == "__main__":
    uvloop.run(main())
