"""The ledger keeps every settled call once, through trouble with the store, in bounded space."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aiserver.contract.trace import Usage
from aiserver.keys.ledger import KEPT, Ledger, Spent
from aiserver.kit.db import Database, open_file
from aiserver.kit.ids import first_of
from aiserver.kit.tables import SqliteTables, Tables
from fakes.calls import NOVEMBER, StillClock

ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)
CENT = Decimal("0.01")


def add(ledger: Ledger, id: int, **members: Any) -> None:
    given: dict[str, Any] = {
        "key_id": 1,
        "cost": CENT,
        "lost": 0,
        "usage": Usage(prompt=10, completion=20),
    }
    values = given | members
    ledger.add(
        id, values["key_id"], "fake", "model-a", values["usage"], values["cost"], values["lost"]
    )


def ledger_of(tables: Tables, *, bound: int = 100_000) -> Ledger:
    return Ledger(tables, StillClock(), bound=bound)


@contextmanager
def locked(database: Database) -> Generator[None]:
    """As another process that writes for long."""
    other = open_file(database.path)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


async def test_settled_call_is_one_row(tables: Tables) -> None:
    ledger = ledger_of(tables)
    id = first_of(NOVEMBER) + 5
    add(ledger, id, lost=2)
    await ledger.flush()
    assert await tables.read("SELECT * FROM ledger") == [
        (id, 1794744000000, 1, "fake", "model-a", 10, 20, 10_000_000_000, 2)
    ]
    assert ledger.held == 0


async def test_second_settlement_of_a_call_is_not_counted(tables: Tables) -> None:
    ledger = ledger_of(tables)
    id = first_of(NOVEMBER)
    add(ledger, id)
    add(ledger, id, cost=Decimal(5))
    await ledger.flush()
    add(ledger, id, cost=Decimal(7))
    await ledger.flush()
    assert await ledger.spent(1, ALWAYS) == Spent(CENT, 0)


async def test_unknown_is_kept_apart_from_nothing(tables: Tables) -> None:
    ledger = ledger_of(tables)
    first = first_of(NOVEMBER)
    add(ledger, first, cost=None, usage=None)
    add(ledger, first + 1, cost=Decimal(0), usage=Usage(prompt=0))
    add(ledger, first + 2, cost=Decimal("NaN"), usage=Usage(prompt=10**30))
    add(ledger, first + 3, cost=Decimal("1e-13"))
    await ledger.flush()
    sql = "SELECT prompt_tokens, completion_tokens, cost FROM ledger ORDER BY id"
    assert await tables.read(sql) == [
        (None, None, None),
        (0, None, 0),
        (None, None, None),
        (10, 20, 1),
    ]
    assert await ledger.spent(1, ALWAYS) == Spent(Decimal("1e-12"), 2)


async def test_spent_counts_one_key_since_a_moment(tables: Tables) -> None:
    ledger = ledger_of(tables)
    for hours in range(10):
        add(ledger, first_of(NOVEMBER + timedelta(hours=hours)), key_id=hours % 2)
    add(ledger, first_of(NOVEMBER) + 1, key_id=None)
    await ledger.flush()
    assert (await ledger.spent(1, NOVEMBER)).known == 5 * CENT
    assert (await ledger.spent(1, NOVEMBER + timedelta(hours=6))).known == 2 * CENT
    assert (await ledger.spent(None, NOVEMBER)).known == CENT
    assert await ledger.spent(9, NOVEMBER) == Spent(Decimal(0), 0)


async def test_large_sums_are_exact(tables: Tables) -> None:
    ledger = ledger_of(tables)
    large = Decimal("9000000.000000000001")
    for number in range(4):
        add(ledger, first_of(NOVEMBER) + number, cost=large)
    await ledger.flush()
    assert (await ledger.spent(1, ALWAYS)).known == 4 * large


async def test_rows_wait_while_the_store_is_away(database: Database) -> None:
    ledger = ledger_of(SqliteTables(database))
    first = first_of(NOVEMBER)
    with locked(database):
        add(ledger, first)
        await ledger.flush()
        assert ledger.held == 1
        assert ledger.problem is not None
        add(ledger, first + 1)
    await ledger.flush()
    assert (ledger.held, ledger.problem) == (0, None)
    assert (await ledger.spent(1, ALWAYS)).known == 2 * CENT


async def test_full_ledger_says_so_and_keeps_the_oldest(database: Database) -> None:
    ledger = ledger_of(SqliteTables(database), bound=3)
    first = first_of(NOVEMBER)
    with locked(database):
        for number in range(5):
            add(ledger, first + number)
        await ledger.flush()
        assert ledger.full
        assert (ledger.held, ledger.dropped) == (3, 2)
    await ledger.close()
    assert not ledger.full
    assert [id - first for (id,) in database.read("SELECT id FROM ledger ORDER BY id")] == [0, 1, 2]


async def test_flushes_at_the_same_time_write_once(tables: Tables) -> None:
    ledger = ledger_of(tables)
    for number in range(12_000):
        add(ledger, first_of(NOVEMBER) + number)
    await asyncio.gather(*(ledger.flush() for _ in range(3)))
    assert await tables.read("SELECT count(*) FROM ledger") == [(12_000,)]


async def test_old_rows_become_sums_of_their_day(tables: Tables) -> None:
    ledger = ledger_of(tables)
    old = NOVEMBER - KEPT - timedelta(days=1)
    for number in range(6_000):
        add(ledger, first_of(old) + number, lost=number % 2)
    add(ledger, first_of(old) + 7_000, cost=None, usage=None)
    add(ledger, first_of(old) + 7_001, key_id=None)
    add(ledger, first_of(NOVEMBER))
    await ledger.flush()
    before = [await ledger.spent(key, ALWAYS) for key in (1, None)]
    assert await ledger.fold() == 6_002
    assert [await ledger.spent(key, ALWAYS) for key in (1, None)] == before
    assert await tables.read("SELECT count(*) FROM ledger") == [(1,)]
    sql = "SELECT key_id, calls, prompt_tokens, unknown, lost FROM ledger_days ORDER BY key_id"
    assert await tables.read(sql) == [(-1, 1, 10, 0, 0), (1, 6_001, 60_000, 1, 3_000)]
    assert await ledger.fold() == 0


async def test_folding_twice_adds_to_the_day(tables: Tables) -> None:
    ledger = ledger_of(tables)
    old = NOVEMBER - KEPT - timedelta(days=1)
    for round in range(2):
        add(ledger, first_of(old) + round)
        await ledger.flush()
        await ledger.fold()
    assert await tables.read("SELECT calls, cost FROM ledger_days") == [(2, 20_000_000_000)]
