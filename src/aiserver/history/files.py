"""History in files, one a UTC month: their schema, their names, how they begin and end."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import re
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from aiserver.history.archive import NewerFile
from aiserver.history.file_page import FilePage
from aiserver.history.file_shelf import FileShelf, NotBegun
from aiserver.history.rollups import SUMS
from aiserver.history.rows import COLUMNS, plain
from aiserver.kit import log
from aiserver.kit.db import DriverError, Raw, Row, StorageError, is_broken, open_file

_FILE = re.compile(r"history-(\d{4}-\d{2})\.db")
_OF_MONTH = re.compile(r"history-(\d{4}-\d{2})\.db(-wal|-shm|\.broken-.+)?")
_BESIDE = ("", "-wal", "-shm")
_MOST_OPEN = 2
# Measured together: a fifth less CPU a row than with pages of 4 kB and a checkpoint after 4 MB.
_PAGE_BYTES, _PAGES_A_CHECKPOINT = 8192, 2000
_log = log.get("history")

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


class FileArchive:
    """Implements `Archive`: the month files in one folder, for one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken = 0
        self._writers: OrderedDict[str, Raw] = OrderedDict()

    def prepare(self) -> None:
        for month in self.months():
            try:
                self.writer(month)
            except (StorageError, DriverError, OSError) as error:
                # Found again, and dealt with, when something is to be written to it.
                _log.warning("history_file_unusable", month=month, problem=str(error))

    @contextmanager
    def page(self, month: str) -> Generator[FilePage]:
        connection = self.writer(month)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield FilePage(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def mended(self, month: str, error: Exception) -> bool:
        """A broken file is set aside, so that a new one can begin."""
        if not is_broken(error):
            self.release(month)
            return False
        target = self.set_aside(month)
        self.broken += 1
        _log.error("history_file_broken", month=month, kept_as=target.name, problem=str(error))
        return True

    def fitting(self, rows: list[Row]) -> list[Row]:
        return rows

    def plain(self, rows: list[Row]) -> list[Row]:
        return list(map(plain, rows))

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

    def shelf(self) -> FileShelf:
        return FileShelf(self)

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
