"""Histories on each engine, for the tests that both must pass."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aiserver.contract.caller import ADMINISTRATOR
from aiserver.contract.operation import Call, operation_of
from aiserver.contract.trace import Trace
from aiserver.history.archive import Archive, Shelf
from aiserver.history.files import FileArchive
from aiserver.history.handlers import HistoryHandlers
from aiserver.history.postgres_archive import PostgresArchive
from aiserver.history.reader import Reader
from aiserver.history.store import History, State
from fakes.calls import NOVEMBER, StillClock, ended_call
from postgres import server

ENGINES = ("sqlite", "postgres")

T = TypeVar("T")


class Histories:
    """One place where calls are kept, in files or in a database of its own."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.url = url

    def archive(self) -> Archive:
        return FileArchive(self.folder) if self.url is None else PostgresArchive(self.url)

    def history(self, **options: Any) -> History:
        """As a process has it that starts now."""
        clock = options.pop("clock", None) or StillClock()
        redact = options.pop("redact", str)
        return History(self.folder, clock, redact, archive=self.archive(), **options)

    async def record(self, calls: list[Trace], **options: Any) -> State:
        """Hands these over to a history of their own; how it stood before its end."""
        history = self.history(**options)
        history.start()
        for call in calls:
            history.record(call)
        history.wake()
        await reached(lambda: history.held == 0 and history.lost_at_last_stop is not None)
        state = await history.state()
        await history.close()
        return state

    async def ask(self, work: Callable[[Shelf], T]) -> T:
        reader = Reader(self.archive())
        try:
            return await reader.run(work)
        finally:
            await asyncio.to_thread(reader.close)

    def rows(self, month: str, sql: str) -> list[Any]:
        """What SQL that both engines know finds in one month."""

        def found() -> list[Any]:
            shelf = self.archive().shelf()
            shelf.begin(float("inf"))
            try:
                opened = shelf.open(month)
                assert opened is not None, month
                return opened.rows(sql)
            finally:
                shelf.close()

        # The driver has a loop of its own, which must not run inside the test's.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(found).result()

    def count(self, month: str) -> int:
        [(count,)] = self.rows(month, "SELECT count(*) FROM calls")
        return count


async def reached(met: Callable[[], Any], *, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.005)


@contextmanager
def histories_on(engine: str, folder: Path) -> Generator[Histories]:
    if engine == "sqlite":
        yield Histories(folder)
        return
    url = server().fresh_database()
    yield Histories(folder, url)
    server().give_back(url)


@asynccontextmanager
async def answering(histories: Histories, calls: list[Trace]) -> AsyncGenerator[HistoryHandlers]:
    """Answers about these calls, which are written, two hours after noon of the day."""
    filling = histories.history()
    for call in calls:
        filling.record(call)
    filling.start()
    await filling.close()
    history = histories.history()
    try:
        yield HistoryHandlers(
            history,
            StillClock(NOVEMBER + timedelta(hours=2)),
            providers=lambda: 2,
            key_of=lambda text: 7 if text == "ak-seven" else None,
        )
    finally:
        history.start()
        await history.close()


async def asked(handlers: HistoryHandlers, request: msgspec.Struct, **pairs: str) -> Any:
    """The answer as it is on the wire; `pairs` are what a query string holds."""
    operation = operation_of(type(request))
    call = Call(
        operation=operation,
        caller=ADMINISTRATOR,
        request_id="r",
        trace=ended_call(),
        pairs=tuple(pairs.items()),
    )
    answer = await handlers.handlers()[type(request)](request, call)
    return msgspec.json.decode(msgspec.json.encode(answer))
