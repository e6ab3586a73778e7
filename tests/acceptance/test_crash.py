"""A server killed under load: its files are whole, and what is missing is little and counted."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from acceptance.running import RunningServer
from aiserver.history.ring import RECORDED
from fakes.load import CHAT, OK, Caller, PacedUpstream, history_of, month_files, rows
from gateway import SECRET

LANES = ("auto", "off")
CALLERS = 16
# What is written four times a second, and as long again for the writing on a busy machine.
UNWRITTEN_SECONDS = 0.6


class Killed(NamedTuple):
    """One kill: when each answered call had its answer, by the clock that `at` is of."""

    at: float
    answered: dict[str, float]


def start(data: Path, lane: dict[str, str]) -> RunningServer:
    quiet = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json", "AUTH_SECRET": SECRET}
    return RunningServer.start(data, {**quiet, **lane})


@asynccontextmanager
async def calling(server: RunningServer) -> AsyncGenerator[Caller]:
    caller = Caller(f"http://127.0.0.1:{server.port}", SECRET)
    try:
        yield caller
    finally:
        await caller.close()


async def killed_under_load(server: RunningServer, name: str, seconds: float) -> Killed:
    """Calls as fast as the callers can, plain and streamed in turn, until the server is dead.

    `name` makes them other calls than those of another load.
    """
    loop, numbers = asyncio.get_running_loop(), count()
    answered: dict[str, float] = {}
    dead = asyncio.Event()
    at = 0.0

    def kill() -> None:
        nonlocal at
        at = loop.time()
        server.process.kill()
        dead.set()

    async with calling(server) as caller:

        async def call_on() -> None:
            while not dead.is_set():
                number = next(numbers)
                text = f"{name}-{number}"
                came = await caller.ask(text, stream=number % 2 == 1)
                if came == OK:
                    answered[text] = loop.time()
                else:
                    assert dead.is_set(), came

        loop.call_later(seconds, kill)
        await asyncio.gather(*(call_on() for _ in range(CALLERS)))
    server.stop()
    return Killed(at, answered)


class Left(NamedTuple):
    """What a kill left on disk: calls in the history, rows in the ledger, what the ring counted."""

    calls: int
    ledger: int
    recorded: int


def left_by_kill(data: Path) -> Left:
    """Looked at in a copy, before any server mends it; every database must be whole."""
    copy = shutil.copytree(data, data.with_name(f"{data.name}-copy"))
    try:
        for file in (*month_files(copy), copy / "app.db"):
            assert rows(file, "PRAGMA integrity_check") == [("ok",)], file.name
        calls = sum(rows(file, "SELECT count(*) FROM calls")[0][0] for file in month_files(copy))
        [(ledger,)] = rows(copy / "app.db", "SELECT count(*) FROM ledger")
        counters = memoryview((copy / "history" / "progress").read_bytes()).cast("Q")
        return Left(calls, ledger, counters[RECORDED])
    finally:
        shutil.rmtree(copy)


async def told_lost(server: RunningServer, expected: int) -> None:
    """Waits until the log says how many calls the run before lost; it says nothing of none."""
    async with asyncio.timeout(5):
        while [
            json.loads(line)["calls"]
            for line in server.printed().splitlines()
            if "history_lost_at_last_stop" in line
        ] != [expected][: bool(expected)]:
            await asyncio.sleep(0.01)


def not_in_ledger(data: Path) -> set[str]:
    """Chats that the history has and the ledger has not."""
    settled = {id for (id,) in rows(data / "app.db", "SELECT id FROM ledger")}
    return {
        request_id
        for file in month_files(data)
        for id, request_id in rows(file, "SELECT id, request_id FROM log WHERE path = ?", CHAT)
        if id not in settled
    }


async def survives(data: Path, lane: dict[str, str], *, kills: int, seconds: float) -> list[str]:
    """Kills a server so often, each time on what the last one left; a line of figures each."""
    lines: list[str] = []
    async with PacedUpstream() as upstream:
        server = await asyncio.to_thread(start, data, lane)
        async with calling(server) as caller:
            await caller.provider("fake", upstream.base_url)
        before = Left(0, 0, 0)
        try:
            for number in range(kills):
                killed = await killed_under_load(server, f"kill-{number}", seconds)
                left = left_by_kill(data)
                server = await asyncio.to_thread(start, data, lane)
                lost = left.recorded - (left.calls - before.calls)
                await told_lost(server, lost)
                settled = left.ledger - before.ledger
                lines.append(judged(data, killed, lost=lost, settled=settled))
                before = left
            async with calling(server) as caller:
                assert await caller.ask("after") == OK
        finally:
            server.stop()
    assert not [file for file in (data / "history").iterdir() if "broken" in file.name]
    return lines


def judged(data: Path, killed: Killed, *, lost: int, settled: int) -> str:
    """What a kill cost, held against when the callers had their answers."""
    answered = killed.answered
    kept = history_of(data)
    missing = {text: killed.at - at for text, at in answered.items() if text not in kept}
    unsettled = {t: killed.at - answered[t] for t in not_in_ledger(data) if t in answered}
    late = sum(killed.at - at < UNWRITTEN_SECONDS for at in answered.values())
    line = (
        f"{len(answered)} answered, {late} of them in the last {UNWRITTEN_SECONDS} s; lost and "
        f"counted {lost}, answered and missing {len(missing)}, the oldest "
        f"{max(missing.values(), default=0) * 1000:.0f} ms before the kill; ledger lacks "
        f"{len(answered) - settled}, the oldest known {max(unsettled.values(), default=0) * 1000:.0f} ms"
    )
    # One call can be between its last byte and its record.
    assert len(missing) <= lost + 1, line
    assert lost <= late + CALLERS, line
    assert max(missing.values(), default=0) < UNWRITTEN_SECONDS, line
    assert len(answered) - settled <= late, line
    assert max(unsettled.values(), default=0) < UNWRITTEN_SECONDS, line
    return line


async def test_killed_server_loses_little_and_counts_it(tmp_path: Path) -> None:
    await survives(tmp_path / "data", {}, kills=1, seconds=0.7)


@pytest.mark.long
@pytest.mark.parametrize("lane", LANES)
async def test_five_kills_each_lose_little_and_count_it(tmp_path: Path, lane: str) -> None:
    for line in await survives(tmp_path / "data", {"HOT_LANE": lane}, kills=5, seconds=2.37):
        sys.stdout.write(f"{lane:4} {line}\n")
