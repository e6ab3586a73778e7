"""Kept files: whole or not there, for their owner only, and gone when nobody needs them."""

import asyncio
import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aiserver.contract.errors import NotFound, StorageUnavailable
from aiserver.files import shelf as shelves
from aiserver.files.digests import PIECE, Digest, digest_of
from aiserver.files.shelf import MOST_WRITTEN
from aiserver.files.storage import Limits, Storage
from aiserver.files.store import FileStore, StoredFile
from aiserver.kit import migrations
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables, Statement, Tables
from fakes.calls import StillClock
from fakes.uploads import FakeUpload, LongUpload

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Shelf:
    """A store whose clock stands still, and what lies in its folder."""

    def __init__(self, tables: Tables, folder: Path) -> None:
        self.tables, self.folder, self.clock = tables, folder, StillClock(NOON)
        storage = Storage(artifacts=folder.with_name("artifacts"), files=folder)
        self.shelf = shelves.Shelf(tables, storage, Limits(), self.clock)
        self.files = FileStore(self.shelf)

    async def put(
        self, content: bytes = b"pixels", name: str = "a.png", *, key_id: int = 1, ref: str = "r"
    ) -> StoredFile:
        upload = FakeUpload(content, name, "image/png")
        digest = await digest_of(upload)
        return await self.files.put(upload, digest, key_id=key_id, job_ref=ref)

    def pass_time(self, **time: int) -> None:
        self.clock.moment += timedelta(**time)

    def on_disk(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.*"))

    async def count(self) -> int:
        return (await self.tables.read("SELECT count(*) FROM files"))[0][0]


@pytest.fixture
def shelf(tables: Tables, tmp_path: Path) -> Shelf:
    return Shelf(tables, tmp_path / "files")


async def everybody(_: StoredFile) -> bool:
    return True


async def nobody(_: StoredFile) -> bool:
    return False


async def test_file_is_read_back_as_it_was_sent(shelf: Shelf) -> None:
    file = await shelf.put(b"0123456789", "../té.png")
    assert file.path == f"2026/11/23/1/{file.sha256}.png"
    upload = await shelf.files.open(file.id, key_id=1)
    assert (upload.filename, upload.content_type, upload.size) == ("té.png", "image/png", 10)
    assert [await upload.read(4), await upload.read(100), await upload.read()] == [
        b"0123",
        b"456789",
        b"",
    ]
    await upload.seek(8)
    assert await upload.read(-1) == b"89"
    await upload.seek(99)
    assert await upload.read(1) == b""


async def test_empty_file_is_a_file(shelf: Shelf) -> None:
    file = await shelf.put(b"")
    assert await (await shelf.files.open(file.id, key_id=1)).read() == b""
    assert shelf.on_disk() == [file.path]


async def test_file_of_another_key_is_not_there(shelf: Shelf) -> None:
    file = await shelf.put()
    for id, key_id in ((file.id, 2), (file.id, 0), ("nope", 1), (file.path, 1)):
        with pytest.raises(NotFound):
            await shelf.files.open(id, key_id=key_id)
    await shelf.files.delete([file.id], key_id=2)
    assert (await shelf.files.find(file.id, key_id=None)).id == file.id
    await shelf.files.delete([file.id], key_id=1)
    with pytest.raises(NotFound):
        await shelf.files.find(file.id, key_id=None)
    assert shelf.on_disk() == []


async def test_same_bytes_of_two_jobs_stay_until_both_are_gone(shelf: Shelf) -> None:
    first, second = await shelf.put(ref="a"), await shelf.put(ref="b")
    other = await shelf.put(key_id=2)
    assert first.path == second.path != other.path
    await shelf.files.delete([first.id])
    assert await (await shelf.files.open(second.id, key_id=1)).read() == b"pixels"
    await shelf.files.delete([second.id, second.id])
    assert shelf.on_disk() == [other.path]


async def test_path_that_may_be_deleted_just_now_is_not_taken_again(shelf: Shelf) -> None:
    first = await shelf.put()
    await shelf.files.delete([first.id])
    second = await shelf.put()
    assert second.path != first.path
    assert second.path.startswith(f"2026/11/23/1/{second.sha256}-")
    shelf.pass_time(days=2)
    await shelf.files.sweep(everybody)
    assert await shelf.count() == 1
    assert await (await shelf.files.open(second.id, key_id=1)).read() == b"pixels"


async def test_large_file_is_never_held_whole(shelf: Shelf) -> None:
    upload = LongUpload(64 * PIECE + 5)
    digest = await digest_of(upload)
    before = memory()
    file = await shelf.files.put(upload, digest, key_id=1)
    kept = await shelf.files.open(file.id, key_id=1)
    size = 0
    while piece := await kept.read(PIECE):
        size += len(piece)
    assert size == 64 * PIECE + 5
    assert upload.largest == PIECE
    assert memory() - before < 24 * PIECE


async def test_no_more_than_a_few_are_written_at_once(shelf: Shelf) -> None:
    writing, most, full = 0, 0, asyncio.Event()

    class Slow(FakeUpload):
        async def seek(self, offset: int) -> None:
            nonlocal writing, most
            writing += 1
            most = max(most, writing)
            if writing == MOST_WRITTEN:
                full.set()
            await full.wait()
            await super().seek(offset)

        async def read(self, size: int = -1) -> bytes:
            nonlocal writing
            piece = await super().read(size)
            writing -= not piece
            return piece

    uploads = [(n, Slow(b"%d" % n)) for n in range(2 * MOST_WRITTEN)]
    digests = [await digest_of(FakeUpload(b"%d" % n)) for n, _ in uploads]
    put = shelf.files.put
    await asyncio.gather(*(put(upload, digests[n], key_id=1) for n, upload in uploads))
    assert most == MOST_WRITTEN
    assert len(shelf.on_disk()) == 2 * MOST_WRITTEN


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_full_disk_is_said_and_leaves_nothing(shelf: Shelf) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    upload = LongUpload(33 * PIECE)
    digest = await digest_of(upload)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * PIECE, hard))
    try:
        with pytest.raises(StorageUnavailable, match="disk for files is full") as refused:
            await shelf.files.put(upload, digest, key_id=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (refused.value.http_status, refused.value.retry_after) == (503, 60)
    assert shelf.on_disk() == []
    shelf.pass_time(days=2)
    await shelf.files.sweep(everybody)
    assert await shelf.count() == 0


async def test_folder_that_cannot_be_used_is_said(tables: Tables, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    shelf = Shelf(tables, tmp_path / "files")
    with pytest.raises(StorageUnavailable, match="cannot make files"):
        await shelf.put()
    assert await shelf.count() == 1
    (tmp_path / "files").unlink()
    await shelf.files.sweep(nobody)
    shelf.pass_time(days=2)
    await shelf.files.sweep(nobody)
    assert await shelf.count() == 0


async def test_upload_that_cannot_be_read_leaves_nothing(shelf: Shelf) -> None:
    class Broken(FakeUpload):
        async def read(self, size: int = -1) -> bytes:
            raise OSError("gone")

    with pytest.raises(StorageUnavailable):
        await shelf.files.put(Broken(b"x"), Digest("0" * 64, 1), key_id=1)
    assert shelf.on_disk() == []


async def test_bytes_that_are_not_on_this_machine_are_said(shelf: Shelf) -> None:
    file = await shelf.put()
    (shelf.folder / file.path).unlink()
    upload = await shelf.files.open(file.id, key_id=1)
    with pytest.raises(StorageUnavailable, match="cannot read files"):
        await upload.read()


async def test_sweep_asks_after_an_hour_and_then_each_day(shelf: Shelf) -> None:
    file = await shelf.put()
    asked: list[str] = []

    async def wanted(file: StoredFile) -> bool:
        asked.append(file.id)
        return True

    for hours in (0, 1, 1, 23):
        shelf.pass_time(hours=hours)
        await shelf.files.sweep(wanted)
    assert asked == [file.id, file.id]
    shelf.pass_time(days=2)
    await shelf.files.sweep(nobody)
    assert shelf.on_disk() == []
    shelf.pass_time(days=2)
    await shelf.files.sweep(nobody)
    assert await shelf.count() == 0


async def test_sweep_goes_on_past_one_round(shelf: Shelf) -> None:
    for number in range(3):
        await shelf.put(str(number).encode())
    columns = ", ".join(StoredFile.__struct_fields__[:11])
    row = "SELECT 'id-' || n, 1, 'p-' || n, '', 1, NULL, NULL, NULL, 0, 0, NULL"
    many = f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 700) {row} FROM c"
    await shelf.tables.write(Statement(f"INSERT INTO files ({columns}) {many}"))
    shelf.pass_time(hours=2)
    await shelf.files.sweep(nobody)
    assert shelf.on_disk() == []
    shelf.pass_time(days=2)
    await shelf.files.sweep(nobody)
    assert await shelf.count() == 0


async def test_deletion_that_broke_off_is_ended_by_the_sweep(shelf: Shelf) -> None:
    file = await shelf.put()
    await shelf.shelf.table.mark([file.id], 1, None)
    assert shelf.on_disk() == [file.path]
    await shelf.files.sweep(everybody)
    assert shelf.on_disk() == []


async def test_old_bytes_without_a_row_are_deleted(shelf: Shelf) -> None:
    file = await shelf.put()
    day = Path(file.path).parent
    orphan, half = day / f"{'0' * 64}.png", day / f"{'1' * 64}.png#1"
    fresh = day / f"{'2' * 64}.png"
    theirs = Path("pub/1/cat.png")
    for path in (orphan, half, fresh, theirs):
        (shelf.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (shelf.folder / path).write_bytes(b"x")
    for path in (file.path, orphan, half, theirs):
        os.utime(shelf.folder / path, (1, 1))
    assert await shelf.files.sweep_disk() == 2
    assert shelf.on_disk() == sorted([file.path, str(fresh), str(theirs)])


async def test_store_that_keeps_nothing_makes_no_folder(shelf: Shelf) -> None:
    await shelf.files.sweep(nobody)
    assert await shelf.files.sweep_disk() == 0
    assert not shelf.folder.exists()


async def test_inputs_of_an_older_version_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    migrations.run(path, "0009")
    database = Database.open(path)
    tables = SqliteTables(database)
    columns = "id, key_id, path, sha256, size, created, look"
    row = "VALUES ('i', 1, 'p/q.png', 'h', 3, 5, 6)"
    await tables.write(Statement(f"INSERT INTO files ({columns}) {row}"))
    assert migrations.upgrade(database)
    shelf = Shelf(tables, tmp_path / "files")
    (shelf.folder / "p").mkdir(parents=True)
    (shelf.folder / "p/q.png").write_bytes(b"old")
    assert await (await shelf.files.open("i", key_id=1)).read() == b"old"
    await shelf.files.delete(["i"], key_id=1)
    assert shelf.on_disk() == []
    database.close()
