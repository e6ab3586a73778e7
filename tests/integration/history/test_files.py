"""History in files: what disks do to them, and what they do then."""

import asyncio
import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aiserver.contract.trace import Attempt, Usage
from aiserver.history.analytics import summary, total_calls
from aiserver.history.files import UPGRADES
from aiserver.kit.db import Database, StorageError, driver
from aiserver.kit.redact import Redactor
from fakes.calls import NOVEMBER, ended_call, ended_calls
from histories import Histories, reached

SECRET = "sk-0123456789abcdefghij0123456789"


@pytest.fixture
def files(tmp_path: Path) -> Histories:
    return Histories(tmp_path)


def rows(folder: Path, month: str, sql: str) -> list[Any]:
    connection = driver.connect(folder / f"history-{month}.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


async def test_call_is_written_with_all_that_is_known(files: Histories, tmp_path: Path) -> None:
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
    await files.record([call])
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


async def test_secrets_in_an_upstreams_words_are_masked(files: Histories, tmp_path: Path) -> None:
    failed = Attempt(provider="p", model="m", began=0.0, detail=f"wrong key {SECRET}")
    call = ended_call(attempts=[failed], status=502, error="provider_error", message=SECRET)
    await files.record([call], redact=Redactor())
    await asyncio.to_thread(_nowhere, tmp_path)


def _nowhere(folder: Path) -> None:
    assert all(SECRET.encode() not in file.read_bytes() for file in folder.iterdir())


async def test_calls_wait_for_room_on_a_full_disk(files: Histories, tmp_path: Path) -> None:
    history = files.history()
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


async def test_broken_month_is_named_to_who_reads_it(files: Histories, tmp_path: Path) -> None:
    await files.record(ended_calls(500))
    file = tmp_path / "history-2026-11.db"
    file.write_bytes(file.read_bytes()[:8192] + b"\xff" * 400_000)
    with pytest.raises(StorageError, match=r"history-2026-11\.db"):
        await files.ask(lambda shelf: summary(shelf, since=None, until=None))


async def test_folder_that_cannot_be_used_harms_no_call(files: Histories, tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file")
    history = Histories(tmp_path / "history").history(bound=10)
    history.start()
    for call in ended_calls(30):
        history.record(call)
    await reached(history.problems)
    assert "written" in history.problems()["history"]
    assert history.written == 0
    await history.close()


async def test_calls_wait_for_a_disk_that_comes_back(files: Histories, tmp_path: Path) -> None:
    in_the_way = tmp_path / "history-2026-11.db"
    in_the_way.mkdir()
    history = files.history()
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


async def test_trouble_with_one_month_does_not_repeat_another(
    files: Histories, tmp_path: Path
) -> None:
    (tmp_path / "history-2026-11.db").mkdir()
    history = files.history()
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
    files: Histories, tmp_path: Path, content: bytes | None
) -> None:
    await files.record(ended_calls(500))
    file = tmp_path / "history-2026-11.db"
    # Either no database at all, or pages of one overwritten.
    file.write_bytes(content or file.read_bytes()[:4096] + b"\xff" * 40_000)
    state = await files.record(ended_calls(5, NOVEMBER + timedelta(hours=1)))
    assert (state.written, state.broken, state.problem) == (5, 1, None)
    assert len(rows(tmp_path, "2026-11", "SELECT id FROM calls")) == 5
    assert (tmp_path / "history-2026-11.db.broken-1").exists()


async def test_file_of_a_newer_version_is_left_alone(files: Histories, tmp_path: Path) -> None:
    await files.record(ended_calls(2))
    connection = driver.connect(tmp_path / "history-2026-11.db")
    connection.execute(f"PRAGMA user_version = {len(UPGRADES) + 1}")
    connection.close()
    state = await files.record(ended_calls(3, NOVEMBER + timedelta(hours=1)))
    assert (state.written, state.dropped) == (0, 3)
    assert state.problem is not None
    assert "newer" in state.problem
    assert len(rows(tmp_path, "2026-11", "SELECT id FROM calls")) == 2
    assert await files.ask(total_calls) == 0


async def test_old_months_are_dropped_as_whole_files(files: Histories, tmp_path: Path) -> None:
    for month in (8, 9, 10):
        await files.record(ended_calls(2, datetime(2026, month, 3, tzinfo=UTC)))
    for name in ("history-2026-08.db-wal", "history-2026-09.db.broken-1-wal"):
        (tmp_path / name).write_bytes(b"")
    await files.record(ended_calls(2), keep_months=2)
    kept = sorted(path.name for path in tmp_path.glob("history-*"))
    assert kept == ["history-2026-10.db", "history-2026-11.db"]


async def test_reader_holds_few_files_open(files: Histories, tmp_path: Path) -> None:
    for month in range(1, 9):
        await files.record([ended_call(datetime(2026, month, 5, tzinfo=UTC))])
    history = files.history()
    assert await history.reader.run(total_calls) == 8
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()]
    assert len({f for f in open_files if f.startswith(str(tmp_path)) and f.endswith(".db")}) == 4
    history.start()
    await history.close()


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]


def test_tables_of_history_are_made_on_postgres_alone(database: Database) -> None:
    found = database.read("SELECT name FROM sqlite_master WHERE name LIKE 'history%'")
    assert found == []
