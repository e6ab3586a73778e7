"""Where history is kept, by UTC months: what the writer and the reader ask of either store."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Protocol

from aiserver.history.dialect import Dialect
from aiserver.history.rollups import Tally
from aiserver.kit.db import Row, StorageError

# A call's number, its prompt, its answer.
Content = tuple[int, bytes | None, bytes | None]


class NewerFile(StorageError):
    """A month was written by a newer version of the server; it is left as it is."""


class TooSlow(StorageError):
    """A question took longer than it may."""


def month_of(at_ms: int) -> str:
    """The UTC month of a moment, as 2026-11."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def months_before(month: str, count: int) -> str:
    year, number = int(month[:4]), int(month[5:])
    years, index = divmod(year * 12 + number - 1 - count, 12)
    return f"{years:04}-{index + 1:02}"


class Page(Protocol):
    """A transaction in one month; raises StorageError, DriverError or ValueError."""

    def insert(self, chunks: Iterable[tuple[list[Row], list[Content]]]) -> None:
        """Rows of COLUMNS, with what is kept of their bodies."""
        ...

    def undo(self) -> None:
        """Takes back whatever was inserted, also when that failed."""
        ...

    def known(self, ids: Sequence[int]) -> set[int]:
        """Those that the month has."""
        ...

    def add(self, tally: Tally, *, run: int, calls: int) -> None:
        """Adds to the month's sums, and to what this run of a process wrote; comes last."""
        ...


class Month(Protocol):
    """One month to read, in tables `calls`, `contents`, `hours`, `days` and `runs`."""

    @property
    def dialect(self) -> Dialect: ...

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """Parameters are `?`. Raises DriverError, TooSlow or StorageError."""
        ...


class Shelf(Protocol):
    """The months that can be read; for one thread, but for `cancel`."""

    @property
    def last(self) -> str:
        """What was looked at last, in words."""
        ...

    def begin(self, until: float) -> None:
        """A question starts; `until`, on the monotonic clock, it has taken too long."""
        ...

    def overdue(self) -> bool: ...

    def months(self) -> list[str]:
        """Oldest first. Raises StorageError."""
        ...

    def open(self, month: str) -> Month | None:
        """None where there is no such month yet, or only a newer version can read it.

        Raises StorageError or DriverError.
        """
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes by month. Raises StorageError."""
        ...

    def cancel(self) -> None:
        """Ends the question that is being answered."""
        ...

    def close(self) -> None: ...


class Archive(Protocol):
    """All months. Everything but `shelf` is for the writer's thread alone.

    `broken` counts what was set aside because nothing could be written to it any more.
    """

    @property
    def broken(self) -> int: ...

    def prepare(self) -> None:
        """Brings what is there to this version's schema."""
        ...

    def page(self, month: str) -> AbstractContextManager[Page]:
        """Commits at the end of the block; whatever leaves it early undoes everything.

        Raises NewerFile, StorageError, DriverError or OSError.
        """
        ...

    def mended(self, month: str, error: Exception) -> bool:
        """After a failed page: whether it is of use to try the same at once."""
        ...

    def fitting(self, rows: list[Row]) -> list[Row]:
        """The same rows, where callers wrote nothing that the store refuses."""
        ...

    def plain(self, rows: list[Row]) -> list[Row]:
        """The same rows, of nothing but values that the store takes."""
        ...

    def drop_before(self, month: str) -> list[str]:
        """Forgets all months before this one; which. Raises StorageError or OSError."""
        ...

    def written_by(self, run: int) -> int:
        """How many rows a run of a process left in all months. Raises StorageError."""
        ...

    def shelf(self) -> Shelf: ...

    def close(self) -> None: ...
