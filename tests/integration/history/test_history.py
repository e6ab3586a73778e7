"""History: every call that is handed over is written once, or counted, and none is harmed."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aiserver.contract.errors import TooBusy, Unavailable
from aiserver.contract.trace import Attempt, Usage
from aiserver.history.analytics import Summary, summary, total_calls
from aiserver.history.archive import Shelf
from aiserver.history.reader import Reader
from aiserver.history.ring import RECORDED, Progress
from fakes.calls import NOVEMBER, StillClock, ended_call, ended_calls
from histories import Histories, reached


def sums(
    since: datetime | None = None, until: datetime | None = None
) -> Callable[[Shelf], Summary]:
    return lambda shelf: summary(shelf, since=since, until=until)


async def test_missing_is_not_zero(histories: Histories) -> None:
    calls = [
        ended_call(usage=None, cost=None),
        ended_call(usage=Usage(prompt=0, completion=0), cost=Decimal(0)),
    ]
    await histories.record(calls)
    sql = "SELECT prompt_tokens, completion_tokens, cost FROM calls ORDER BY id"
    assert histories.rows("2026-11", sql) == [(None, None, None), (0, 0, 0)]
    assert histories.rows("2026-11", "SELECT calls, counted, unpriced FROM hours") == [(2, 1, 1)]


async def test_long_texts_and_many_attempts_are_bounded(histories: Histories) -> None:
    tries = [Attempt(provider=f"p{n}", model="m", began=0.0, detail="x" * 9000) for n in range(50)]
    await histories.record([ended_call(attempts=tries, message="m" * 9000)])
    sql = """SELECT length(detail ->> 'message'), json_array_length(detail -> 'attempts'),
      length(detail ->> 'attempts') FROM calls"""
    [(message, attempts, size)] = histories.rows("2026-11", sql)
    assert (message, attempts) == (500, 20)
    assert size < 50_000


async def test_prompts_are_kept_apart_from_the_row(histories: Histories) -> None:
    calls = [ended_call(), ended_call(prompt=b'{"a":1}', answer=b"x" * 250_000)]
    await histories.record(calls)
    sql = "SELECT call_id, CAST(prompt AS text), length(answer) FROM contents"
    assert histories.rows("2026-11", sql) == [(calls[1].id, '{"a":1}', 65_536)]


async def test_one_batch_over_a_months_end_goes_into_two_files(histories: Histories) -> None:
    last = datetime(2026, 10, 31, 23, 59, 58, tzinfo=UTC)
    state = await histories.record(ended_calls(5, last))
    assert [histories.count(m) for m in ("2026-10", "2026-11")] == [
        2,
        3,
    ]
    assert state.written == 5
    assert set(state.sizes) == {"2026-10", "2026-11"}
    assert min(state.sizes.values()) > 4096


async def test_same_call_twice_is_written_once(histories: Histories) -> None:
    calls = ended_calls(3)
    state = await histories.record([*calls, calls[1]])
    assert (state.written, state.dropped) == (3, 1)
    again = await histories.record([calls[0], *ended_calls(2, NOVEMBER + timedelta(hours=1))])
    assert (again.written, again.dropped) == (2, 1)
    assert histories.rows("2026-11", "SELECT sum(calls) FROM hours") == [(5,)]


async def test_values_that_no_column_takes_do_not_stop_the_others(histories: Histories) -> None:
    odd = [
        ended_call(served="half \ud800", request_id="\ud800"),
        ended_call(usage=Usage(prompt=10**30, completion=-1, cached=10**30)),
        ended_call(cost=Decimal("NaN")),
        ended_call(key_id=2**70),
        ended_call(error="\ud800"),
    ]
    state = await histories.record([*ended_calls(100), *odd])
    assert (state.written, state.dropped) == (105, 0)
    found = histories.rows("2026-11", "SELECT model FROM calls WHERE model LIKE 'half%'")
    assert found == [("half ?",)]
    counts = "SELECT count(*) - count(prompt_tokens), count(*) - count(cost) FROM calls"
    assert histories.rows("2026-11", counts) == [(1, 1)]


async def test_call_that_is_no_row_at_all_is_left_out_alone(histories: Histories) -> None:
    state = await histories.record([*ended_calls(100), ended_call(status="none"), ended_call()])
    assert (state.written, state.dropped, state.problem) == (101, 1, None)


async def test_full_history_drops_and_never_waits(histories: Histories) -> None:
    history = histories.history(bound=10)
    for call in ended_calls(15):
        history.record(call)
    assert (history.held, history.dropped) == (10, 5)
    history.start()
    await history.close()
    assert histories.count("2026-11") == 10
    history.record(ended_call())


async def test_log_says_once_that_calls_are_dropped(
    histories: Histories, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    history = histories.history(bound=2)
    for call in ended_calls(9):
        history.record(call)
    history.start()
    await reached(lambda: history.held == 0)
    for number in range(3):
        history.record(ended_call())
        await reached(lambda: history.held == 0)
        assert history.written == 3 + number
    await history.close()
    # Where lines go depends on whether a server has set up the log of this process.
    said = capsys.readouterr().out + caplog.text
    lines = [line for line in said.splitlines() if "history" in line]
    assert sum("history_full" in line for line in lines) == 1
    assert len(lines) <= 2
    assert (history.dropped, history.written) == (7, 5)


async def test_every_month_is_kept_unless_told(histories: Histories) -> None:
    await histories.record(ended_calls(2, datetime(2020, 1, 3, tzinfo=UTC)), keep_months=0)
    assert histories.count("2020-01") == 2


async def test_months_are_dropped_when_a_new_one_begins(histories: Histories) -> None:
    clock = StillClock()
    history = histories.history(clock=clock, keep_months=1)
    history.start()
    history.record(ended_call())
    await reached(lambda: history.written == 1)
    clock.moment = datetime(2026, 12, 1, tzinfo=UTC)
    history.record(ended_call(clock.moment))
    await reached(lambda: history.written == 2)
    await history.close()
    assert await histories.ask(lambda shelf: shelf.months()) == ["2026-12"]
    assert histories.rows("2026-12", "SELECT sum(calls) FROM hours") == [(1,)]


async def test_three_months_are_read_as_one(histories: Histories) -> None:
    for month in (9, 10, 11):
        await histories.record(ended_calls(month, datetime(2026, month, 5, 10, tzinfo=UTC)))
    found = await histories.ask(sums())
    assert {name: each.calls for name, each in found.months.items()} == {
        "2026-09": 9,
        "2026-10": 10,
        "2026-11": 11,
    }
    assert found.providers["fake"].prompt_tokens == 300
    since, until = datetime(2026, 9, 30, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)
    october = await histories.ask(sums(since=since, until=until))
    assert set(october.months) == {"2026-10"}
    assert await histories.ask(total_calls) == 30


async def test_last_day_asked_for_is_part_of_the_sum(histories: Histories) -> None:
    await histories.record([ended_call(datetime(2026, 11, 5, 23, 59, 59, tzinfo=UTC))])
    for day, calls in ((4, 0), (5, 1), (6, 1)):
        until = datetime(2026, 11, day, tzinfo=UTC)
        found = await histories.ask(sums(until=until))
        assert sum(each.calls for each in found.months.values()) == calls


async def test_slow_question_is_ended_and_does_not_hold_up_the_loop(histories: Histories) -> None:
    await histories.record(ended_calls(300))
    reader = Reader(histories.archive(), seconds=0.1)
    turns = 0

    def slow(shelf: Shelf) -> Any:
        month = shelf.open("2026-11")
        assert month is not None
        sql = "SELECT count(*) FROM calls a, calls b, calls c, calls d WHERE a.at + b.at <> c.at"
        return month.rows(sql)

    asked = asyncio.ensure_future(reader.run(slow))
    while not asked.done():
        turns += 1
        await asyncio.sleep(0.005)
    with pytest.raises(Unavailable, match="shorter time"):
        await asked
    assert turns > 3
    assert await reader.run(total_calls) == 300
    await asyncio.to_thread(reader.close)


async def test_too_many_questions_at_once_are_refused(histories: Histories) -> None:
    reader = Reader(histories.archive(), waiting=2)
    asked = [asyncio.ensure_future(reader.run(total_calls)) for _ in range(3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[:2] == [0, 0]
    assert isinstance(answers[2], TooBusy)
    assert await reader.run(total_calls) == 0
    await asyncio.to_thread(reader.close)


CHILD = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from fakes.calls import NOVEMBER, ended_call
from histories import Histories

async def load():
    history = Histories(Path(sys.argv[1]), *sys.argv[2:]).history(bound=3000)
    history.start()
    count = 0
    while True:
        for _ in range(500):
            # Around a month's end, so that every batch goes into two months.
            count += 1
            history.record(ended_call(NOVEMBER + timedelta(days=16 * (count % 2))))
        await asyncio.sleep(0.005)

asyncio.run(load())
"""


