"""What one transaction writes to a month's file."""

from collections.abc import Iterable, Sequence

from aiserver.history.archive import Content
from aiserver.history.rollups import SUMS, Tally
from aiserver.history.rows import COLUMNS
from aiserver.kit.db import Raw, Row, in_blocks

_INSERT = f"INSERT INTO calls ({', '.join(COLUMNS)})"
_CONTENTS = "INSERT INTO contents (call_id, prompt, answer)"
_RUN = "INSERT INTO runs VALUES (?, ?) ON CONFLICT DO UPDATE SET calls = calls + excluded.calls"
_UPSERT = "ON CONFLICT DO UPDATE SET " + ", ".join(f"{n} = {n} + excluded.{n}" for n in SUMS)


class FilePage:
    """Implements `Page`."""

    def __init__(self, connection: Raw) -> None:
        self._connection = connection
        connection.execute("SAVEPOINT rows")

    def insert(self, chunks: Iterable[tuple[list[Row], list[Content]]]) -> None:
        # Between two statements other threads have their turn, so a chunk is what they wait for.
        execute = self._connection.execute
        for rows, contents in chunks:
            for sql, values in in_blocks(_INSERT, rows):
                execute(sql, values)
            for sql, values in in_blocks(_CONTENTS, contents):
                execute(sql, values)

    def undo(self) -> None:
        self._connection.execute("ROLLBACK TO rows")

    def known(self, ids: Sequence[int]) -> set[int]:
        sql = "SELECT 1 FROM calls WHERE id = ?"
        execute = self._connection.execute
        return {id for id in ids if execute(sql, (id,)).fetchone() is not None}

    def add(self, tally: Tally, *, run: int, calls: int) -> None:
        hours, days = tally.groups()
        for insert, rows in (("INSERT INTO hours", hours), ("INSERT INTO days", days)):
            for sql, values in in_blocks(insert, rows, tail=_UPSERT):
                self._connection.execute(sql, values)
        self._connection.execute(_RUN, (run, calls))
