"""History: every call that is handed over is written once, or counted, and none is harmed."""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aiserver.contract.errors import TooBusy, Unavailable
from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.history.analytics import Summary, summary, total_calls
from aiserver.history.archive import UPGRADES, Archive
from aiserver.history.reader import Reader, Shelf
from aiserver.history.ring import RECORDED, Progress
from aiserver.history.store import History, State
from aiserver.kit.db import StorageError, driver
from aiserver.kit.redact import Redactor
from fakes.calls import NOVEMBER, StillClock, ended_call, ended_calls

T = TypeVar("T")
SECRET = "sk-0123456789abcdefghij0123456789"


def history_in(folder: Path, **options: Any) -> History:
    clock = options.pop("clock", None) or StillClock()
    return History(folder, clock, options.pop("redact", str), **options)


async def record(folder: Path, calls: list[Trace], **options: Any) -> State:
    """Hands these over to a history that starts and ends with them; how it stood before its end."""
    history = history_in(folder, **options)
    history.start()
    for call in calls:
        history.record(call)
    history.wake()
    await reached(lambda: history.held == 0 and history.state().lost_at_last_stop is not None)
    state = history.state()
    await history.close()
    return state


async def reached(met: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not met():
            await asyncio.sleep(0.005)


def rows(folder: Path, month: str, sql: str) -> list[Any]:
    connection = driver.connect(folder / f"history-{month}.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def ask(folder: Path, work: Callable[[Shelf], T]) -> T:
    reader = Reader(Archive(folder))
    try:
        return await reader.run(work)
    finally:
        reader.close()


def sums(
    since: datetime | None = None, until: datetime | None = None
) -> Callable[[Shelf], Summary]:
    return lambda shelf: summary(shelf, since=since, until=until)


async def test_call_is_written_with_all_that_is_known(tmp_path: Path) -> None:
    first = Attempt(provider="p1", model="m", began=0.0, ended=0.5, outcome="busy", lost=True)
    second = Attempt(provider="p2", model="m", began=0.5, ended=2.0, outcome="ok", status=200)
    call = ended_call(
        model="alias",
        attempts=[first, second],
        usage=Usage(prompt=10, completion=20, cached=0),
        first_token=100.25,
        waited=1.25,
        tag="nightly",
        streamed=True,
    )
    await record(tmp_path, [call])
    wanted = "id, at, model, asked, provider, status, prompt_tokens, completion_tokens, cached"
    wanted += ", reasoning, cost, lost, first_token_ms, duration_ms, waited_ms, tag, streamed"
    assert rows(tmp_path, "2026-11", f"SELECT {wanted} FROM log") == [
        (
            *(call.id, 1794744000000, "model-a", "alias", "fake", 200, 10, 20, 0),
            *(None, 123_000_000, 1, 250, 1500, 1250, "nightly", 1),
        )
    ]
    [(attempts,)] = rows(tmp_path, "2026-11", "SELECT attempts ->> '$[0].outcome' FROM log")
    assert attempts == "busy"


async def test_missing_is_not_zero(tmp_path: Path) -> None:
    calls = [
        ended_call(usage=None, cost=None),
        ended_call(usage=Usage(prompt=0, completion=0), cost=Decimal(0)),
    ]
    await record(tmp_path, calls)
    sql = "SELECT prompt_tokens, completion_tokens, cost FROM calls ORDER BY id"
    assert rows(tmp_path, "2026-11", sql) == [(None, None, None), (0, 0, 0)]
    assert rows(tmp_path, "2026-11", "SELECT calls, counted, unpriced FROM hours") == [(2, 1, 1)]


async def test_secrets_in_an_upstreams_words_are_masked(tmp_path: Path) -> None:
    failed = Attempt(provider="p", model="m", began=0.0, detail=f"wrong key {SECRET}")
    call = ended_call(attempts=[failed], status=502, error="provider_error", message=SECRET)
    await record(tmp_path, [call], redact=Redactor())
    await asyncio.to_thread(_nowhere, tmp_path)


def _nowhere(folder: Path) -> None:
    assert all(SECRET.encode() not in file.read_bytes() for file in folder.iterdir())


async def test_long_texts_and_many_attempts_are_bounded(tmp_path: Path) -> None:
    tries = [Attempt(provider=f"p{n}", model="m", began=0.0, detail="x" * 9000) for n in range(50)]
    await record(tmp_path, [ended_call(attempts=tries, message="m" * 9000)])
    sql = "SELECT length(message), json_array_length(attempts), length(attempts) FROM log"
    [(message, attempts, size)] = rows(tmp_path, "2026-11", sql)
    assert (message, attempts) == (500, 20)
    assert size < 50_000


async def test_prompts_are_kept_apart_from_the_row(tmp_path: Path) -> None:
    calls = [ended_call(), ended_call(prompt=b'{"a":1}', answer="größe".encode() * 50_000)]
    await record(tmp_path, calls)
    [(id, prompt, size)] = rows(
        tmp_path, "2026-11", "SELECT call_id, prompt, length(answer) FROM contents"
    )
    assert (id, prompt, size) == (calls[1].id, b'{"a":1}', 65_536)


async def test_one_batch_over_a_months_end_goes_into_two_files(tmp_path: Path) -> None:
    last = datetime(2026, 10, 31, 23, 59, 58, tzinfo=UTC)
    state = await record(tmp_path, ended_calls(5, last))
    assert [len(rows(tmp_path, m, "SELECT id FROM calls")) for m in ("2026-10", "2026-11")] == [
        2,
        3,
    ]
    assert state.written == 5
    assert set(state.sizes) == {"2026-10", "2026-11"}
    assert min(state.sizes.values()) > 4096


async def test_same_call_twice_is_written_once(tmp_path: Path) -> None:
    calls = ended_calls(3)
    state = await record(tmp_path, [*calls, calls[1]])
    assert (state.written, state.dropped) == (3, 1)
    again = await record(tmp_path, [calls[0], *ended_calls(2, NOVEMBER + timedelta(hours=1))])
    assert (again.written, again.dropped) == (2, 1)
    assert rows(tmp_path, "2026-11", "SELECT sum(calls) FROM hours") == [(5,)]


async def test_values_that_no_column_takes_do_not_stop_the_others(tmp_path: Path) -> None:
    odd = [
        ended_call(served="half \ud800", request_id="\ud800"),
        ended_call(usage=Usage(prompt=10**30, completion=-1, cached=10**30)),
        ended_call(cost=Decimal("NaN")),
        ended_call(key_id=2**70),
        ended_call(error="\ud800"),
    ]
    state = await record(tmp_path, [*ended_calls(100), *odd])
    assert (state.written, state.dropped) == (105, 0)
    found = rows(tmp_path, "2026-11", "SELECT model FROM calls WHERE model LIKE 'half%'")
    assert found == [("half ?",)]
    counts = "SELECT count(*) - count(prompt_tokens), count(*) - count(cost) FROM calls"
    assert rows(tmp_path, "2026-11", counts) == [(1, 1)]


async def test_call_that_is_no_row_at_all_is_left_out_alone(tmp_path: Path) -> None:
    state = await record(tmp_path, [*ended_calls(100), ended_call(status="none"), ended_call()])
    assert (state.written, state.dropped, state.problem) == (101, 1, None)


async def test_calls_wait_for_room_on_a_full_disk(tmp_path: Path) -> None:
    history = history_in(tmp_path)
    history.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for call in ended_calls(3000):
            history.record(call)
        await reached(history.problems)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    history.wake()
    await reached(lambda: history.held == 0)
    await history.close()
    assert (history.written, history.dropped) == (3000, 0)
    assert rows(tmp_path, "2026-11", "PRAGMA integrity_check") == [("ok",)]
    assert rows(tmp_path, "2026-11", "SELECT sum(calls) FROM hours") == [(3000,)]


async def test_full_history_drops_and_never_waits(tmp_path: Path) -> None:
    history = history_in(tmp_path, bound=10)
    for call in ended_calls(15):
        history.record(call)
    assert (history.held, history.dropped) == (10, 5)
    history.start()
    await history.close()
    assert len(rows(tmp_path, "2026-11", "SELECT id FROM calls")) == 10
    history.record(ended_call())


async def test_log_says_once_that_calls_are_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    history = history_in(tmp_path, bound=2)
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


async def test_broken_month_is_named_to_who_reads_it(tmp_path: Path) -> None:
    await record(tmp_path, ended_calls(500))
    file = tmp_path / "history-2026-11.db"
    file.write_bytes(file.read_bytes()[:8192] + b"\xff" * 400_000)
    with pytest.raises(StorageError, match=r"history-2026-11\.db"):
        await ask(tmp_path, sums())


async def test_folder_that_cannot_be_used_harms_no_call(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file")
    history = history_in(tmp_path / "history", bound=10)
    history.start()
    for call in ended_calls(30):
        history.record(call)
    await reached(history.problems)
    assert "written" in history.problems()["history"]
    assert history.written == 0
    await history.close()


async def test_calls_wait_for_a_disk_that_comes_back(tmp_path: Path) -> None:
    in_the_way = tmp_path / "history-2026-11.db"
    in_the_way.mkdir()
    history = history_in(tmp_path)
    history.start()
    for call in ended_calls(5):
        history.record(call)
    await reached(history.problems)
    assert history.held == 5
    in_the_way.rmdir()
    history.wake()
    await reached(lambda: history.held == 0)
    assert history.problems() == {}
    assert (history.written, history.dropped) == (5, 0)
    await history.close()


async def test_trouble_with_one_month_does_not_repeat_another(tmp_path: Path) -> None:
    (tmp_path / "history-2026-11.db").mkdir()
    history = history_in(tmp_path)
    history.start()
    for call in ended_calls(4, datetime(2026, 10, 31, 23, 59, 58, tzinfo=UTC)):
        history.record(call)
    await reached(history.problems)
    (tmp_path / "history-2026-11.db").rmdir()
    history.wake()
    await reached(lambda: history.held == 0)
    await history.close()
    assert [len(rows(tmp_path, m, "SELECT id FROM calls")) for m in ("2026-10", "2026-11")] == [
        2,
        2,
    ]


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
async def test_broken_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, content: bytes | None
) -> None:
    await record(tmp_path, ended_calls(500))
    file = tmp_path / "history-2026-11.db"
    # Either no database at all, or pages of one overwritten.
    file.write_bytes(content or file.read_bytes()[:4096] + b"\xff" * 40_000)
    state = await record(tmp_path, ended_calls(5, NOVEMBER + timedelta(hours=1)))
    assert (state.written, state.broken, state.problem) == (5, 1, None)
    assert len(rows(tmp_path, "2026-11", "SELECT id FROM calls")) == 5
    assert (tmp_path / "history-2026-11.db.broken-1").exists()


async def test_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    await record(tmp_path, ended_calls(2))
    connection = driver.connect(tmp_path / "history-2026-11.db")
    connection.execute(f"PRAGMA user_version = {len(UPGRADES) + 1}")
    connection.close()
    state = await record(tmp_path, ended_calls(3, NOVEMBER + timedelta(hours=1)))
    assert (state.written, state.dropped) == (0, 3)
    assert state.problem is not None
    assert "newer" in state.problem
    assert len(rows(tmp_path, "2026-11", "SELECT id FROM calls")) == 2
    assert await ask(tmp_path, total_calls) == 0


async def test_old_months_are_dropped_as_whole_files(tmp_path: Path) -> None:
    for month in (8, 9, 10):
        await record(tmp_path, ended_calls(2, datetime(2026, month, 3, tzinfo=UTC)))
    for name in ("history-2026-08.db-wal", "history-2026-09.db.broken-1-wal"):
        (tmp_path / name).write_bytes(b"")
    await record(tmp_path, ended_calls(2), keep_months=2)
    kept = sorted(path.name for path in tmp_path.glob("history-*"))
    assert kept == ["history-2026-10.db", "history-2026-11.db"]


async def test_every_month_is_kept_unless_told(tmp_path: Path) -> None:
    await record(tmp_path, ended_calls(2, datetime(2020, 1, 3, tzinfo=UTC)), keep_months=0)
    assert (tmp_path / "history-2020-01.db").exists()


async def test_months_are_dropped_when_a_new_one_begins(tmp_path: Path) -> None:
    clock = StillClock()
    history = history_in(tmp_path, clock=clock, keep_months=1)
    history.start()
    history.record(ended_call())
    await reached(lambda: history.written == 1)
    clock.moment = datetime(2026, 12, 1, tzinfo=UTC)
    history.record(ended_call(clock.moment))
    await reached(lambda: not (tmp_path / "history-2026-11.db").exists())
    await reached(lambda: history.written == 2)
    await history.close()
    assert (tmp_path / "history-2026-12.db").exists()


async def test_three_months_are_read_as_one(tmp_path: Path) -> None:
    for month in (9, 10, 11):
        await record(tmp_path, ended_calls(month, datetime(2026, month, 5, 10, tzinfo=UTC)))
    found = await ask(tmp_path, sums())
    assert {name: each.calls for name, each in found.months.items()} == {
        "2026-09": 9,
        "2026-10": 10,
        "2026-11": 11,
    }
    assert found.providers["fake"].prompt_tokens == 300
    since, until = datetime(2026, 9, 30, tzinfo=UTC), datetime(2026, 11, 4, tzinfo=UTC)
    october = await ask(tmp_path, sums(since=since, until=until))
    assert set(october.months) == {"2026-10"}
    assert await ask(tmp_path, total_calls) == 30


async def test_last_day_asked_for_is_part_of_the_sum(tmp_path: Path) -> None:
    await record(tmp_path, [ended_call(datetime(2026, 11, 5, 23, 59, 59, tzinfo=UTC))])
    for day, calls in ((4, 0), (5, 1), (6, 1)):
        until = datetime(2026, 11, day, tzinfo=UTC)
        found = await ask(tmp_path, sums(until=until))
        assert sum(each.calls for each in found.months.values()) == calls


async def test_reader_holds_few_files_open(tmp_path: Path) -> None:
    for month in range(1, 9):
        await record(tmp_path, [ended_call(datetime(2026, month, 5, tzinfo=UTC))])
    history = history_in(tmp_path)
    assert await history.reader.run(total_calls) == 8
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
    assert len({f for f in open_files if f.startswith(str(tmp_path)) and f.endswith(".db")}) == 4
    history.start()
    await history.close()


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


async def test_slow_question_is_ended_and_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    await record(tmp_path, ended_calls(300))
    reader = Reader(Archive(tmp_path), seconds=0.1)
    turns = 0

    def slow(shelf: Shelf) -> Any:
        connection = shelf.open("2026-11")
        assert connection is not None
        sql = "SELECT count(*) FROM calls a, calls b, calls c, calls d WHERE a.at + b.at <> c.at"
        return connection.execute(sql).fetchall()

    asked = asyncio.ensure_future(reader.run(slow))
    while not asked.done():
        turns += 1
        await asyncio.sleep(0.005)
    with pytest.raises(Unavailable, match="shorter time"):
        await asked
    assert turns > 3
    assert await reader.run(total_calls) == 300
    reader.close()


async def test_too_many_questions_at_once_are_refused(tmp_path: Path) -> None:
    reader = Reader(Archive(tmp_path), waiting=2)
    asked = [asyncio.ensure_future(reader.run(total_calls)) for _ in range(3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[:2] == [0, 0]
    assert isinstance(answers[2], TooBusy)
    assert await reader.run(total_calls) == 0
    reader.close()


CHILD = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from aiserver.history.store import History
from aiserver.kit.clock import SystemClock
from fakes.calls import NOVEMBER, ended_call

async def load():
    history = History(Path(sys.argv[1]), SystemClock(), str, bound=3000)
    history.start()
    count = 0
    while True:
        for _ in range(500):
            # Around a month's end, so that every batch goes into two files.
            count += 1
            history.record(ended_call(NOVEMBER + timedelta(days=16 * (count % 2))))
        await asyncio.sleep(0.005)

asyncio.run(load())
"""


async def test_killed_process_leaves_whole_files_and_an_exact_count(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(tmp_path)), env={**os.environ, "PYTHONPATH": tests}
    )
    try:
        await reached(lambda: _recorded(tmp_path) > 20_000)
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    recorded = _recorded(tmp_path)
    state = await record(tmp_path, [])
    kept = 0
    for month in ("2026-11", "2026-12"):
        if (tmp_path / f"history-{month}.db").exists():
            assert rows(tmp_path, month, "PRAGMA integrity_check") == [("ok",)]
            [(count,)] = rows(tmp_path, month, "SELECT count(*) FROM calls")
            assert rows(tmp_path, month, "SELECT sum(calls) FROM hours") == [(count,)]
            kept += count
    assert kept > 0
    assert state.lost_at_last_stop is not None
    assert kept + state.lost_at_last_stop == recorded
    assert (await record(tmp_path, [])).lost_at_last_stop == 0


def _recorded(folder: Path) -> int:
    file = folder / "progress"
    if not file.exists() or file.stat().st_size < 64:
        return 0
    return memoryview(file.read_bytes()).cast("Q")[RECORDED]


def test_orderly_stop_loses_nothing(tmp_path: Path) -> None:
    asyncio.run(record(tmp_path, ended_calls(10)))
    last = Progress(tmp_path / "progress").last_run
    assert last is not None
    assert last.recorded == last.written + last.discarded == 10
