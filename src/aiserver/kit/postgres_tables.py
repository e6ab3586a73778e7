"""The small tables in PostgreSQL, whose processes and nodes tell each other of a change."""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any

from aiserver.kit.clock import Clock
from aiserver.kit.postgres import Listener, Postgres, writable
from aiserver.kit.tables import MOVE, Rows, Statement

_CHANNEL = "ai_server_changes"
_MARK = re.compile(r"\?")
# What was said while nobody could hear it is noticed after so many seconds at the latest.
_LOOK_SECONDS = 5.0


class PostgresTables:
    """Implements `Tables`; the database is closed by its owner."""

    def __init__(self, database: Postgres, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._moved = True
        self._looked = clock.monotonic()

    def listener(self, heard: Callable[[], None]) -> Listener:
        """Hears of changes at once; its `run` is a loop for `Background`."""

        def hear(*_: str) -> None:
            self._moved = True
            heard()

        return Listener(self._db, (_CHANNEL,), heard=hear, again=hear)

    async def read(self, sql: str, *parameters: Any) -> Rows:
        found = await self._db.read(_numbered(sql), *map(_storable, parameters))
        return [tuple(row) for row in found]

    async def read_long(self, sql: str, *parameters: Any) -> Rows:
        return await self.read(sql, *parameters)

    async def write(
        self,
        *statements: Statement,
        moves: str | None = None,
        check: Callable[[list[Rows]], object] | None = None,
    ) -> list[Rows]:
        found: list[Rows] = []
        async with self._db.transaction() as transaction:
            for sql, parameters in statements:
                rows = await transaction.rows(_numbered(sql), *map(_storable, parameters))
                found.append([tuple(row) for row in rows])
            if check is not None:
                check(found)
            if moves is not None:
                await transaction.execute(_numbered(MOVE), moves)
                await transaction.execute("SELECT pg_notify($1, $2)", _CHANNEL, moves)
        self._moved = self._moved or moves is not None
        return found

    async def revision(self, name: str) -> int:
        rows = await self.read("SELECT number FROM revisions WHERE name = ?", name)
        return int(rows[0][0])

    def changed(self) -> bool:
        now = self._clock.monotonic()
        if not self._moved and now - self._looked < _LOOK_SECONDS:
            return False
        self._moved, self._looked = False, now
        return True

    def version(self) -> int | None:
        return None


@lru_cache(maxsize=256)
def _numbered(sql: str) -> str:
    numbers = count(1)
    return _MARK.sub(lambda _: f"${next(numbers)}", sql)


def _storable(value: Any) -> Any:
    return writable(value) if isinstance(value, str) else value
