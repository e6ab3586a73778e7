"""PostgreSQL for a thread that may wait: one connection, driven by an event loop of its own."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import asyncpg

from aiserver.kit.db import IntegrityError, StorageError
from aiserver.kit.postgres import (
    PATIENCE_SECONDS,
    STATEMENT_SECONDS,
    TROUBLE,
    ConnectionCut,
    Rows,
    TookTooLong,
    connect,
    mapped,
)

_CLOSE_SECONDS = 2.0

Statement = Callable[[Any], Coroutine[Any, Any, Any]]


class _Run(Protocol):
    def __call__(self, statement: Statement, *, within: bool = False) -> Any: ...


class PostgresThread:
    """One connection, for one thread at a time; made when it is needed, and anew once it was lost.

    Raises as `Postgres` does. `session` are settings of the connection.
    """

    def __init__(
        self,
        url: str,
        *,
        statement_seconds: float = STATEMENT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        session: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._seconds = statement_seconds
        self._patience = patience_seconds
        self._session = session
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._raw: Any = None

    def read(self, sql: str, *parameters: Any, seconds: float | None = None) -> Rows:
        """Rows of a statement that does no harm when it is repeated, as it is when it was cut."""

        def fetch(raw: Any) -> Coroutine[Any, Any, Rows]:
            return raw.fetch(sql, *parameters, timeout=seconds)

        try:
            return self._run(fetch)
        except ConnectionCut:
            return self._run(fetch)

    @contextlib.contextmanager
    def transaction(self) -> Generator["ThreadTransaction"]:
        """Commits at the end of the block; whatever leaves it early undoes everything."""
        self._run(lambda raw: raw.execute("BEGIN"))
        done = False
        try:
            yield ThreadTransaction(self._run)
            if self._run(lambda raw: raw.execute("COMMIT"), within=True) != "COMMIT":
                raise StorageError("PostgreSQL undid a transaction in which a statement failed.")
            done = True
        finally:
            if not done and self._raw is not None:
                with contextlib.suppress(StorageError):
                    self._run(lambda raw: raw.execute("ROLLBACK"), within=True)

    def cancel(self) -> None:
        """Ends the statement that runs, if one does; for other threads."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                loop.call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._drop())
            self._loop.close()
            self._loop = None

    def _run(self, statement: Statement, *, within: bool = False) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._work(statement, within=within))
        try:
            return self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            raise TookTooLong("The statement was told to stop.") from None
        finally:
            self._task = None

    async def _work(self, statement: Statement, *, within: bool) -> Any:
        whole = False
        try:
            result = await statement(await self._connection(within=within))
            whole = True
        except (*TROUBLE, TimeoutError) as error:
            problem = mapped(error)
            whole = isinstance(error, asyncpg.PostgresError) and _is_refusal(problem)
            raise problem from error
        finally:
            if not whole:
                # Only while this loop turns can the driver tell the server to stop.
                await self._drop()
        return result

    async def _connection(self, *, within: bool) -> Any:
        if self._raw is None or self._raw.is_closed():
            if within:
                raise ConnectionCut("The connection to PostgreSQL was lost in a transaction.")
            self._raw = await connect(
                self._url, seconds=self._seconds, patience=self._patience, session=self._session
            )
        return self._raw

    async def _drop(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                await raw.close(timeout=_CLOSE_SECONDS)
            except (*TROUBLE, TimeoutError):
                raw.terminate()


class ThreadTransaction:
    """Statements that count together, or not at all."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def rows(self, sql: str, *parameters: Any) -> Rows:
        return self._run(lambda raw: raw.fetch(sql, *parameters), within=True)

    def execute(self, sql: str, *parameters: Any) -> None:
        self._run(lambda raw: raw.execute(sql, *parameters), within=True)

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Many new rows of one table, the fastest way; after an error only `again` helps."""
        self._run(
            lambda raw: raw.copy_records_to_table(table, columns=columns, records=rows),
            within=True,
        )

    def again(self) -> None:
        """Undoes everything and begins anew, on a new connection where the old one was given up."""
        self._run(
            lambda raw: raw.execute("ROLLBACK; BEGIN" if raw.is_in_transaction() else "BEGIN")
        )


def _is_refusal(problem: Exception) -> bool:
    """The server refused one statement and is ready for the next."""
    return isinstance(problem, IntegrityError | ValueError)
