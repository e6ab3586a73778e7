"""PostgreSQL: a bounded pool of connections, and one that listens and comes back by itself."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import asyncpg
from asyncpg import Record

from aiserver.kit import log
from aiserver.kit.db import IntegrityError, StorageError

__all__ = ["ConnectionCut", "Listener", "Postgres", "Record", "Rows", "TookTooLong", "Transaction"]

OLDEST_SERVER = 14

_CONNECTIONS = 8
STATEMENT_SECONDS = 10.0
PATIENCE_SECONDS = 5.0
_MOST_WAITING = 1_000
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_ALIVE_SECONDS = 30.0
_CACHED_STATEMENTS = 200
_TRIES = 3
_APART_SECONDS, _chance = 0.2, random.random

_CUT = (OSError, EOFError, asyncpg.InterfaceError, asyncpg.InternalClientError)
TROUBLE = (asyncpg.PostgresError, *_CUT)
# The server starts, stops, recovers or has no connection left: it may take us in a moment.
_AWAY = ("57P", "08", "53300")
# A deadlock or a lost race: the server undid the whole statement.
_UNDONE = ("40P01", "40001")
_CONSTRAINT = "23"
_VALUE = "22"
_USED_UP = "2200H"

_SESSION = {
    "application_name": "ai-server",
    "timezone": "UTC",
    "jit": "off",
    # A queue grows from nothing to much in seconds: a plan made while it was empty would read it
    # whole ever after. Without these three a plan goes through an index wherever there is one.
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off"),
}
# Half of its functions have no types.
_driver: Any = asyncpg
_log = log.get("postgres")
Rows = list[Record]


class ConnectionCut(StorageError):
    """PostgreSQL ended the connection; whether it did what it was told is not known."""


class TookTooLong(StorageError):
    """A statement did not end in its time, or was told to stop."""


class Transaction:
    """Statements that count together, or not at all."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    async def rows(self, sql: str, *parameters: Any) -> Rows:
        return await self._raw.fetch(sql, *parameters)

    async def execute(self, sql: str, *parameters: Any) -> int:
        """The number of rows changed."""
        return _count(await self._raw.execute(sql, *parameters))

    async def script(self, sql: str) -> None:
        """Several statements without parameters, however long they take."""
        await self._raw.execute(f"SET LOCAL statement_timeout = 0;\n{sql}", timeout=None)

    async def copy(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Many new rows of one table, the fastest way."""
        await self._raw.copy_records_to_table(table, columns=columns, records=rows)


class Postgres:
    """One PostgreSQL database. Open it with `Postgres.open`; close it with `close`.

    Raises StorageError for whatever the server cannot do now, IntegrityError for a broken
    constraint, ValueError for a value that no column can hold. After a restart of the server it
    connects again by itself.
    """

    def __init__(self, url: str, *, connections: int, seconds: float, patience: float) -> None:
        self._url = url
        self._connections = connections
        self._seconds = seconds
        self._patience = patience
        self._waiting = 0
        self._pool: Any = _driver.create_pool(
            min_size=0,
            max_size=connections,
            connect=self._connect,
            reset=_keep_as_it_is,
            max_inactive_connection_lifetime=300,
        )

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        connections: int = _CONNECTIONS,
        statement_seconds: float = STATEMENT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> "Postgres":
        """Raises StorageError when the server cannot be used, or is none of ours.

        A statement may take `statement_seconds`; one that finds no connection waits
        `patience_seconds` for the server to come, or come back.
        """
        opened = cls(
            url, connections=connections, seconds=statement_seconds, patience=patience_seconds
        )
        await opened._pool
        try:
            await opened._refuse_unusable()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def read(self, sql: str, *parameters: Any) -> Rows:
        """Rows of a statement that does no harm when it is repeated, as it is when it was cut."""
        try:
            return await self.rows(sql, *parameters)
        except ConnectionCut:
            return await self.rows(sql, *parameters)

    async def rows(self, sql: str, *parameters: Any) -> Rows:
        """Of one statement, which is a transaction of its own."""
        return await self._run(lambda connection: connection.fetch(sql, *parameters))

    async def execute(self, sql: str, *parameters: Any) -> int:
        """The number of rows changed by one statement."""
        return _count(await self._run(lambda connection: connection.execute(sql, *parameters)))

    @contextlib.asynccontextmanager
    async def transaction(self, opening: str = "") -> AsyncGenerator[Transaction]:
        """Commits at the end of the block; whatever leaves it early undoes everything.

        `opening` is a statement without parameters that saves a round trip, such as for a lock.
        """
        async with self._connection() as connection:
            try:
                await connection.execute(f"BEGIN; {opening}")
                yield Transaction(connection)
                if await connection.execute("COMMIT") != "COMMIT":
                    raise StorageError(
                        "PostgreSQL undid a transaction in which a statement failed."
                    )
            except (*TROUBLE, TimeoutError) as error:
                raise mapped(error) from error
            finally:
                with contextlib.suppress(*TROUBLE, TimeoutError):
                    if connection.is_in_transaction():
                        await connection.execute("ROLLBACK")

    async def connect(self) -> Any:
        """A connection outside the pool, of the driver; for a Listener."""
        try:
            return await self._connect()
        except (*TROUBLE, TimeoutError) as error:
            raise mapped(error) from error

    async def close(self) -> None:
        """Ends what is idle at once, and what is busy after a statement's longest time."""
        try:
            await asyncio.wait_for(self._pool.close(), self._seconds)
        except (*TROUBLE, TimeoutError):
            self._pool.terminate()

    async def _run(self, statement: Callable[[Any], Any]) -> Any:
        for tries_left in range(_TRIES - 1, -1, -1):
            async with self._connection() as connection:
                try:
                    return await statement(connection)
                except (*TROUBLE, TimeoutError) as error:
                    if _state(error) not in _UNDONE or not tries_left:
                        raise mapped(error) from error
            # Both sides of a deadlock may be undone: at the same pace they would meet again.
            await asyncio.sleep(_chance() * _APART_SECONDS)
        raise AssertionError

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any]:
        if self._waiting >= _MOST_WAITING:
            raise StorageError("Too many statements wait for a connection to PostgreSQL.")
        self._waiting += 1
        try:
            connection = await self._acquire()
        finally:
            self._waiting -= 1
        try:
            yield connection
        finally:
            with contextlib.suppress(*TROUBLE):
                await self._pool.release(connection, timeout=self._seconds)

    async def _acquire(self) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._pool.acquire(timeout=max(until - loop.time(), 0.001))
            except TimeoutError:
                raise StorageError(
                    f"No connection to PostgreSQL in {self._patience:g} s: the server does not "
                    f"answer, or all {self._connections} connections are busy."
                ) from None
            except TROUBLE as error:
                if not _is_away(error) or loop.time() + pause > until:
                    raise mapped(error) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _connect(self, *_: Any, **__: Any) -> Any:
        return await connect(self._url, seconds=self._seconds, patience=self._patience)

    async def _refuse_unusable(self) -> None:
        [(version, encoding)] = await self.rows(
            "SELECT current_setting('server_version_num')::int / 10000,"
            " current_setting('server_encoding')"
        )
        if version < OLDEST_SERVER:
            raise StorageError(
                f"PostgreSQL {version} is too old; {OLDEST_SERVER} or newer is needed."
            )
        if encoding != "UTF8":
            raise StorageError(
                f"The PostgreSQL database stores {encoding}. Create one with ENCODING 'UTF8'."
            )


