"""The files of history, one a UTC month: their schema, their names, how they begin and end."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import re
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from aiserver.history.rollups import SUMS
from aiserver.history.rows import COLUMNS
from aiserver.kit.db import DriverError, Raw, StorageError, open_file

_FILE = re.compile(r"history-(\d{4}-\d{2})\.db")
_OF_MONTH = re.compile(r"history-(\d{4}-\d{2})\.db(-wal|-shm|\.broken-.+)?")
_BESIDE = ("", "-wal", "-shm")
_MOST_OPEN = 2
# Measured together: a fifth less CPU a row than with pages of 4 kB and a checkpoint after 4 MB.
_PAGE_BYTES, _PAGES_A_CHECKPOINT = 8192, 2000

_FROM_DETAIL = (
    *("request_id", "address", "method", "path", "asked", "streamed", "message", "attempts"),
    *("cached", "cache_written", "reasoning", "first_token_ms", "waited_ms", "tag", "ref_id"),
)
_SUMS = ", ".join(f"{name} INTEGER NOT NULL" for name in SUMS)
# What brings a file from each version to the next; its number stands in the file's header. `log`
# shows the members of `detail` as columns too. A row of `runs` counts what one process wrote.
UPGRADES = (
    (
        f"CREATE TABLE calls (id INTEGER PRIMARY KEY, {', '.join(COLUMNS[1:])})",
        "CREATE TABLE contents (call_id INTEGER PRIMARY KEY, prompt BLOB, answer BLOB)",
        f"""CREATE TABLE hours (hour INTEGER, model TEXT, provider TEXT, {_SUMS},
            PRIMARY KEY (hour, model, provider)) WITHOUT ROWID""",
        f"""CREATE TABLE days (day INTEGER, key_id INTEGER, model TEXT, {_SUMS},
            PRIMARY KEY (day, key_id, model)) WITHOUT ROWID""",
        "CREATE TABLE runs (run INTEGER PRIMARY KEY, calls INTEGER NOT NULL)",
        f"""CREATE VIEW log AS SELECT {", ".join(COLUMNS[:-1])},
            {", ".join(f"detail ->> '{name}' AS {name}" for name in _FROM_DETAIL)} FROM calls""",
    ),
)


class NewerFile(StorageError):
    """A month's file was written by a newer version of the server; it is left as it is."""


class NotBegun(StorageError):
    """A month's file is being made and has no tables yet, so that no call is in it."""


def month_of(at_ms: int) -> str:
    """The UTC month of a moment, as 2026-11."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def months_before(month: str, count: int) -> str:
    year, number = int(month[:4]), int(month[5:])
    years, index = divmod(year * 12 + number - 1 - count, 12)
    return f"{years:04}-{index + 1:02}"


class Archive:
    """The month files in one folder. Connections to write belong to one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: OrderedDict[str, Raw] = OrderedDict()

    def path(self, month: str) -> Path:
        return self.folder / f"history-{month}.db"

    def months(self) -> list[str]:
        """Oldest first. Raises StorageError."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"Cannot read {self.folder}: {error}.") from error
        return sorted(found[1] for name in names if (found := _FILE.fullmatch(name)))

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by month, with what is in the write-ahead log."""
        return {month: sum(map(_size, self._files(month))) for month in self.months()}

    def writer(self, month: str) -> Raw:
        """A connection to write at this version's schema.

        Raises NewerFile, StorageError, DriverError or OSError.
        """
        if month in self._writers:
            self._writers.move_to_end(month)
            return self._writers[month]
        connection = open_file(self.path(month), page_size=_PAGE_BYTES)
        try:
            connection.execute(f"PRAGMA wal_autocheckpoint={_PAGES_A_CHECKPOINT}")
            _upgrade(connection, self.path(month))
        except BaseException:
            connection.close()
            raise
        self._writers[month] = connection
        if len(self._writers) > _MOST_OPEN:
            self._writers.popitem(last=False)[1].close()
        return connection

    def release(self, month: str) -> None:
        """Closes what `writer` opened, if it did."""
        connection = self._writers.pop(month, None)
        if connection is not None:
            with suppress(DriverError):
                connection.close()

    def set_aside(self, month: str) -> Path:
        """Renames a broken file, its log with it, so that a new one can begin; to which name."""
        self.release(month)
        number = 1
        while (target := self.folder / f"history-{month}.db.broken-{number}").exists():
            number += 1
        for file, end in zip(self._files(month), _BESIDE, strict=True):
            with suppress(FileNotFoundError):
                file.rename(target.with_name(target.name + end))
        return target

    def drop_before(self, month: str) -> list[str]:
        """Deletes the files of all months before this one, broken ones too; which months."""
        dropped: set[str] = set()
        for path in self.folder.iterdir():
            found = _OF_MONTH.fullmatch(path.name)
            if found is not None and found[1] < month:
                self.release(found[1])
                path.unlink(missing_ok=True)
                dropped.add(found[1])
        return sorted(dropped)

    def written_by(self, run: int) -> int:
        """How many rows a process left in all files; those that cannot be read count nothing."""
        total = 0
        for month in self.months():
            with suppress(DriverError, StorageError):
                connection = self.reader(month)
                try:
                    sql = "SELECT calls FROM runs WHERE run = ?"
                    total += sum(calls for (calls,) in connection.execute(sql, (run,)))
                finally:
                    connection.close()
        return total

    def reader(self, month: str) -> Raw:
        """A connection to read, for one thread.

        Raises NewerFile, NotBegun, StorageError or DriverError.
        """
        connection = open_file(self.path(month), read_only=True)
        try:
            version = _version(connection)
            if version > len(UPGRADES):
                raise _newer(self.path(month), version)
            if version == 0:
                raise NotBegun(f"{self.path(month).name} is being made; try again.")
            if version < len(UPGRADES):
                raise StorageError(f"{self.path(month).name} is not upgraded yet; try again.")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        for month in list(self._writers):
            self.release(month)

    def _files(self, month: str) -> list[Path]:
        path = self.path(month)
        return [path.with_name(path.name + end) for end in _BESIDE]


def _version(connection: Raw) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(connection: Raw, path: Path) -> None:
    version = _version(connection)
    if version > len(UPGRADES):
        raise _newer(path, version)
    for number, statements in enumerate(UPGRADES[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except DriverError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _newer(path: Path, version: int) -> NewerFile:
    return NewerFile(
        f"{path.name} is at schema {version}, newer than this version's {len(UPGRADES)}; "
        "its calls are not recorded. Start the newer version, or move the file away."
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
