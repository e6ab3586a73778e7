"""The installation as the checks find it: nothing is made, migrated or mended."""

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from aiserver import settings as s
from aiserver.cli.checks import Installation
from aiserver.kit.clock import SystemClock
from aiserver.kit.crypto import KEY_BYTES, Cipher, EncryptionKeyError, KeyFile, parse_key
from aiserver.kit.db import Database, StorageError
from aiserver.kit.redact import Redactor
from aiserver.kit.tables import SqliteTables, Tables
from aiserver.providers.store import Provider, ProviderStore

if TYPE_CHECKING:
    from aiserver.kit.postgres import Postgres


@asynccontextmanager
async def opened(settings: s.Settings, redact: Redactor) -> AsyncGenerator[Installation]:
    """What is there; providers of the environment can be asked without a database too."""
    folder = settings[s.APP_DATA]
    database, postgres, problem = None, None, ""
    async with AsyncExitStack() as stack:
        try:
            if settings.get(s.DATABASE_URL) is not None:
                postgres = await _postgres(settings, stack)
            elif (folder / "app.db").exists():
                database = _sqlite(folder, stack)
        except (OSError, StorageError) as error:
            problem = str(error)
        cipher, key_problem = _cipher(settings, folder)
        tables = _tables(database, postgres) or SqliteTables(_nothing_kept(stack))
        store = ProviderStore(tables, cipher, SystemClock(), redact.learn)
        yield Installation(
            settings=settings,
            folder=folder,
            database=database,
            postgres=postgres,
            database_problem=problem,
            store=store,
            key_problem=key_problem,
            providers=await _providers(store),
        )


async def _postgres(settings: s.Settings, stack: AsyncExitStack) -> "Postgres":
    # Only here: who runs on SQLite does without the driver.
    from aiserver.kit.postgres import Postgres  # noqa: PLC0415

    url = settings[s.DATABASE_URL]
    database = await Postgres.open(url.reveal() if url else "", connections=1)
    stack.push_async_callback(database.close)
    return database


def _sqlite(folder: Path, stack: AsyncExitStack) -> Database:
    database = Database.open(folder / "app.db")
    stack.callback(database.close)
    return database


def _tables(database: Database | None, postgres: "Postgres | None") -> Tables | None:
    if postgres is not None:
        from aiserver.kit.postgres_tables import PostgresTables  # noqa: PLC0415

        return PostgresTables(postgres, SystemClock())
    return SqliteTables(database) if database is not None else None


def _nothing_kept(stack: AsyncExitStack) -> Database:
    folder = stack.enter_context(TemporaryDirectory())
    return _sqlite(Path(folder), stack)


def _cipher(settings: s.Settings, folder: Path) -> tuple[Cipher, str]:
    given, path = settings.get(s.ENCRYPTION_KEY), folder / "encryption.key"
    problem = ""
    try:
        if given is not None:
            return Cipher(parse_key(given.reveal())), ""
        # Reading a file that is not there would make one, and hide that it was lost.
        if path.is_file():
            return Cipher(*KeyFile(path).keys()), ""
    except (OSError, EncryptionKeyError, ValueError) as error:
        problem = str(error)
    return Cipher(os.urandom(KEY_BYTES)), problem


async def _providers(store: ProviderStore) -> tuple[Provider, ...]:
    try:
        return tuple(await store.all())
    except StorageError:
        # A schema before its migration; the database's own row says so.
        return ()
