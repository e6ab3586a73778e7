"""Brings a PostgreSQL database to this version's schema, one process at a time."""

import asyncio
import subprocess
import sys

from aiserver.kit.db import StorageError
from aiserver.kit.migrations import head
from aiserver.kit.migrations.script import postgres_script
from aiserver.kit.postgres import Postgres, Transaction

# Any number that no other program on this database uses for its own lock.
_LOCK = 4_611_734_512_290_817
_WAIT = "10min"


async def current(database: Postgres) -> str | None:
    """The revision of a database; None for an empty one."""
    async with database.transaction() as transaction:
        return await _current(transaction)


async def upgrade(database: Postgres, *, apart: bool = False) -> bool:
    """Whether anything changed. Raises StorageError; then the server must not start.

    `apart` runs the tools in a process of their own, so that a server does not keep their memory.
    """
    wanted = head()
    async with database.transaction() as transaction:
        if await _current(transaction) == wanted:
            return False
    async with database.transaction() as transaction:
        await transaction.script(f"SET LOCAL lock_timeout = '{_WAIT}'")
        await transaction.script(f"SELECT pg_advisory_xact_lock({_LOCK})")
        found = await _current(transaction)
        if found == wanted:
            return False
        if found is not None and found > wanted:
            raise StorageError(
                f"The PostgreSQL database is at schema {found}, newer than this version's "
                f"{wanted}. Start the newer version, or restore a backup from before the upgrade."
            )
        make = _script_apart if apart else postgres_script
        await transaction.script(await asyncio.to_thread(make, found, wanted))
    return True


async def _current(transaction: Transaction) -> str | None:
    # Not to_regclass: within a transaction it may not see a table that another just made.
    if not await transaction.rows(
        "SELECT 1 FROM pg_class WHERE relname = 'alembic_version' AND pg_table_is_visible(oid)"
    ):
        return None
    rows = await transaction.rows("SELECT version_num FROM alembic_version")
    return str(rows[0][0]) if rows else None


def _script_apart(found: str | None, wanted: str) -> str:
    command = [sys.executable, "-m", "aiserver.kit.migrations.script", found or "", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StorageError(f"Cannot prepare the migration: {done.stderr.strip()}")
    return done.stdout
