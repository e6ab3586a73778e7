"""procrastinate in a process of its own, at the settings at which it was fastest here."""

import asyncio
import contextlib
import importlib
from typing import Any

from bench.jobs import lap

_CONCURRENCY, _CONNECTIONS = 5, 10
_PAYLOAD = "x" * 200


async def main() -> None:
    told = lap.given()
    # Only in the peer's own environment.
    procrastinate: Any = importlib.import_module("procrastinate")
    connector = procrastinate.PsycopgConnector(
        conninfo=told.place, min_size=_CONNECTIONS, max_size=_CONNECTIONS
    )
    app, done = procrastinate.App(connector=connector), lap.Tally()

    @app.task(name="noop")
    async def noop(payload: str) -> None:
        done.one_more()

    async def add(_: int) -> None:
        await noop.defer_async(payload=_PAYLOAD)

    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        working = asyncio.create_task(
            app.run_worker_async(
                concurrency=_CONCURRENCY, install_signal_handlers=False, delete_jobs="always"
            )
        )
        try:
            await lap.run(add, done, told)
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working


if __name__ == "__main__":
    importlib.import_module("uvloop").run(main())
