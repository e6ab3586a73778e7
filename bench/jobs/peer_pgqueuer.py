"""pgqueuer in a process of its own: the driver and batches at which it was fastest here."""

import asyncio
import importlib
from typing import Any

from bench.jobs import lap

# Of the batches and pools that were tried with single calls: 10 to 200 jobs, 8 to 60 connections.
_BATCH, _CONNECTIONS = 200, 10
_PAYLOAD = b'{"a":1}' * 30


async def main() -> None:
    told = lap.given()
    # Only in the peer's own environment.
    asyncpg: Any = importlib.import_module("asyncpg")
    pgqueuer: Any = importlib.import_module("pgqueuer")
    queries: Any = importlib.import_module("pgqueuer.queries")
    pool = await asyncpg.create_pool(told.place, min_size=_CONNECTIONS, max_size=_CONNECTIONS)
    queue = queries.Queries(pgqueuer.AsyncpgPoolDriver(pool))
    if not await queue.schema_is_installed():
        await queue.install()
    done, worker = lap.Tally(), pgqueuer.PgQueuer(pgqueuer.AsyncpgPoolDriver(pool))

    @worker.entrypoint("noop")
    async def noop(_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        done.one_more()

    async def add(count: int) -> None:
        if count == 1:
            await queue.enqueue("noop", _PAYLOAD)
        else:
            await queue.enqueue(["noop"] * count, [_PAYLOAD] * count, [0] * count)

    working = asyncio.create_task(worker.run(batch_size=_BATCH))
    try:
        await lap.run(add, done, told)
    finally:
        worker.shutdown.set()
        await working
    await pool.close()


if __name__ == "__main__":
    importlib.import_module("uvloop").run(main())
