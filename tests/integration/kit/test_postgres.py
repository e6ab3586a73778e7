"""PostgreSQL: bounded waits, clear words for what fails, and back again after a restart."""

import asyncio
import select
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from aiserver.kit import migrations
from aiserver.kit.db import IntegrityError, StorageError
from aiserver.kit.migrations.postgres import current, upgrade
from aiserver.kit.postgres import ConnectionCut, Listener, Postgres, Transaction
from postgres import server


@pytest.fixture
async def database() -> AsyncGenerator[Postgres]:
    url = server().fresh_database()
    opened = await Postgres.open(url)
    yield opened
    await opened.close()


@asynccontextmanager
async def opened(
    url: str, *, connections: int = 2, patience: float = 5.0
) -> AsyncGenerator[Postgres]:
    database = await Postgres.open(
        url, connections=connections, statement_seconds=5, patience_seconds=patience
    )
    try:
        yield database
    finally:
        await database.close()


async def test_rows_are_there_when_a_write_returns(database: Postgres) -> None:
    assert await database.execute("INSERT INTO revisions VALUES ($1, 0)", "a") == 1
    [row] = await database.rows("SELECT name, number FROM revisions WHERE name = $1", "a")
    assert (row["name"], row[1]) == ("a", 0)


async def emptied(database: Postgres, then: Callable[[Transaction], Awaitable[object]]) -> None:
    async with database.transaction() as transaction:
        assert await transaction.execute("DELETE FROM revisions") > 0
        await then(transaction)


async def test_failed_transaction_changes_nothing(database: Postgres) -> None:
    async def fail(_: Transaction) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await emptied(database, fail)
    assert await database.rows("SELECT 1 FROM revisions WHERE name = 'keys'")


async def test_failure_that_was_swallowed_is_not_taken_for_a_commit(database: Postgres) -> None:
    async def swallow(transaction: Transaction) -> None:
        with suppress(Exception):
            await transaction.rows("SELECT 1 / 0")

    with pytest.raises(StorageError, match="undid"):
        await emptied(database, swallow)
    assert await database.rows("SELECT 1 FROM revisions")


async def test_transaction_begins_with_its_opening(database: Postgres) -> None:
    async with database.transaction("SELECT pg_advisory_xact_lock(7)") as transaction:
        [row] = await transaction.rows("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert row[0] == 1


async def test_value_that_no_column_holds_is_not_taken_for_a_cut(database: Postgres) -> None:
    for value in (2**40, "no number"):
        with pytest.raises(ValueError, match="cannot hold this value"):
            await database.rows("SELECT $1::int", value)
    with pytest.raises(ValueError, match="cannot hold this value"):
        await database.rows("SELECT $1::text", "nul \x00")


async def test_copied_rows_arrive(database: Postgres) -> None:
    async with database.transaction() as transaction:
        await transaction.copy("revisions", ("name", "number"), [("a", 1), ("b", 2)])
    assert await database.rows("SELECT 1 FROM revisions WHERE name IN ('a', 'b')")


async def test_broken_constraint_is_told_apart(database: Postgres) -> None:
    with pytest.raises(IntegrityError, match="keys"):
        await database.execute("INSERT INTO revisions VALUES ('keys', 0)")


async def test_statement_that_takes_too_long_is_cancelled() -> None:
    database = await Postgres.open(server().url, statement_seconds=0.05)
    with pytest.raises(StorageError, match="took too long"):
        await database.rows("SELECT pg_sleep(60)")
    assert await database.rows("SELECT 1")
    await database.close()


async def test_lock_that_is_not_given_up_ends_the_wait() -> None:
    url = server().fresh_database()
    async with opened(url) as holder:
        waiter = await Postgres.open(url, statement_seconds=0.05)
        async with holder.transaction() as transaction:
            await transaction.execute("LOCK TABLE revisions")
            with pytest.raises(StorageError):
                await waiter.execute("DELETE FROM revisions")
        await waiter.close()


async def test_busy_connections_are_waited_for_and_then_not() -> None:
    async with opened(server().url, connections=1, patience=0.05) as database:
        async with database.transaction():
            with pytest.raises(StorageError, match="all 1 connections are busy"):
                await database.rows("SELECT 1")
        assert await database.rows("SELECT 1")


async def test_waiting_statements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiserver.kit.postgres._MOST_WAITING", 3)
    async with opened(server().url, connections=1) as database:
        many = [database.rows("SELECT 1") for _ in range(10)]
        done = await asyncio.gather(*many, return_exceptions=True)
        refused = [problem for problem in done if isinstance(problem, StorageError)]
        assert len(refused) >= 5
        assert "Too many statements" in str(refused[0])
        assert await database.rows("SELECT 1")


async def test_deadlock_is_solved_by_trying_again(database: Postgres) -> None:
    await database.execute("INSERT INTO revisions VALUES ('a', 0), ('b', 0)")
    # Each takes both rows, in opposite order.
    crossing = (
        "WITH first AS (UPDATE revisions SET number = number + 1 WHERE name = $1 RETURNING 1),"
        " pause AS (SELECT pg_sleep(0.05) FROM first)"
        " UPDATE revisions SET number = number + 1 WHERE name = $2 AND (SELECT 1 FROM pause) IS NULL"
        " OR name = $2 AND (SELECT count(*) FROM pause) = 1"
    )
    await database.execute("ALTER DATABASE " + await _name(database) + " SET deadlock_timeout = 10")
    async with opened(database._url) as fresh:
        await asyncio.gather(fresh.execute(crossing, "a", "b"), fresh.execute(crossing, "b", "a"))
    rows = await database.rows("SELECT number FROM revisions WHERE name IN ('a', 'b')")
    assert [row[0] for row in rows] == [2, 2]


async def _name(database: Postgres) -> str:
    [row] = await database.rows("SELECT current_database()")
    return str(row[0])


@pytest.mark.parametrize(
    "url",
    ["mysql://a:hunter2secret@127.0.0.1/x", "postgresql://a:hunter2/secret@127.0.0.1:x/y", "hello"],
)
async def test_unusable_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StorageError, match="DATABASE_URL is no address") as caught:
        await Postgres.open(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_unknown_database_is_refused_at_once() -> None:
    with pytest.raises(StorageError, match="nowhere"):
        await Postgres.open(server().url_of("nowhere"), patience_seconds=60)


async def test_server_that_is_not_there_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        await Postgres.open("postgresql://x@127.0.0.1:1/x", patience_seconds=0.05)


async def test_database_that_is_not_utf8_is_refused() -> None:
    server().execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StorageError, match="LATIN1"):
        await Postgres.open(server().url_of("latin"))


