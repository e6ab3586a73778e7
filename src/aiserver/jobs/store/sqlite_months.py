"""The archive's files, one a UTC month: jobs-2026-11.db."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

import re
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from aiserver.jobs.job import JOB_COLUMNS
from aiserver.jobs.store.sqlite_rows import AMONG, COLUMNS, listed
from aiserver.kit.db import DriverError, Raw, Row, StorageError, in_blocks, open_file

_FILE = re.compile(r"jobs-(\d{4}-\d{2})\.db")
_BESIDE = ("", "-wal", "-shm")
_VERSION = 1
_SCHEMA = (
    f"CREATE TABLE jobs (id INTEGER PRIMARY KEY, {', '.join(JOB_COLUMNS[1:])})",
    "CREATE INDEX jobs_content ON jobs (ended) WHERE request IS NOT NULL",
    f"PRAGMA user_version = {_VERSION}",
)
_PUT = f"INSERT OR REPLACE INTO jobs ({COLUMNS})"
_SOME = f"SELECT {COLUMNS} FROM jobs WHERE id {AMONG}"
_BLANK = f"""
UPDATE jobs SET request = NULL, files = NULL, result = NULL, logs = '' WHERE id {AMONG}"""
_CONTENT = """
SELECT id, files FROM jobs INDEXED BY jobs_content
WHERE request IS NOT NULL AND ended < ? ORDER BY ended LIMIT ?"""


class MonthFiles:
    """Every call reads or writes at once, for a thread; writes one at a time.

    Each raises StorageError.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def months(self) -> list[str]:
        """Oldest first."""
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"Cannot read {self._folder}: {error}.") from error
        return sorted(found[1] for name in names if (found := _FILE.fullmatch(name)))

    def put(self, month: str, rows: Sequence[Row]) -> None:
        """Adds or replaces; outlives a power cut."""
        with self._writing(month) as connection:
            for sql, values in in_blocks(_PUT, rows):
                connection.execute(sql, values)

    def remove(self, month: str, ids: Sequence[int]) -> None:
        with self._writing(month) as connection:
            connection.execute(f"DELETE FROM jobs WHERE id {AMONG}", (listed(ids),))

    def get(self, month: str, ids: Sequence[int]) -> list[Row]:
        return self.read(month, _SOME, (listed(ids),))

    def largest_id(self) -> int:
        sql = "SELECT ifnull(max(id), 0) FROM jobs"
        return max((row[0] for month in self.months() for row in self.read(month, sql)), default=0)

    def blank(self, month: str, before: int, most: int) -> list[str | None]:
        """The `files` of each job that lost its content."""
        if not self.read(month, _CONTENT, (before, 1)):
            return []
        with self._writing(month) as connection:
            rows = connection.execute(_CONTENT, (before, most)).fetchall()
            connection.execute(_BLANK, (listed(row[0] for row in rows),))
        return [row[1] for row in rows]

    def read(self, month: str, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """Nothing where there is no file."""
        path = self._path(month)
        if not path.exists():
            return []
        try:
            with closing(open_file(path, read_only=True)) as connection:
                _check(connection, path)
                return connection.execute(sql, tuple(values)).fetchall()
        except DriverError as error:
            raise StorageError(f"Cannot read {path.name}: {error}.") from error

    def drop(self, month: str) -> None:
        path = self._path(month)
        try:
            for end in _BESIDE:
                path.with_name(path.name + end).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot delete {path.name}: {error}.") from error

    def _path(self, month: str) -> Path:
        return self._folder / f"jobs-{month}.db"

    @contextmanager
    def _writing(self, month: str) -> Generator[Raw]:
        path = self._path(month)
        try:
            with closing(open_file(path)) as connection:
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in _SCHEMA:
                        connection.execute(statement)
                _check(connection, path)
                yield connection
                connection.execute("COMMIT")
        except (DriverError, OSError) as error:
            raise StorageError(f"Cannot write {path.name}: {error}.") from error


def _check(connection: Raw, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise StorageError(
            f"{path.name} is at schema {version}, newer than this version's {_VERSION}. "
            "Start the newer version, or move the file away."
        )
