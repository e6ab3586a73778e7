"""History on PostgreSQL: shared by processes, whole after a restart, exact when an answer is lost."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from aiserver.contract.errors import Unavailable
from aiserver.contract.trace import Attempt, Trace
from aiserver.history.archive import Shelf
from aiserver.history.operations import AdminQueryRequestLogs, RequestLogs
from aiserver.history.reader import Reader
from aiserver.kit.db import StorageError
from fakes.calls import NOVEMBER, ended_call, ended_calls
from histories import Histories, answering, asked, histories_on, reached
from postgres import server

OCTOBER = datetime(2026, 10, 15, 12, tzinfo=UTC)


@pytest.fixture
def histories(tmp_path: Path) -> Generator[Histories]:
    with histories_on("postgres", tmp_path) as opened:
        yield opened


def sums(histories: Histories, month: str = "2026-11") -> set[int]:
    """The calls of a month, counted in every way that there is."""
    tables = ("SELECT sum(calls) FROM hours", "SELECT sum(calls) FROM days")
    [(runs,)] = histories.rows(month, "SELECT sum(calls) FROM runs")
    return {int(histories.rows(month, sql)[0][0]) for sql in tables} | {
        int(runs),
        histories.count(month),
    }


async def test_calls_wait_for_a_server_that_restarts(histories: Histories) -> None:
    history = histories.history()
    history.start()
    history.record(ended_call())
    await reached(lambda: history.written == 1)
    await asyncio.to_thread(server().stop, "fast")
    for call in ended_calls(5000):
        history.record(call)
    await reached(history.problems)
    assert "PostgreSQL" in history.problems()["history"]
    await asyncio.to_thread(server().start)
    history.wake()
    await reached(lambda: history.held == 0)
    assert history.problems() == {}
    assert (history.written, history.dropped) == (5001, 0)
    await history.close()
    assert sums(histories) == {5001}


async def test_crashes_under_load_lose_nothing(histories: Histories) -> None:
    history = histories.history()
    history.start()
    recorded = 0
    for _ in range(3):
        restarting = asyncio.create_task(asyncio.to_thread(server().restart))
        while not restarting.done():
            for call in ended_calls(50):
                history.record(call)
                recorded += 1
            await asyncio.sleep(0.01)
        await restarting
        history.wake()
        await reached(lambda: not history.problems())
    await reached(lambda: history.held == 0)
    await history.close()
    assert (history.written, history.dropped) == (recorded, 0)
    assert sums(histories) == {recorded}


WRITER = """
import asyncio, random, sys
from datetime import timedelta
from pathlib import Path
from fakes.calls import NOVEMBER, ended_call
from histories import Histories

async def load():
    worker = int(sys.argv[3])
    history = Histories(Path(sys.argv[1]), sys.argv[2]).history(worker=worker)
    history.start()
    for turn in range(30):
        for _ in range(100):
            # Over a month's end, in rows of the sums that all processes write to, in any order.
            at = NOVEMBER + timedelta(days=16 * random.randrange(2), hours=random.randrange(20))
            name = f"model-{random.randrange(9)}"
            call = ended_call(at, served=name, key_id=random.randrange(9))
            call.id += worker << 18
            history.record(call)
        history.wake()
        await asyncio.sleep(0.005)
    await history.close()
    assert (history.written, history.dropped) == (3000, 0), history.state()