async def connect(
    url: str, *, seconds: float, patience: float, session: Mapping[str, str] | None = None
) -> Any:
    """A connection of the driver, which raises what `mapped` maps.

    `session` are settings of its own. Raises StorageError for what is no address.
    """
    milliseconds = str(round(seconds * 1000))
    try:
        return await _driver.connect(
            url,
            timeout=patience,
            # The server ends a statement first, unless it is the network that hangs.
            command_timeout=seconds + 2,
            statement_cache_size=_CACHED_STATEMENTS,
            server_settings={
                **_SESSION,
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                "idle_in_transaction_session_timeout": milliseconds,
                **(session or {}),
            },
        )
    except (ValueError, asyncpg.ClientConfigurationError):
        # The driver's words may hold a part of the password.
        raise StorageError(
            "DATABASE_URL is no address of a PostgreSQL. Write postgresql://user:password"
            "@host:port/database, with %-escapes in user and password where needed."
        ) from None


class Listener:
    """Calls `heard(channel, payload)` for what others NOTIFY, on a connection of its own.

    `again` is called each time it begins to listen, also after the connection was lost: what was
    said in between is not repeated, so whoever waits has to look.
    """

    def __init__(
        self,
        database: Postgres,
        channels: Sequence[str],
        *,
        heard: Callable[[str, str], None],
        again: Callable[[], None],
        alive_seconds: float = _ALIVE_SECONDS,
    ) -> None:
        self._database = database
        self._channels = tuple(channels)
        self._call = heard
        self._again = again
        self._alive_seconds = alive_seconds
        self._troubled = False
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Never returns; `listening` is set while a connection listens."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen()
                pause = _FIRST_PAUSE
            except StorageError as error:
                self._trouble(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        connection = await self._database.connect()
        lost = asyncio.Event()

        def ended(_: Any) -> None:
            lost.set()

        connection.add_termination_listener(ended)
        try:
            for channel in self._channels:
                await connection.add_listener(channel, self._heard)
            self.listening.set()
            if self._troubled:
                _log.info("listening_again")
                self._troubled = False
            self._again()
            while not await _happened(lost, self._alive_seconds):
                # A peer that vanished without a word is noticed only by asking.
                await connection.execute("SELECT 1")
        except (*TROUBLE, TimeoutError) as error:
            raise mapped(error) from error
        finally:
            self.listening.clear()
            connection.terminate()

    def _trouble(self, error: StorageError) -> None:
        if not self._troubled:
            _log.warning("listening_stopped", problem=str(error))
        self._troubled = True

    def _heard(self, _: Any, __: int, channel: str, payload: str) -> None:
        self._call(channel, payload)


async def _happened(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _keep_as_it_is(connection: Any) -> None:
    """The usual reset is a round trip more per statement, for settings that nobody changes."""


def _count(status: str) -> int:
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


def _state(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


def _is_away(error: BaseException) -> bool:
    if isinstance(error, _CUT):
        # The driver's word for a value that no column can hold.
        return not isinstance(error, ValueError)
    return _state(error).startswith(_AWAY)


def _is_value(error: BaseException) -> bool:
    state = _state(error)
    return isinstance(error, ValueError) or (state.startswith(_VALUE) and state != _USED_UP)


def writable(text: str) -> str:
    """As PostgreSQL can hold it: it takes neither NUL nor a lone surrogate."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def mapped(error: BaseException) -> Exception:
    """What the callers of this file get for one of TROUBLE, or a TimeoutError."""
    if _state(error).startswith(_CONSTRAINT):
        return IntegrityError(f"PostgreSQL refuses: {error}.")
    if _is_value(error):
        return ValueError(f"PostgreSQL cannot hold this value: {error}.")
    if isinstance(error, TimeoutError) or _state(error) == "57014":
        return TookTooLong("PostgreSQL took too long; the statement was cancelled.")
    if _is_away(error):
        return ConnectionCut(f"PostgreSQL cannot be reached: {error}.")
    return StorageError(f"PostgreSQL cannot do this: {error}.")
