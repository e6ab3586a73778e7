"""Stores of jobs on PostgreSQL, for the tests that run on each engine."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from aiserver.jobs.store import Announce, Bounds, JobStore, Outbox
from aiserver.jobs.store.postgres import PostgresJobs
from aiserver.jobs.store.postgres_outbox import PostgresOutbox
from aiserver.kit.postgres import Postgres
from fakes.calls import StillClock
from postgres import server

T = TypeVar("T")


def opener(
    stack: AsyncExitStack,
    clock: StillClock,
    url: str,
    announce: Announce,
    made: Callable[[JobStore, Outbox, StillClock, Any], T],
) -> Any:
    """Opens stores on one database; what is opened closes with the stack."""
    stack.callback(server().give_back, url)

    async def on_postgres(*, bounds: Bounds = Bounds()) -> T:  # noqa: B008 - frozen
        database = await Postgres.open(url, connections=4)
        stack.push_async_callback(database.close)
        jobs = PostgresJobs(database, clock, bounds=bounds, announce=announce)
        stack.push_async_callback(jobs.close)

        async def rows(sql: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in await database.rows(sql)]

        return made(jobs, PostgresOutbox(database, clock), clock, rows)

    return on_postgres
