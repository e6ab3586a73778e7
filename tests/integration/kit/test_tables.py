"""Small tables: one SQL for both engines, whole or not at all, and word of each change."""

import asyncio
from typing import Any

import pytest

from aiserver.kit.clock import SystemClock
from aiserver.kit.db import IntegrityError
from aiserver.kit.postgres import Postgres
from aiserver.kit.postgres_tables import PostgresTables
from aiserver.kit.tables import Rows, Statement, Tables
from postgres import server


def insert(name: str) -> Statement:
    sql = "INSERT INTO secrets (name, salt, hash, created) VALUES (?, ?, ?, '') RETURNING name"
    return Statement(sql, (name, b"s", b"h"))


async def names(tables: Tables) -> list[str]:
    return [name for (name,) in await tables.read("SELECT name FROM secrets ORDER BY name")]


async def test_rows_of_each_statement_come_back(tables: Tables) -> None:
    found = await tables.write(insert("a"), insert("b"), Statement("DELETE FROM sessions"))
    assert found == [[("a",)], [("b",)], []]


async def test_statements_count_together_or_not_at_all(tables: Tables) -> None:
    await tables.write(insert("a"))
    with pytest.raises(IntegrityError):
        await tables.write(insert("b"), insert("a"), moves="keys")
    assert await names(tables) == ["a"]
    assert await tables.revision("keys") == 0


async def test_what_the_check_refuses_is_undone(tables: Tables) -> None:
    def refuse(found: list[Rows]) -> None:
        raise ValueError(found)

    with pytest.raises(ValueError, match="'a'"):
        await tables.write(insert("a"), moves="keys", check=refuse)
    assert await names(tables) == []
    assert await tables.revision("keys") == 0


async def test_move_is_counted_and_seen(tables: Tables) -> None:
    assert tables.changed() in (True, False)
    assert not tables.changed()
    await tables.write(insert("a"), moves="keys")
    assert tables.changed()
    assert (await tables.revision("keys"), await tables.revision("providers")) == (1, 0)


@pytest.mark.parametrize("text", ["", "nul \0 in it", "x" * 100_000, "\U0001f600"])
async def test_any_text_can_be_kept(tables: Tables, text: str) -> None:
    [[(kept,)]] = await tables.write(insert(text))
    assert kept.replace("\ufffd", "\0") == text


@pytest.mark.parametrize("value", [None, 0, -1, 2**31 - 1])
async def test_number_or_nothing_comes_back_as_it_was(tables: Tables, value: Any) -> None:
    await tables.write(Statement("UPDATE revisions SET number = coalesce(?, 5)", (value,)))
    assert await tables.revision("keys") == (5 if value is None else value)


async def test_other_process_hears_of_a_change_at_once() -> None:
    url = server().fresh_database()
    one, other = await Postgres.open(url), await Postgres.open(url)
    writer, reader = PostgresTables(one, SystemClock()), PostgresTables(other, SystemClock())
    heard = asyncio.Event()
    listener = reader.listener(heard.set)
    task = asyncio.create_task(listener.run())
    try:
        async with asyncio.timeout(10):
            await heard.wait()
            heard.clear()
            reader.changed()
            await writer.write(insert("a"), moves="keys")
            await heard.wait()
        assert reader.changed()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await one.close()
        await other.close()
        server().give_back(url)
