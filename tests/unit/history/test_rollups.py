"""Sums are what a count of the rows would say, however the calls were spread over batches."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.history.file_page import FilePage
from aiserver.history.files import UPGRADES
from aiserver.history.rollups import NOBODY, SUMS, Tally
from aiserver.history.rows import COLUMNS, row_of
from aiserver.kit.db import Raw, driver
from fakes.calls import NOVEMBER, ended_call

COUNTS = """count(*), sum(status >= 400), sum(duration_ms), sum(prompt_tokens IS NOT NULL),
  sum(iif(prompt_tokens IS NULL, 0, duration_ms)), ifnull(sum(prompt_tokens), 0),
  ifnull(sum(completion_tokens), 0), ifnull(sum(cost), 0), sum(cost IS NULL), sum(lost)"""

tokens = st.none() | st.integers(0, 2**40)


@st.composite
def calls(draw: st.DrawFn) -> Trace:
    name = draw(st.sampled_from(["a", "b", "größe"]))
    attempt = Attempt(provider="p", model="m", began=0.0, lost=draw(st.booleans()))
    used = Usage(prompt=draw(tokens), completion=draw(tokens))
    picodollars = draw(st.none() | st.integers(0, 10**15))
    return ended_call(
        NOVEMBER + timedelta(minutes=draw(st.integers(0, 3000))),
        served=name,
        provider=f"provider of {name}",
        attempts=[attempt],
        key_id=draw(st.sampled_from([None, 0, 7])),
        status=draw(st.sampled_from([200, 429, 499, 502])),
        usage=draw(st.sampled_from([None, used])),
        cost=None if picodollars is None else Decimal(picodollars) / 10**12,
    )


@pytest.fixture(scope="module")
def file() -> Raw:
    connection = driver.connect(":memory:", isolation_level=None)
    for statement in UPGRADES[0]:
        connection.execute(statement)
    return connection


def store(connection: Raw, batch: list[Trace]) -> None:
    tally = Tally()
    rows = [row_of(call, str) for call in batch]
    connection.executemany(f"INSERT INTO calls VALUES ({','.join('?' * len(COLUMNS))})", rows)
    tally.add(rows)
    connection.execute("BEGIN")
    FilePage(connection).add(tally, run=1, calls=len(rows))
    connection.execute("COMMIT")


def table(connection: Raw, sql: str) -> dict[Any, Any]:
    return {row[:3]: row[3:] for row in connection.execute(sql)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(calls(), max_size=20), max_size=4))
def test_sums_equal_a_count_of_the_rows(file: Raw, batches: list[list[Trace]]) -> None:
    for name in ("calls", "hours", "days"):
        file.execute(f"DELETE FROM {name}")
    number = 0
    for batch in batches:
        for call in batch:
            number += 1
            call.id = number
        store(file, batch)
    by_hour = f"SELECT at / 3600000, model, provider, {COUNTS} FROM calls GROUP BY 1, 2, 3"
    by_day = (
        f"SELECT at / 86400000, ifnull(key_id, -1), model, {COUNTS} FROM calls GROUP BY 1, 2, 3"
    )
    assert table(file, "SELECT * FROM hours") == table(file, by_hour)
    assert table(file, "SELECT * FROM days") == table(file, by_day)


def test_names_that_callers_make_up_are_one_line(file: Raw) -> None:
    file.execute("DELETE FROM calls")
    file.execute("DELETE FROM hours")
    file.execute("DELETE FROM days")
    members: dict[str, Any] = {"provider": None, "attempts": [], "status": 404, "key_id": None}
    store(file, [ended_call(id=n, model=f"made-up-{n}", served=None, **members) for n in range(50)])
    [line] = file.execute("SELECT model, provider, calls FROM hours").fetchall()
    assert line == ("", "", 50)
    [day] = file.execute("SELECT key_id, model, calls FROM days").fetchall()
    assert day == (NOBODY, "", 50)


def test_every_sum_has_its_column(file: Raw) -> None:
    names = [row[1] for row in file.execute("PRAGMA table_info(hours)")]
    assert names == ["hour", "model", "provider", *SUMS]
