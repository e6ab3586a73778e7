"""SQLite: reads inline on the caller's thread, all writes through one thread and one queue."""

import asyncio
import queue
import sqlite3 as stdlib_sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote

if TYPE_CHECKING or sys.platform != "linux":
    sqlite3 = stdlib_sqlite3
else:
    # Bundles a SQLite without the WAL-reset bug that older system libraries have.
    import pysqlite3 as sqlite3

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Sequence[Any]

OLDEST_SQLITE = (3, 51, 3)
_BUSY_SECONDS = 2.0
_QUEUE_BOUND = 10_000
_BATCH_BOUND = 500
# Each statement lets other threads run once; past 64 rows it gets no faster.
_ROWS_A_STATEMENT = (64, 8, 1)
_BROKEN_FILE = (11, 26)  # SQLITE_CORRUPT, SQLITE_NOTADB


class StorageError(Exception):
    """The database cannot do this now: locked, read-only, full or broken. Nothing was changed."""


class Connection:
    """What a write sees: statements inside the transaction of its batch."""

    def __init__(self, raw: "stdlib_sqlite3.Connection") -> None:
        self._raw = raw

    def execute(self, sql: str, parameters: Parameters = ()) -> int:
        """The number of rows changed."""
        return self._raw.execute(sql, parameters).rowcount

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        return self._raw.execute(sql, parameters).fetchall()


class _Write(NamedTuple):
    work: Callable[[Connection], Any]
    done: "Future[Any]"


class Database:
    """One SQLite file. Open it with `Database.open`; close it with `close`."""

    def __init__(self, path: Path, *, synchronous: str, busy_seconds: float) -> None:
        self.path = path
        self._synchronous = synchronous
        self._busy_seconds = busy_seconds
        self._reader = self._connect(read_only=True)
        self._seen = self._data_version()
        self._queue: queue.Queue[_Write | None] = queue.Queue(_QUEUE_BOUND)
        self._writer = threading.Thread(target=self._write_all, name=f"db-{path.stem}", daemon=True)
        self._writer.start()

    @classmethod
    def open(
        cls, path: Path, *, synchronous: str = "FULL", busy_seconds: float = _BUSY_SECONDS
    ) -> "Database":
        """Raises StorageError when the file cannot be used."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StorageError(
                f"SQLite {sqlite3.sqlite_version} is too old; 3.51.3 or newer is needed."
            )
        try:
            _prepare(path)
            return cls(path, synchronous=synchronous, busy_seconds=busy_seconds)
        except sqlite3.Error as error:
            raise StorageError(f"Cannot open the database {path}: {error}.") from error

    def read(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Rows, at once; for the short look-ups of one process."""
        try:
            return self._reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"Cannot read {self.path.name}: {error}.") from error

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in the writer thread; returns after the commit. Raises StorageError.

        An exception of `work` undoes its own changes, not those of its batch.
        """
        done: Future[T] = Future()
        try:
            self._queue.put_nowait(_Write(work, done))
        except queue.Full:
            raise StorageError("Too many writes are waiting for the disk.") from None
        return await asyncio.wrap_future(done)

    def changed(self) -> bool:
        """Whether anyone, this process too, committed since this was last asked."""
        version = self._data_version()
        changed = version != self._seen
        self._seen = version
        return changed

    def close(self) -> None:
        """Finishes the writes that are waiting, then closes the file. Again: does nothing."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()
            self._reader.close()
            self._fold_log()

    def _fold_log(self) -> None:
        # A read-only connection that closes last leaves the log beside the file.
        with suppress(sqlite3.Error):
            connection = self._connect()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()

    def _data_version(self) -> int:
        return int(self.read("PRAGMA data_version")[0][0])

    def _connect(self, *, read_only: bool = False) -> "stdlib_sqlite3.Connection":
        mode = "ro" if read_only else "rw"
        connection = sqlite3.connect(
            f"file:{self.path}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_seconds,
        )
        if not read_only:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _write_all(self) -> None:
        connection: stdlib_sqlite3.Connection | None = None
        while (first := self._queue.get()) is not None:
            batch, last = self._gather(first)
            try:
                connection = connection or self._connect()
                _commit(connection, batch)
            except sqlite3.Error as error:
                _fail(batch, StorageError(f"Cannot write {self.path.name}: {error}."))
            if last:
                break
        if connection is not None:
            connection.close()

    def _gather(self, first: _Write) -> tuple[list[_Write], bool]:
        batch = [first]
        while len(batch) < _BATCH_BOUND:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False


def _prepare(path: Path, *, page_size: int = 4096) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
    try:
        connection.execute(f"PRAGMA page_size={page_size}")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"{path} is on a file system without shared memory (a network share?). "
                "Put APP_DATA on a local disk."
            )
    finally:
        connection.close()


def _commit(connection: "stdlib_sqlite3.Connection", batch: list[_Write]) -> None:
    outcomes: list[tuple[_Write, Any, Exception | None]] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for write in batch:
            connection.execute("SAVEPOINT one")
            try:
                outcomes.append((write, write.work(Connection(connection)), None))
            except Exception as error:  # a write's own failure belongs to its caller alone
                if not connection.in_transaction:
                    # A full disk ends the whole transaction: nothing of the batch is left.
                    raise
                connection.execute("ROLLBACK TO one")
                outcomes.append((write, None, _mapped(error)))
            connection.execute("RELEASE one")
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    for write, result, failure in outcomes:
        _settle(write.done, result, failure)


def _mapped(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
        return StorageError(f"Cannot write: {error}.")
    return error


def _fail(batch: list[_Write], failure: Exception) -> None:
    for write in batch:
        _settle(write.done, None, failure)


def _settle(done: "Future[Any]", result: Any, failure: Exception | None) -> None:
    if not done.set_running_or_notify_cancel():
        return
    if failure is None:
        done.set_result(result)
    else:
        done.set_exception(failure)


driver = sqlite3
IntegrityError = sqlite3.IntegrityError


def connect_for_migration(path: Path) -> Any:
    """A plain connection of the same library: two SQLite libraries on one file corrupt it."""
    return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)


DriverError = sqlite3.Error
Raw = stdlib_sqlite3.Connection


def open_file(path: Path, *, read_only: bool = False, page_size: int = 4096) -> Raw:
    """A connection for one thread at a time; one that writes makes the file, in WAL mode.

    What it commits outlives the process, the last of it not a power cut. `page_size`, in bytes,
    counts for a new file. Raises DriverError, StorageError or OSError.
    """
    if not read_only:
        _prepare(path, page_size=page_size)
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={'ro' if read_only else 'rw'}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_BUSY_SECONDS,
    )
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def is_broken(error: Exception) -> bool:
    """Whether the file itself is no good, so that trying again is of no use."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN_FILE


def in_blocks(head: str, rows: Sequence[Row], *, tail: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Few statements `{head} VALUES (?, ...), ... {tail}` for many rows of one width."""
    start = 0
    for count in _ROWS_A_STATEMENT:
        block = f"({', '.join('?' * len(rows[0]))})" if rows else ""
        sql = f"{head} VALUES {', '.join([block] * count)} {tail}"
        while len(rows) - start >= count:
            values: list[Any] = []
            for row in rows[start : start + count]:
                values += row
            yield sql, values
            start += count
