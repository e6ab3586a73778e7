"""The gateway's queue with nothing to do, in a process of its own, until its input ends."""

import asyncio
import sys

import uvloop

from bench.jobs import lap
from bench.jobs.desk import opened

_WARM_UP, _SETTLE_SECONDS = 200, 3.0


async def main() -> None:
    told = lap.given()
    async with opened(told.place) as desk:
        for number in range(_WARM_UP):
            await desk.queue.ended(await desk.add(number), seconds=30)
        await asyncio.sleep(_SETTLE_SECONDS)
        lap.show({"ready": True})
        # A thread that waits costs nothing; a reader of the loop would not take a closed pipe.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
