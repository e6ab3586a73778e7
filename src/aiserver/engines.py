"""The two databases that a server can stand on: SQLite in APP_DATA, or PostgreSQL."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aiserver import settings as s
from aiserver.history.archive import Archive
from aiserver.jobs.store import Announce, Bounds, JobStore, Listening, Outbox
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.store.sqlite_outbox import SqliteOutbox
from aiserver.kit import migrations
from aiserver.kit.clock import Clock
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables, Tables

if TYPE_CHECKING:
    from aiserver.kit.postgres import Postgres


class Engine(Protocol):
    """Makes every store of a server, or of one command."""

    @property
    def tables(self) -> Tables: ...

    def jobs(self, bounds: Bounds, announce: Announce) -> JobStore: ...

    def outbox(self) -> Outbox: ...

    def history(self) -> Archive | None:
        """None for files of its own."""
        ...

    def listener(self, heard: Callable[[], None]) -> Listening | None:
        """Hears what other processes change in the tables, where they can tell."""
        ...

    async def close(self) -> None: ...


class SqliteEngine:
    """Implements `Engine` for one server process and the command line beside it."""

    def __init__(self, database: Database, folder: Path, clock: Clock) -> None:
        self.database = database
        self.tables = SqliteTables(database)
        self._folder = folder
        self._clock = clock

    def jobs(self, bounds: Bounds, announce: Announce) -> JobStore:
        folder = self._folder / "jobs"
        return SqliteJobs(self.database, self._clock, folder, bounds=bounds, announce=announce)

    def outbox(self) -> Outbox:
        return SqliteOutbox(self.database, self._clock)

    def history(self) -> None:
        """Files in APP_DATA."""

    def listener(self, heard: Callable[[], None]) -> None:
        """Changes are seen by asking the file."""

    async def close(self) -> None:
        self.database.close()


class PostgresEngine:
    """Implements `Engine` for any number of processes."""

    def __init__(self, database: "Postgres", url: str, clock: Clock) -> None:
        # Only here: a server on SQLite does without the memory of the driver.
        from aiserver.kit.postgres_tables import PostgresTables  # noqa: PLC0415

        self.database = database
        self._url = url
        self.tables = PostgresTables(database, clock)
        self._clock = clock

    def jobs(self, bounds: Bounds, announce: Announce) -> JobStore:
        from aiserver.jobs.store.postgres import PostgresJobs  # noqa: PLC0415

        return PostgresJobs(self.database, self._clock, bounds=bounds, announce=announce)

    def outbox(self) -> Outbox:
        from aiserver.jobs.store.postgres_outbox import PostgresOutbox  # noqa: PLC0415

        return PostgresOutbox(self.database, self._clock)

    def history(self) -> Archive:
        from aiserver.history.postgres_archive import PostgresArchive  # noqa: PLC0415

        return PostgresArchive(self._url)

    def listener(self, heard: Callable[[], None]) -> Listening:
        return self.tables.listener(heard)

    async def close(self) -> None:
        await self.database.close()


async def open_engine(settings: s.Settings, folder: Path, clock: Clock, *, lean: bool) -> Engine:
    """At this version's schema. Raises StorageError; then nothing must listen.

    `lean` keeps the memory of the migration tools out of this process.
    """
    url = settings.get(s.DATABASE_URL)
    if url is None:
        return _sqlite(folder, clock, lean=lean)
    return await _postgres(url.reveal(), clock, lean=lean)


def _sqlite(folder: Path, clock: Clock, *, lean: bool) -> SqliteEngine:
    database = Database.open(folder / "app.db")
    try:
        migrations.upgrade(database, apart=lean)
    except BaseException:
        database.close()
        raise
    return SqliteEngine(database, folder, clock)


async def _postgres(url: str, clock: Clock, *, lean: bool) -> PostgresEngine:
    from aiserver.kit.migrations import postgres as migrations  # noqa: PLC0415
    from aiserver.kit.postgres import Postgres  # noqa: PLC0415

    database = await Postgres.open(url)
    try:
        await migrations.upgrade(database, apart=lean)
    except BaseException:
        await database.close()
        raise
    return PostgresEngine(database, url, clock)
