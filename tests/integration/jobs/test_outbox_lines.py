"""However many callbacks wait, those that are due are found, and nobody's line holds up another."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aiserver.jobs.store import MOST_PASSED, NewDelivery
from aiserver.jobs.store.outbox import MOST_WALKED
from aiserver.jobs.store.sqlite_outbox import SqliteOutbox
from aiserver.kit.db import Connection, Database, open_file
from job_stores import Stores

# A look costs about 2 ms; one that asks each of these receivers takes 150 ms and more.
WAITING = 20_000
MOST_SECONDS = 0.1
_FILL = """
WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {count})
INSERT INTO outbox (id, key_id, url, receiver, verb, body, created, attempt, due, state)
SELECT '{kind}_' || n, 1, 'https://receiver.example/', {receiver}, 'POST', {body}, {now}, 0, {due},
  'Pending' FROM series"""


class Lines:
    """A store whose outbox is filled in one statement."""

    def __init__(self, store: Stores, engine: str, folder: Path) -> None:
        self.store = store
        self._engine = engine
        self._folder = folder

    async def fill(self, count: int, *, receiver: str, due: int, kind: str = "due") -> None:
        """`receiver` is an expression over `n`, which counts from 1."""
        now = self.store.now
        body = "x'7b7d'" if self._engine == "sqlite" else "'{}'::bytea"
        sql = _FILL.format(count=count, kind=kind, receiver=receiver, body=body, now=now, due=due)
        if self._engine == "postgres":
            await self.store.rows(sql)
            return
        connection = open_file(self._folder / "app.db")
        connection.execute(sql)
        connection.close()

    async def add(self, id: str, receiver: str, *, key_id: int = 2) -> None:
        new = NewDelivery(
            id=id,
            key_id=key_id,
            url="https://receiver.example/",
            receiver=receiver,
            body=b"{}",
            due=self.store.now,
        )
        await self.store.outbox.add(new)

    async def take(self, **members: Any) -> list[str]:
        given: dict[str, Any] = {"until": self.store.now + 60_000, "most": 9, "per_receiver": 4}
        return [each.id for each in await self.store.outbox.take(**given | members)]


@pytest.fixture
def lines(store: Stores, engine: str, tmp_path: Path) -> Lines:
    return Lines(store, engine, tmp_path)


async def test_receivers_that_wait_cost_a_look_nothing(lines: Lines) -> None:
    await lines.fill(WAITING, receiver="'r' || n", due=lines.store.now + 1)
    took: list[float] = []
    for number in range(3):
        await lines.add(f"msg_due{number}", "z")
        began = time.perf_counter()
        assert await lines.take() == [f"msg_due{number}"]
        took.append(time.perf_counter() - began)
    assert min(took) < MOST_SECONDS


async def test_long_line_of_a_busy_receiver_holds_nobody_up(lines: Lines) -> None:
    await lines.fill(MOST_PASSED, receiver="'a'", due=lines.store.now - 1)
    await lines.add("msg_b", "b")
    assert await lines.take(busy={"a"}) == ["msg_b"]
    assert len(await lines.take(per_receiver=2)) == 2


async def test_long_line_of_a_busy_key_holds_nobody_up(lines: Lines) -> None:
    await lines.fill(MOST_PASSED - 1, receiver="'a'", due=lines.store.now - 1)
    await lines.add("msg_b", "a")
    assert await lines.take(busy_keys={1}) == ["msg_b"]


async def test_receivers_behind_the_longest_look_have_their_turn(lines: Lines) -> None:
    await lines.fill(MOST_PASSED, receiver="'a'", due=lines.store.now - 1)
    await lines.fill(MOST_WALKED, receiver="'b' || n", due=lines.store.now + 1, kind="waits")
    await lines.add("msg_c", "c")
    assert [await lines.take(busy={"a"}) for _ in range(3)] == [[], ["msg_c"], []]


async def test_busy_keys_do_not_hide_others_behind_them(lines: Lines) -> None:
    await lines.fill(MOST_PASSED, receiver="'r' || (n % 3)", due=lines.store.now - 1)
    await lines.add("msg_0", "r0")
    await lines.add("msg_s", "s")
    # First a receiver that nobody blocks, then behind those who do, to a bound.
    assert await lines.take(busy_keys={1}) == ["msg_s"]
    assert await lines.take(busy_keys={1}) == []


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_look_does_not_wait_for_the_writer(
    database: Database, lines: Lines, store: Stores
) -> None:
    await lines.add("msg_a", "a")
    outbox = SqliteOutbox(database, store.clock)
    free = threading.Event()

    def busy(_: Connection) -> None:
        free.wait(5)

    held = asyncio.create_task(database.write(busy))
    try:
        async with asyncio.timeout(1):
            look = outbox.take(until=store.now + 1, most=9, per_receiver=1, busy={"a"})
            assert await look == []
    finally:
        free.set()
        await held


async def test_delivery_is_taken_once_by_two_at_a_time(lines: Lines) -> None:
    for number in range(4):
        await lines.add(f"msg_{number}", f"r{number}")
    taken = await asyncio.gather(*(lines.take() for _ in range(3)))
    assert sorted(id for ids in taken for id in ids) == [f"msg_{number}" for number in range(4)]
