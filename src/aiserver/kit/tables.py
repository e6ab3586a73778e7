"""Small tables that live in memory too: one SQL for both engines, and word of each change."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

from aiserver.kit.db import Connection, Database, DriverError, Row, StorageError, open_file

Rows = list[Row]


class Statement(NamedTuple):
    """`?` stands for a parameter; what it changed is told by RETURNING."""

    sql: str
    parameters: Sequence[Any] = ()


class Tables(Protocol):
    """Times are text, flags are bool. Whatever cannot be done now raises StorageError."""

    async def read(self, sql: str, *parameters: Any) -> Rows: ...

    async def read_long(self, sql: str, *parameters: Any) -> Rows:
        """For what looks at so many rows that nobody may have to wait for it."""
        ...

    async def write(
        self,
        *statements: Statement,
        moves: str | None = None,
        check: Callable[[list[Rows]], object] | None = None,
    ) -> list[Rows]:
        """The rows of each statement; all of them count, or none.

        `moves` names the revision that tells other processes of it. What `check` raises before the
        commit undoes everything. Raises IntegrityError.
        """
        ...

    async def revision(self, name: str) -> int: ...

    def changed(self) -> bool:
        """Whether a revision may have moved since this was last asked."""
        ...

    def version(self) -> int | None:
        """Another one after every commit of anybody; None where that cannot be told at once."""
        ...


MOVE = "UPDATE revisions SET number = number + 1 WHERE name = ?"


class SqliteTables:
    """Implements `Tables`; the database is closed by its owner."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def read(self, sql: str, *parameters: Any) -> Rows:
        return self._db.read(sql, parameters)

    async def read_long(self, sql: str, *parameters: Any) -> Rows:
        return await asyncio.to_thread(self._read_apart, sql, parameters)

    async def write(
        self,
        *statements: Statement,
        moves: str | None = None,
        check: Callable[[list[Rows]], object] | None = None,
    ) -> list[Rows]:
        def work(connection: Connection) -> list[Rows]:
            found = [connection.rows(sql, parameters) for sql, parameters in statements]
            if check is not None:
                check(found)
            if moves is not None:
                connection.execute(MOVE, (moves,))
            return found

        return await self._db.write(work)

    async def revision(self, name: str) -> int:
        return int(self._db.read("SELECT number FROM revisions WHERE name = ?", (name,))[0][0])

    def changed(self) -> bool:
        return self._db.changed()

    def version(self) -> int | None:
        return self._db.version()

    def _read_apart(self, sql: str, parameters: Sequence[Any]) -> Rows:
        try:
            with closing(open_file(self._db.path, read_only=True)) as connection:
                return connection.execute(sql, parameters).fetchall()
        except DriverError as error:
            raise StorageError(f"Cannot read {self._db.path.name}: {error}.") from error
