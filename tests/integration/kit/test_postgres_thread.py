"""PostgreSQL for a thread: it waits, comes back after a restart, and never writes half."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aiserver.kit.db import IntegrityError, StorageError
from aiserver.kit.postgres import ConnectionCut, TookTooLong
from aiserver.kit.postgres_thread import PostgresThread, ThreadTransaction
from postgres import server

COUNT = "SELECT count(*) FROM revisions WHERE name LIKE 'x%'"


@pytest.fixture
def database() -> Any:
    opened = PostgresThread(server().fresh_database())
    yield opened
    opened.close()


def in_transaction(database: PostgresThread, work: Callable[[ThreadTransaction], object]) -> None:
    with database.transaction() as transaction:
        transaction.execute("INSERT INTO revisions VALUES ('x0', 0)")
        work(transaction)


def count(database: PostgresThread) -> int:
    [(found,)] = database.read(COUNT)
    return found


def test_transaction_is_there_when_it_ends(database: PostgresThread) -> None:
    in_transaction(
        database, lambda t: t.copy("revisions", ("name", "number"), [("x1", 1), ("x2", 2)])
    )
    assert count(database) == 3


def test_what_leaves_a_transaction_early_undoes_it(database: PostgresThread) -> None:
    with pytest.raises(ZeroDivisionError):
        in_transaction(database, lambda _: 1 // 0)
    with pytest.raises(IntegrityError):
        in_transaction(database, lambda t: t.execute("INSERT INTO revisions VALUES ('x0', 0)"))
    with pytest.raises(ValueError, match="cannot hold"):
        in_transaction(database, lambda t: t.rows("SELECT $1::int", 2**40))
    with pytest.raises(StorageError, match="cannot do this"):
        in_transaction(database, lambda t: t.rows("SELECT nothing"))
    assert count(database) == 0


def test_swallowed_failure_is_not_taken_for_a_commit(database: PostgresThread) -> None:
    def swallow(transaction: ThreadTransaction) -> None:
        with pytest.raises(ValueError, match="cannot hold"):
            transaction.rows("SELECT 1 / 0")

    with pytest.raises(StorageError, match="undid"):
        in_transaction(database, swallow)
    assert count(database) == 0


@pytest.mark.parametrize("row", [("\ud800", 1), ("x", 2**70), ("x", None), ("\x00", 1)])
def test_failed_copy_can_begin_again(database: PostgresThread, row: tuple[Any, Any]) -> None:
    with database.transaction() as transaction:
        with pytest.raises((ValueError, OverflowError, IntegrityError)):
            transaction.copy("revisions", ("name", "number"), [("x1", 1), row])
        transaction.again()
        transaction.copy("revisions", ("name", "number"), [("x1", 1)])
    assert count(database) == 1


def test_lost_connection_ends_its_transaction_only(database: PostgresThread) -> None:
    def cut(transaction: ThreadTransaction) -> None:
        [(pid,)] = transaction.rows("SELECT pg_backend_pid()")
        server().execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(ConnectionCut):
            transaction.rows("SELECT 1")
        transaction.execute("INSERT INTO revisions VALUES ('x1', 0)")

    with pytest.raises(ConnectionCut, match="in a transaction"):
        in_transaction(database, cut)
    assert count(database) == 0


def test_restart_of_the_server_needs_no_hand(database: PostgresThread) -> None:
    assert count(database) == 0
    server().restart()
    assert count(database) == 0


def test_statement_is_ended_when_its_time_is_over(database: PostgresThread) -> None:
    with pytest.raises(TookTooLong):
        database.read("SELECT pg_sleep(60)", seconds=0.05)
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(60)' AND pid <> pg_backend_pid()"
    assert server().execute(busy) == "0"
    limited = PostgresThread(server().url, statement_seconds=0.05)
    with pytest.raises(TookTooLong):
        limited.read("SELECT pg_sleep(60)")
    assert limited.read("SELECT 1")
    limited.close()


def test_another_thread_can_end_a_statement(database: PostgresThread) -> None:
    count(database)
    ended = threading.Event()

    def keep_cancelling() -> None:
        while not ended.wait(0.01):
            database.cancel()

    with ThreadPoolExecutor(1) as thread:
        stopping = thread.submit(keep_cancelling)
        with pytest.raises(TookTooLong, match="told to stop"):
            database.read("SELECT pg_sleep(60)")
        ended.set()
        stopping.result()
    assert count(database) == 0


def test_server_that_is_not_there_is_refused() -> None:
    nowhere = PostgresThread("postgresql://x@127.0.0.1:1/x", patience_seconds=0.5)
    with pytest.raises(ConnectionCut, match="cannot be reached"):
        nowhere.read("SELECT 1")
    nowhere.close()


def test_unusable_address_is_refused_without_its_password() -> None:
    wrong = PostgresThread("postgresql://a:hunter2/secret@127.0.0.1:x/y")
    with pytest.raises(StorageError, match="DATABASE_URL is no address") as caught:
        wrong.read("SELECT 1")
    assert "hunter2" not in str(caught.value)
    wrong.close()
