"""SQLite: reads inline on the caller's thread, all writes through one thread and one queue."""

import asyncio
import queue
import sqlite3 as stdlib_sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
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
    done: "asyncio.Future[Any]"
    single: bool


class _Outcome(NamedTuple):
    done: "asyncio.Future[Any]"
    result: Any
    failure: Exception | None


class Database:
    """One SQLite file. Open it with `Database.open`; close it with `close`."""

    def __init__(self, path: Path, *, synchronous: str, busy_seconds: float) -> None:
        self.path = path
        self._synchronous = synchronous
        self._busy_seconds = busy_seconds
        self._reader = self._connect(read_only=True)
        self._seen = self.version()
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
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

    async def write(self, work: Callable[[Connection], T], *, single: bool = False) -> T:
        """Runs `work` in the writer thread; returns after the commit. Raises StorageError.

        An exception of `work` undoes its own changes, not those of its batch. `single`: it is one
        statement, which needs no transaction of its own.
        """
        if self._queue.qsize() >= _QUEUE_BOUND:
            raise StorageError("Too many writes are waiting for the disk.")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write(work, done, single))
        return await done

    def changed(self) -> bool:
        """Whether anyone, this process too, committed since this was last asked."""
        version = self.version()
        changed = version != self._seen
        self._seen = version
        return changed

    def version(self) -> int:
        """Another one after every commit of anyone."""
        return int(self.read("PRAGMA data_version")[0][0])

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
                outcomes = _commit(connection, batch)
            except sqlite3.Error as error:
                failure = StorageError(f"Cannot write {self.path.name}: {error}.")
                outcomes = [_Outcome(write.done, None, failure) for write in batch]
            _tell(outcomes)
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


def _commit(connection: "stdlib_sqlite3.Connection", batch: list[_Write]) -> list[_Outcome]:
    if len(batch) == 1 and batch[0].single:
        return [_single(connection, batch[0])]
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Alone it has nobody whose changes must outlive its own.
        one = _alone if len(batch) == 1 else _in_turn
        outcomes = [one(connection, write) for write in batch]
        if connection.in_transaction:
            connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _single(connection: "stdlib_sqlite3.Connection", write: _Write) -> _Outcome:
    try:
        return _Outcome(write.done, write.work(Connection(connection)), None)
    except Exception as error:  # a write's own failure belongs to its caller
        return _Outcome(write.done, None, _mapped(error))


def _alone(connection: "stdlib_sqlite3.Connection", write: _Write) -> _Outcome:
    try:
        return _Outcome(write.done, write.work(Connection(connection)), None)
    except Exception as error:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK")
        return _Outcome(write.done, None, _mapped(error))


def _in_turn(connection: "stdlib_sqlite3.Connection", write: _Write) -> _Outcome:
    connection.execute("SAVEPOINT one")
    try:
        outcome = _Outcome(write.done, write.work(Connection(connection)), None)
    except Exception as error:  # a write's own failure belongs to its caller alone
        if not connection.in_transaction:
            # A full disk ends the whole transaction: nothing of the batch is left.
            raise
        connection.execute("ROLLBACK TO one")
        outcome = _Outcome(write.done, None, _mapped(error))
    connection.execute("RELEASE one")
    return outcome


def _mapped(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
        return StorageError(f"Cannot write: {error}.")
    return error


def _tell(outcomes: list[_Outcome]) -> None:
    """In the loops that wait; each is woken once."""
    for loop, told in groupby(outcomes, lambda outcome: outcome.done.get_loop()):
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, list(told))


def _settle(outcomes: list[_Outcome]) -> None:
    for done, result, failure in outcomes:
        if done.done():
            continue
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
        while len(rows) - start >= count:
            values: list[Any] = []
            for row in rows[start : start + count]:
                values += row
            yield _block(head, len(rows[0]), count, tail), values
            start += count


@lru_cache(maxsize=128)
def _block(head: str, width: int, count: int, tail: str) -> str:
    row = f"({', '.join('?' * width)})"
    return f"{head} VALUES {', '.join([row] * count)} {tail}"