async def test_killed_process_leaves_whole_months_and_an_exact_count(
    histories: Histories, tmp_path: Path
) -> None:
    tests = str(Path(__file__).parents[2])
    where = [str(tmp_path), *([histories.url] if histories.url else [])]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, *where), env={**os.environ, "PYTHONPATH": tests}
    )
    try:
        await reached(lambda: _recorded(tmp_path) > 20_000)
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    recorded = _recorded(tmp_path)
    state = await histories.record([])
    kept = 0
    for month in await histories.ask(lambda shelf: shelf.months()):
        count = histories.count(month)
        assert histories.rows(month, "SELECT sum(calls) FROM hours") == [(count,)]
        kept += count
    assert kept > 0
    assert state.lost_at_last_stop is not None
    assert kept + state.lost_at_last_stop == recorded
    assert (await histories.record([])).lost_at_last_stop == 0


def _recorded(folder: Path) -> int:
    file = folder / "progress"
    if not file.exists() or file.stat().st_size < 64:
        return 0
    return memoryview(file.read_bytes()).cast("Q")[RECORDED]


def test_orderly_stop_loses_nothing(histories: Histories) -> None:
    asyncio.run(histories.record(ended_calls(10)))
    last = Progress(histories.folder / "progress").last_run
    assert last is not None
    assert last.recorded == last.written + last.discarded == 10
