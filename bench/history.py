"""What history costs: the call's thread, the writer's CPU a row, and the summary of a million."""

import asyncio
import os
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from aiserver.contract.trace import Attempt, Considered, Trace, Usage
from aiserver.history.analytics import summary
from aiserver.history.store import History
from aiserver.kit.clock import SystemClock
from aiserver.kit.ids import CallIds

RECORD_LIMIT_US, ROW_LIMIT_US, RATE_LIMIT, SUMMARY_LIMIT_MS = 1.0, 6.0, 50_000, 50.0
_CALLS, _REPEATS, _MILLION = 4_000, 15, 1_000_000
_BEGAN = datetime(2026, 11, 2, tzinfo=UTC)


def report() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _drained(Path(folder) / "drained")
        _asked(Path(folder) / "asked")


def _drained(folder: Path) -> None:
    """A full ring at a time: CPU of handing calls over, then CPU and time until all are written."""
    history = History(folder, SystemClock(), str, bound=_CALLS)
    recorded: list[float] = []
    spent: list[float] = []
    rates: list[float] = []
    ids = CallIds()
    for _ in range(_REPEATS):
        calls = [call(ids.next(_now_ms()), number) for number in range(_CALLS)]
        before = time.process_time_ns()
        for each in calls:
            history.record(each)
        recorded.append((time.process_time_ns() - before) / 1000 / _CALLS)
        written, before, began = history.written, time.process_time_ns(), time.perf_counter()
        if not written:
            history.start()
        while history.written < written + _CALLS:
            history.wake()
            time.sleep(0.001)
        spent.append((time.process_time_ns() - before) / 1000 / _CALLS)
        rates.append(_CALLS / (time.perf_counter() - began))
    asyncio.run(history.close())
    print(f"History, {_REPEATS} rings of {_CALLS} calls, load average {os.getloadavg()[0]:.1f}:")
    _show("record", statistics.median(recorded), "CPU us/call", RECORD_LIMIT_US)
    _show("row and sums", statistics.median(spent), "CPU us/row", ROW_LIMIT_US)
    _show("written", statistics.median(rates), "rows/s", RATE_LIMIT)
    size = sum(file.stat().st_size for file in folder.glob("*.db"))
    _show("size", size / _CALLS / _REPEATS, "bytes/row", None)


def _asked(folder: Path) -> None:
    history = History(folder, SystemClock(), str, bound=_CALLS)
    history.start()
    ids, spread = CallIds(), 25 * 86_400_000 // _MILLION
    began = int(_BEGAN.timestamp() * 1000)
    for number in range(_MILLION):
        while history.held >= _CALLS - 1:
            time.sleep(0.005)
        history.record(call(ids.next(began + number * spread), number))
    while history.written < _MILLION:
        time.sleep(0.01)
    times: list[float] = []
    for _ in range(_REPEATS):
        before = time.perf_counter()
        asyncio.run(_summary(history))
        times.append((time.perf_counter() - before) * 1000)
    _show("summary of a million", statistics.median(times), "ms", SUMMARY_LIMIT_MS)
    asyncio.run(history.close())


async def _summary(history: History) -> None:
    await history.reader.run(lambda shelf: summary(shelf, since=None, until=None))


def call(id: int, number: int) -> Trace:
    """A chat call as it is handed over; twenty models, five providers, two hundred keys."""
    key = number % 200
    provider, model = f"provider-{key % 5}", f"model-{key % 20}"
    considered = tuple(Considered(f"provider-{n}", n, 8, 0, 1, "ready") for n in range(2))
    attempt = Attempt(provider=provider, model=model, began=0.0001, considered=considered)
    attempt.ended, attempt.outcome, attempt.status = 1.2, "ok", 200
    return Trace(
        id=id,
        at=(id >> 21) / 1000,
        started=100.0,
        operation="OpenAiChatCompletion",
        request_id=random.randbytes(16).hex(),
        key_id=key,
        address=f"10.0.0.{number % 250}",
        method="POST",
        path="/v1/chat/completions",
        model=model,
        served=model,
        provider=provider,
        attempts=[attempt],
        usage=Usage(prompt=100 + number % 7, completion=200, cached=0),
        first_token=100.3,
        waited=1.1,
        duration=1.3,
        status=200,
        cost=Decimal("0.000123"),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _show(what: str, figure: float, unit: str, limit: float | None) -> None:
    print(f"{what:24}{figure:12.2f} {unit:12}" + (f"limit {limit:g}" if limit else ""))


if __name__ == "__main__":
    report()