asyncio.run(load())
"""


async def test_processes_write_to_one_database_at_once(histories: Histories) -> None:
    tests = str(Path(__file__).parents[2])
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, str(histories.folder), str(histories.url), str(worker)),
            env={**os.environ, "PYTHONPATH": tests},
        )
        for worker in (1, 2, 3)
    ]
    assert [await child.wait() for child in children] == [0, 0, 0]
    months = [sums(histories, month) for month in ("2026-11", "2026-12")]
    assert [len(month) for month in months] == [1, 1]
    assert sum(sum(month) for month in months) == 9000
    names = sorted(path.name for path in histories.folder.iterdir())
    assert names == ["progress", "progress-2", "progress-3"]


async def test_dropped_months_leave_nothing_behind(histories: Histories) -> None:
    for month in (8, 9, 10):
        at = datetime(2026, month, 3, tzinfo=UTC)
        await histories.record([ended_call(at, prompt=b"q"), ended_call(at)])
    state = await histories.record(ended_calls(2), keep_months=2)
    assert list(state.sizes) == ["2026-10", "2026-11"]
    assert min(state.sizes.values()) > 8192
    name = (histories.url or "").rpartition("/")[2]
    for table in ("hours", "days", "runs"):
        sql = f"SELECT string_agg(DISTINCT month, ' ' ORDER BY month) FROM history_{table}"
        assert server().execute(sql, name=name) == "2026-10 2026-11"
    tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^history_.*_2026'"
    assert server().execute(tables, name=name) == "4"


async def test_month_that_another_process_dropped_is_made_again(histories: Histories) -> None:
    history = histories.history()
    history.start()
    history.record(ended_call(OCTOBER))
    await reached(lambda: history.written == 1)
    await histories.record([], keep_months=1, worker=2)
    assert await histories.ask(lambda shelf: shelf.months()) == []
    history.record(ended_call(OCTOBER))
    await reached(history.problems)
    history.wake()
    await reached(lambda: history.written == 2)
    await history.close()
    assert sums(histories, "2026-10") == {1}


def nul_calls() -> list[Trace]:
    failed = Attempt(provider="p", model="m", began=0.0, detail="nul \x00 \\u0000 \\\x00")
    return [
        ended_call(model="a\x00b", served=None, provider=None, attempts=[failed]),
        ended_call(message="\x00", attempts=[failed], error="odd"),
        ended_call(error="\x00"),
        ended_call(prompt=b"\x00\xff", answer="größe".encode()[:3]),
    ]


async def test_text_that_the_server_refuses_is_replaced(histories: Histories) -> None:
    calls = nul_calls()
    async with answering(histories, [*ended_calls(50), *calls]) as handlers:
        found = await asked(handlers, RequestLogs(ids=[call.id for call in calls], order_by="id"))
        named, told, wrong, kept = found["results"]
        assert named["meta"]["model"] == "a\ufffdb"
        assert '"nul \ufffd \\\\u0000 \\\\\ufffd"' in named["meta"]["attempts"]
        assert told["errorResponse"]["message"] == "\ufffd"
        assert wrong["statusDescription"] == "\ufffd"
        assert (kept["requestBody"], kept["responseDto"]) == ("\ufffd\ufffd", "gr\ufffd")
        query = AdminQueryRequestLogs(include="total")
        assert (await asked(handlers, query, metaContains="nul \ufffd"))["total"] == 2
        assert (await asked(handlers, query, pathInfo="/v1/chat/completions"))["total"] == 54
    assert sums(histories) == {54}


@asynccontextmanager
async def losing_answers(url: str, when: bytes) -> AsyncGenerator[tuple[str, asyncio.Event]]:
    """A way to the server that breaks once: the server does what `when` says, and nobody hears."""
    lost = asyncio.Event()
    port = urlsplit(url).port

    async def pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool, end: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if not asks and end.is_set():
                    break
                if asks and when in data and not lost.is_set():
                    lost.set()
                    end.set()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        end = asyncio.Event()
        asking = asyncio.create_task(pump(reader, back, asks=True, end=end))
        await pump(there, writer, asks=False, end=end)
        await asking

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0)
    here = proxy.sockets[0].getsockname()[1]
    try:
        yield url.replace(f":{port}/", f":{here}/"), lost
    finally:
        proxy.close()


async def test_commit_whose_answer_is_lost_counts_once(histories: Histories) -> None:
    assert histories.url is not None
    # The month is there already, so that the first commit is that of the calls.
    await histories.record([ended_call()])
    async with losing_answers(histories.url, b"COMMIT") as (url, lost):
        history = Histories(histories.folder, url).history()
        calls = ended_calls(100)
        for call in calls:
            history.record(call)
        history.start()
        await reached(history.problems)
        assert lost.is_set()
        history.wake()
        await reached(lambda: history.held == 0)
        await history.close()
        assert (history.written, history.dropped) == (100, 0)
    assert sums(histories) == {101}


async def test_what_a_kill_lost_is_known_once_the_server_answers(histories: Histories) -> None:
    killed = histories.history()
    for call in ended_calls(3):
        killed.record(call)
    server().stop()
    history = histories.history()
    history.start()
    try:
        await reached(history.problems)
        assert history.lost_at_last_stop is None
    finally:
        await asyncio.to_thread(server().start)
    history.wake()
    await reached(lambda: history.lost_at_last_stop is not None)
    assert history.lost_at_last_stop == 3
    await history.close()


async def test_questions_go_on_after_a_restart(histories: Histories) -> None:
    await histories.record(ended_calls(3))
    reader = Reader(histories.archive())
    months = await reader.run(lambda shelf: shelf.months())
    await asyncio.to_thread(server().restart)
    assert await reader.run(lambda shelf: shelf.months()) == months
    server().stop()
    try:
        with pytest.raises(StorageError, match="reached"):
            await reader.run(lambda shelf: shelf.months())
    finally:
        await asyncio.to_thread(server().start)
    assert await reader.run(lambda shelf: shelf.months()) == months
    await asyncio.to_thread(reader.close)


async def test_end_of_the_server_ends_a_long_question(histories: Histories) -> None:
    await histories.record(ended_calls(3, NOVEMBER))
    reader = Reader(histories.archive())
    running = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(shelf: Shelf) -> object:
        month = shelf.open("2026-11")
        assert month is not None
        loop.call_soon_threadsafe(running.set)
        return month.rows("SELECT pg_sleep(60)")

    asking = asyncio.ensure_future(reader.run(slow))
    await running.wait()
    await asyncio.to_thread(reader.close)
    with pytest.raises(Unavailable):
        await asking
    busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'"
    assert server().execute(busy) == "0"


async def test_question_cannot_write(histories: Histories) -> None:
    await histories.record(ended_calls(3))
    with pytest.raises(StorageError, match="read-only"):
        await histories.ask(
            lambda shelf: shelf.read("DELETE FROM history_runs")  # type: ignore[attr-defined]
        )
