"""The database: writes in order and whole, and clear words when the disk does not want."""

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from aiserver.kit import db, migrations
from aiserver.kit.db import Connection, Database, IntegrityError, StorageError


def insert(name: str) -> Any:
    def work(connection: Connection) -> int:
        return connection.execute(
            "INSERT INTO secrets (name, salt, hash, created) VALUES (?, x'00', x'00', '')", (name,)
        )

    return work


def names(database: Database) -> list[str]:
    return [row[0] for row in database.read("SELECT name FROM secrets ORDER BY name")]


async def test_write_is_there_when_it_returns(database: Database) -> None:
    assert await database.write(insert("a")) == 1
    assert names(database) == ["a"]


async def test_failed_write_undoes_only_itself(database: Database) -> None:
    def half(connection: Connection) -> None:
        insert("half")(connection)
        raise ValueError("no")

    written = await asyncio.gather(
        database.write(insert("a")),
        database.write(half),
        database.write(insert("a")),
        database.write(insert("b")),
        return_exceptions=True,
    )
    assert [type(w) for w in written] == [int, ValueError, IntegrityError, int]
    assert names(database) == ["a", "b"]


async def test_many_writes_share_their_commits(database: Database) -> None:
    await asyncio.gather(*(database.write(insert(f"{i:04}")) for i in range(2000)))
    assert len(names(database)) == 2000


async def test_change_by_another_process_is_noticed(database: Database) -> None:
    assert not database.changed()
    other = Database.open(database.path)
    await other.write(insert("a"))
    other.close()
    assert database.changed()
    assert not database.changed()
    assert names(database) == ["a"]


async def test_single_statement_counts_and_fails_for_itself(database: Database) -> None:
    assert await database.write(insert("a"), single=True) == 1
    with pytest.raises(IntegrityError):
        await database.write(insert("a"), single=True)
    blocker = db.connect_for_migration(database.path)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        await database.write(insert("b"), single=True)
    blocker.execute("ROLLBACK")
    blocker.close()
    written = [database.write(insert(name), single=True) for name in ("b", "a", "c")]
    outcomes = await asyncio.gather(*written, return_exceptions=True)
    assert [type(each) for each in outcomes] == [int, IntegrityError, int]
    other = Database.open(database.path)
    assert names(other) == ["a", "b", "c"]
    other.close()


async def test_locked_database_says_so(database: Database) -> None:
    blocker = db.connect_for_migration(database.path)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        await database.write(insert("a"))
    assert names(database) == []
    blocker.execute("ROLLBACK")
    blocker.close()
    await database.write(insert("a"))


async def test_full_disk_says_so_and_loses_nothing(database: Database) -> None:
    await database.write(insert("kept"))
    pages = database.read("PRAGMA page_count")[0][0]

    def limit(connection: Connection) -> None:
        connection.rows(f"PRAGMA max_page_count = {pages}")

    def fill(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO secrets (name, salt, hash, created) VALUES ('big', zeroblob(9999999), x'', '')"
        )

    await database.write(limit)
    with pytest.raises(StorageError, match="full"):
        await database.write(fill)
    assert names(database) == ["kept"]


async def test_read_only_database_says_so(database: Database) -> None:
    def seal(connection: Connection) -> None:
        connection.rows("PRAGMA query_only = 1")

    await database.write(seal)
    with pytest.raises(StorageError, match="readonly"):
        await database.write(insert("a"))


async def test_waiting_writes_are_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_QUEUE_BOUND", 2)
    blocker = db.connect_for_migration(database.path)
    blocker.execute("BEGIN IMMEDIATE")
    tasks = [asyncio.create_task(database.write(insert(str(i)))) for i in range(10)]
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert any("Too many writes" in str(problem) for problem in done)
    blocker.close()


async def test_close_finishes_what_waits(database: Database) -> None:
    writes = [asyncio.ensure_future(database.write(insert(str(i)))) for i in range(50)]
    await asyncio.sleep(0)
    database.close()
    assert await asyncio.gather(*writes) == [1] * 50


def test_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(b"this is not a database at all, and long enough to be read as one" * 100)
    with pytest.raises(StorageError, match="Cannot open the database"):
        Database.open(path)


def test_system_library_is_not_used() -> None:
    assert db.sqlite3.sqlite_version_info >= db.OLDEST_SQLITE
    assert db.sqlite3 is not sqlite3


def test_empty_database_is_upgraded_once(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "app.db")
    assert migrations.upgrade(database)
    assert migrations.current(database) == migrations.head()
    assert not migrations.upgrade(database)
    database.close()


def test_upgrade_works_in_a_process_apart(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "app.db")
    assert migrations.upgrade(database, apart=True)
    assert migrations.current(database) == migrations.head()
    database.close()


def at_first_schema(path: Path) -> Database:
    database = Database.open(path)
    migrations.run(path, "0001")
    return database


@pytest.mark.parametrize("apart", [False, True])
async def test_older_database_is_copied_before_its_upgrade(tmp_path: Path, apart: bool) -> None:
    database = at_first_schema(tmp_path / "app.db")
    await database.write(lambda c: c.execute("UPDATE revisions SET number = 7"))
    assert migrations.upgrade(database, apart=apart)
    database.close()
    [copy] = (tmp_path / "backups").iterdir()
    assert (copy.name, copy.stat().st_mode & 0o777) == ("app-schema-0001.db", 0o600)
    kept = Database.open(copy)
    assert migrations.current(kept) == "0001"
    assert kept.read("SELECT DISTINCT number FROM revisions") == [(7,)]
    kept.close()


def test_three_copies_are_kept(database: Database) -> None:
    for number in range(5):
        os.utime(migrations.backup(database, str(number)), (number, number))
    kept = {path.name for path in (database.path.parent / "backups").iterdir()}
    assert kept == {"app-2.db", "app-3.db", "app-4.db"}


def test_database_that_cannot_be_copied_is_not_upgraded(tmp_path: Path) -> None:
    database = at_first_schema(tmp_path / "app.db")
    (tmp_path / "backups").write_text("in the way")
    with pytest.raises(StorageError, match="before its migration"):
        migrations.upgrade(database)
    assert migrations.current(database) == "0001"
    database.close()


async def test_newer_database_is_refused(database: Database) -> None:
    def age(connection: Connection) -> None:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    await database.write(age)
    with pytest.raises(StorageError, match="schema 9999, newer than this version's"):
        migrations.upgrade(database)


@pytest.mark.parametrize("apart", [False, True])
def test_failed_upgrade_leaves_nothing_half_done(tmp_path: Path, apart: bool) -> None:
    database = Database.open(tmp_path / "app.db")
    blocker = db.connect_for_migration(database.path)
    # The third table of the first revision exists already, so its creation fails.
    blocker.execute("CREATE TABLE providers (x)")
    blocker.close()
    with pytest.raises(StorageError, match="Cannot migrate"):
        migrations.upgrade(database, apart=apart)
    tables = database.read("SELECT name FROM sqlite_master WHERE type = 'table'")
    assert tables == [("providers",)]
    database.close()