async def test_old_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiserver.kit.postgres.OLDEST_SERVER", 99)
    with pytest.raises(StorageError, match="too old; 99 or newer"):
        await Postgres.open(server().url)


async def test_restart_of_the_server_needs_no_hand(database: Postgres) -> None:
    await database.execute("INSERT INTO revisions VALUES ('kept', 1)")
    server().stop()
    waiting = asyncio.create_task(database.read("SELECT name FROM revisions WHERE number = 1"))
    await asyncio.to_thread(server().start)
    [row] = await waiting
    assert row["name"] == "kept"


async def test_transaction_cut_by_the_server_changes_nothing(database: Postgres) -> None:
    async def cut(transaction: Transaction) -> None:
        [row] = await transaction.rows("SELECT pg_backend_pid()")
        await database.execute("SELECT pg_terminate_backend($1)", row[0])
        await transaction.execute("SELECT 1")

    with pytest.raises(ConnectionCut, match="cannot be reached"):
        await emptied(database, cut)
    assert await database.rows("SELECT 1 FROM revisions")


class Ears:
    def __init__(self, database: Postgres, *, alive_seconds: float = 30) -> None:
        self.heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.listener = Listener(
            database,
            ("one", "two"),
            heard=lambda channel, payload: self.heard.put_nowait((channel, payload)),
            again=lambda: self.begun.put_nowait(None),
            alive_seconds=alive_seconds,
        )
        self._task = asyncio.create_task(self.listener.run())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_notification_is_heard(database: Postgres) -> None:
    ears = Ears(database)
    await ears.begun.get()
    await database.rows("SELECT pg_notify('two', 'x')")
    assert await ears.heard.get() == ("two", "x")
    await ears.close()
    assert not ears.listener.listening.is_set()


async def test_listening_goes_on_after_a_restart(database: Postgres) -> None:
    ears = Ears(database)
    await ears.begun.get()
    await asyncio.to_thread(server().restart)
    await ears.begun.get()
    await database.rows("SELECT pg_notify('one', 'again')")
    assert await ears.heard.get() == ("one", "again")
    await ears.close()


async def test_two_processes_that_migrate_take_turns() -> None:
    url = server().fresh_database(migrated=False)
    async with opened(url) as one, opened(url) as other:
        assert await current(one) is None
        changed = await asyncio.gather(upgrade(one), upgrade(other))
        assert sorted(changed) == [False, True]
        assert await current(other) == migrations.head()


async def test_upgrade_is_written_in_a_process_apart() -> None:
    async with opened(server().fresh_database(migrated=False)) as database:
        assert await upgrade(database, apart=True)
        assert not await upgrade(database, apart=True)


async def test_failed_upgrade_leaves_nothing_half_done() -> None:
    async with opened(server().fresh_database(migrated=False)) as database:
        await database.execute("CREATE TABLE providers (x int)")
        with pytest.raises(StorageError, match="already exists"):
            await upgrade(database)
        assert await current(database) is None
        assert not await database.rows("SELECT 1 FROM pg_tables WHERE tablename = 'api_keys'")


async def test_newer_database_is_refused(database: Postgres) -> None:
    await database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageError, match="schema 9999, newer than this version's"):
        await upgrade(database)


async def test_listener_asks_whether_its_peer_is_alive(database: Postgres) -> None:
    ears = Ears(database, alive_seconds=0.001)
    await ears.begun.get()
    [row] = await database.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^LISTEN'"
        " OR datname = current_database() AND query = 'SELECT 1' LIMIT 1"
    )
    await database.rows("SELECT pg_terminate_backend($1)", row["pid"])
    await ears.begun.get()
    await database.rows("SELECT pg_notify('one', 'x')")
    assert await ears.heard.get() == ("one", "x")
    await ears.close()


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
from postgres import server
print(server().folder, flush=True)
sys.stdin.read()
"""


def test_server_ends_when_its_tests_are_killed() -> None:
    tests = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", ALONE, tests], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        folder = Path(child.stdout.readline().decode().strip())
        assert folder.is_dir()
        # The pipe breaks when all who could read it are gone: every process of the server, too.
        broken = select.poll()
        broken.register(child.stdin, select.POLLERR)
        child.kill()
        assert broken.poll(10_000)
    shutil.rmtree(folder)
