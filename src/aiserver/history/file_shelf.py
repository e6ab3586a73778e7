"""Reads the month files, few of them open at a time."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from aiserver.history.archive import NewerFile
from aiserver.history.dialect import SQLITE, Dialect
from aiserver.kit.db import DriverError, Raw, Row, StorageError

_MOST_OPEN = 4
_STEPS_A_LOOK = 100_000


class NotBegun(StorageError):
    """A month's file is being made and has no tables yet, so that no call is in it."""


class Files(Protocol):
    """The part of the archive that is read."""

    def path(self, month: str) -> Path: ...
    def months(self) -> list[str]: ...
    def sizes(self) -> dict[str, int]: ...

    def reader(self, month: str) -> Raw:
        """Raises NewerFile, NotBegun, StorageError or DriverError."""
        ...


class FileMonth:
    """Implements `Month`."""

    def __init__(self, connection: Raw, inode: int) -> None:
        self.connection = connection
        self.inode = inode

    @property
    def dialect(self) -> Dialect:
        return SQLITE

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        return self.connection.execute(sql, values).fetchall()


class FileShelf:
    """Implements `Shelf`; looks at the clock while SQLite works."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: OrderedDict[str, FileMonth] = OrderedDict()
        self._until = 0.0
        self.last = ""

    def begin(self, until: float) -> None:
        self._until = until

    def overdue(self) -> bool:
        return time.monotonic() > self._until

    def months(self) -> list[str]:
        return self._files.months()

    def sizes(self) -> dict[str, int]:
        return self._files.sizes()

    def open(self, month: str) -> FileMonth | None:
        path = self._files.path(month)
        self.last = path.name
        try:
            inode = path.stat().st_ino
        except OSError:
            inode = 0
        held = self._open.pop(month, None)
        if held is not None and held.inode != inode:
            # Dropped, or set aside and begun anew.
            held.connection.close()
            held = None
        if not inode:
            return None
        if held is None:
            try:
                held = FileMonth(self._files.reader(month), inode)
            except (NewerFile, NotBegun):
                return None
            held.connection.set_progress_handler(self.overdue, _STEPS_A_LOOK)
        self._open[month] = held
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].connection.close()
        return held

    def cancel(self) -> None:
        self._until = 0.0

    def close(self) -> None:
        for month in self._open.values():
            with suppress(DriverError):
                month.connection.close()
        self._open.clear()
