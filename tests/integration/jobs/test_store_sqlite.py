"""What only the store on SQLite has: its month files, and counts in memory."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from aiserver.contract.errors import TooBusy
from aiserver.jobs.job import LARGEST_ID, Completed, Failed, Fence, State
from aiserver.jobs.store import MOST_ROWS, Bounds, Filter, sqlite_enqueue
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.store.sqlite_enqueue import IDS_AT_ONCE
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.jobs.store.sqlite_rows import COLUMNS
from aiserver.kit.db import Database, Row, StorageError, open_file
from fakes.calls import StillClock
from job_stores import BROKEN, OpenStores, Stores, new_job, settled


@pytest.fixture
def engine() -> str:
    return "sqlite"


async def test_crash_between_the_two_files_loses_and_doubles_nothing(
    store: Stores, tmp_path: Path
) -> None:
    job = await store.started()
    await store.jobs.finish(job.fence, Completed(result=b"1", ledger=settled(1, job.fence)))
    rows = await store.rows(f"SELECT {COLUMNS} FROM jobs")
    MonthFiles(tmp_path).put("2026-11", rows)
    assert (await store.job(job.id)).result == b"1"
    store.tick(1)
    assert await store.jobs.archive(store.now) == 1
    page, total = await store.jobs.jobs(Filter(), month="2026-11")
    assert ([found.id for found in page], total) == ([job.id], 1)


async def test_large_jobs_are_archived_a_few_at_a_time(store: Stores) -> None:
    for _ in range(3):
        job = await store.started()
        await store.jobs.finish(job.fence, Completed(result=bytes(9 * 2**20)))
    store.tick(1)
    assert [await store.jobs.archive(store.now) for _ in range(4)] == [1, 1, 1, 0]


async def test_more_jobs_than_a_round_are_archived_in_several(store: Stores) -> None:
    count = MOST_ROWS + 5
    jobs = [store.jobs.start(new_job(), owner="o", until=store.now) for _ in range(count)]
    ids = [accepted.id for accepted in await asyncio.gather(*jobs)]
    ends = [store.jobs.finish(Fence(id, "o", 1), Completed(result=b"1")) for id in ids]
    await asyncio.gather(*ends)
    store.tick(1)
    assert [await store.jobs.archive(store.now) for _ in range(3)] == [MOST_ROWS, 5, 0]


async def test_month_of_a_newer_version_is_left_alone(store: Stores, tmp_path: Path) -> None:
    job = await store.started()
    await store.jobs.finish(job.fence, Failed(error=BROKEN))
    with closing(open_file(tmp_path / "jobs-2026-11.db")) as connection:
        connection.execute("PRAGMA user_version = 9")
    store.tick(1)
    with pytest.raises(StorageError, match="newer"):
        await store.jobs.archive(store.now)
    assert (await store.job(job.id)).error_code == "UpstreamFailed"


async def test_lost_month_leaves_what_the_summary_knows(store: Stores, tmp_path: Path) -> None:
    job = await store.started(tag="t")
    await store.jobs.finish(job.fence, Failed(error=BROKEN))
    store.tick(1)
    await store.jobs.archive(store.now)
    MonthFiles(tmp_path).drop("2026-11")
    found = await store.job(job.id)
    assert (found.tag, found.error_message, found.request) == ("t", "It broke.", None)
    assert "no such job" in (await store.jobs.requeue([job.id])).errors[job.id]


async def test_restored_older_copy_gives_no_number_again(
    tmp_path: Path, migrated: bytes, store: Stores
) -> None:
    job = await store.started()
    await store.jobs.finish(job.fence, Completed(result=b"1"))
    store.tick(1)
    await store.jobs.archive(store.now)
    (tmp_path / "restored.db").write_bytes(migrated)
    with closing(Database.open(tmp_path / "restored.db")) as database:
        restored = await SqliteJobs.open(database, StillClock(), tmp_path)
        assert (await restored.enqueue(new_job())).id == job.id + 1


async def test_numbers_end_below_two_to_the_31st(tmp_path: Path, migrated: bytes) -> None:
    (tmp_path / "app.db").write_bytes(migrated)
    with closing(Database.open(tmp_path / "app.db")) as database:
        store = await SqliteJobs.open(database, StillClock(), tmp_path)
        sql = f"UPDATE sequences SET last = {LARGEST_ID - IDS_AT_ONCE}"
        await database.write(lambda connection: connection.execute(sql))
        given = [(await store.enqueue(new_job())).id for _ in range(IDS_AT_ONCE)]
        assert given == [*range(LARGEST_ID - IDS_AT_ONCE + 1, LARGEST_ID + 1)]
        with pytest.raises(StorageError, match="used up"):
            await store.enqueue(new_job())


async def test_processes_never_share_a_number(
    tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StorageError("The disk is full.")

    (tmp_path / "app.db").write_bytes(migrated)
    with closing(Database.open(tmp_path / "app.db")) as database:
        one = await SqliteJobs.open(database, StillClock(), tmp_path)
        other = await SqliteJobs.open(database, StillClock(), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_enqueue, "_row", fails)
            with pytest.raises(StorageError, match="full"):
                await one.enqueue(new_job())
        # What the failed write took went back, and another process has it by now.
        given = [(await store.enqueue(new_job())).id for _ in range(70) for store in (other, one)]
        assert len(given) == len(set(given))


async def test_count_of_waiting_jobs_is_mended(tmp_path: Path, migrated: bytes) -> None:
    (tmp_path / "app.db").write_bytes(migrated)
    with closing(Database.open(tmp_path / "app.db")) as database:
        clock = StillClock()
        store = await SqliteJobs.open(database, clock, tmp_path, bounds=Bounds(queued=1))
        await store.enqueue(new_job())
        await database.write(lambda connection: connection.execute("DELETE FROM jobs"))
        await store.sweep()
        with pytest.raises(TooBusy):
            await store.enqueue(new_job())
        clock.moment = clock.moment.replace(hour=13)
        await store.sweep()
        await store.enqueue(new_job())


async def test_full_queue_takes_no_dead_jobs_back(open_stores: OpenStores) -> None:
    store = await open_stores(bounds=Bounds(queued=1))
    job = await store.started()
    await store.jobs.finish(job.fence, Failed(error=BROKEN))
    await store.put()
    assert "full" in (await store.jobs.requeue([job.id])).errors[job.id]


async def test_job_queued_again_while_it_was_archived_leaves_no_copy(
    store: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [await store.started(), await store.started()]
    for job in ended:
        await store.jobs.finish(job.fence, Failed(error=BROKEN))
    put = MonthFiles.put

    def meanwhile(files: MonthFiles, month: str, rows: Sequence[Row]) -> None:
        put(files, month, rows)
        # Another process, as the command line is one.
        with closing(open_file(tmp_path / "app.db")) as connection:
            sql = "UPDATE jobs SET state = 'Queued', ended = NULL WHERE id = ?"
            connection.execute(sql, (ended[0].id,))

    monkeypatch.setattr(MonthFiles, "put", meanwhile)
    store.tick(1)
    assert await store.jobs.archive(store.now) == 1
    page, total = await store.jobs.jobs(Filter(), month="2026-11")
    assert ([job.id for job in page], total) == ([ended[1].id], 1)
    assert (await store.job(ended[0].id)).state is State.QUEUED
