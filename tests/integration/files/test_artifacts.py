"""Results and uploads: whole or not there, one place each, and rows and bytes that go together."""

import asyncio
import os
import resource
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from aiserver.contract.errors import Forbidden, InvalidRequest, StorageUnavailable
from aiserver.files.checkup import CHANGED, MISSING, checked
from aiserver.files.digests import digest_of
from aiserver.files.storage import Limits, Storage
from aiserver.files.table import StoredFile
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables, Statement, Tables
from fakes.uploads import FakeUpload
from file_places import NOON, Place

PNG = b"\x89PNG\r\n\x1a\n"
MB = 1024 * 1024


async def wanted(_: StoredFile) -> bool:
    return True


async def test_result_is_read_back_from_its_path(place: Place) -> None:
    source = place.source(PNG)
    saved = await place.artifacts.save(
        source,
        key_id=7,
        extension="png",
        name="../ca\0t.png",
        operation="ScaleImage",
        job_id=2**40,
        job_ref="r",
        width=64,
        height=32,
        duration=1.5,
    )
    assert saved.path == f"2026/11/23/7/{sha256(PNG).hexdigest()}.png"
    assert await place.artifacts.find(saved.path) == saved
    assert (saved.content_type, saved.name, saved.size) == ("image/png", "cat.png", 8)
    assert (saved.operation, saved.job_id, saved.job_ref) == ("ScaleImage", 2**40, "r")
    assert (saved.width, saved.height, saved.duration) == (64, 32, 1.5)
    assert (saved.created, saved.expires) == (NOON, None)
    assert await place.read(saved) == source.read_bytes() == PNG


async def test_ranges_are_read_across_pieces(place: Place) -> None:
    content = os.urandom(11 * MB + 7)
    saved = await place.save(content)
    assert await place.read(saved) == content
    for start, end in ((0, 1), (5 * MB - 1, 5 * MB + 1), (11 * MB, None), (11 * MB, 99 * MB)):
        assert await place.read(saved, start, end) == content[start:end]
    assert await place.read(saved, 99 * MB) == b""
    copy = await place.artifacts.fetch(saved, place.folder)
    assert copy.parent == place.folder
    assert copy.read_bytes() == content


async def test_fetched_file_outlives_its_original(place: Place) -> None:
    saved = await place.save(PNG)
    local = await place.artifacts.fetch(saved, place.folder)
    again = await place.artifacts.fetch(saved, place.folder)
    await place.artifacts.delete([saved])
    assert local != again
    assert local.read_bytes() == PNG


async def test_lost_bytes_are_not_fetched(place: Place) -> None:
    saved = await place.save(PNG)
    await place.storage.of(saved.kind).delete(saved.place)
    with pytest.raises(StorageUnavailable):
        await place.artifacts.fetch(saved, place.folder)


async def test_empty_file_is_a_file(place: Place) -> None:
    saved = await place.save(b"")
    assert await place.read(saved) == b""
    assert await place.stored() == [saved.path]


async def test_same_bytes_of_a_day_are_one_result(place: Place) -> None:
    first = await place.save(expires=NOON + timedelta(hours=1))
    again = await place.save(expires=NOON + timedelta(hours=3))
    other = await place.save(key_id=8)
    assert first.path == again.path != other.path
    found, total = await place.artifacts.list(key_id=7)
    assert (total, found) == (1, [again])
    assert again.expires == NOON + timedelta(hours=3)
    assert (await place.save(expires=NOON + timedelta(hours=2))).expires == again.expires
    assert (await place.save()).expires is None
    assert (await place.save(expires=NOON + timedelta(hours=2))).expires is None
    assert await place.artifacts.usage(7) == len(PNG)


async def test_results_saved_at_once_are_all_there(place: Place) -> None:
    saved = await asyncio.gather(*(place.save(b"%d" % (n % 4)) for n in range(16)))
    assert len({each.path for each in saved}) == 4
    for each in saved:
        found = await place.artifacts.find(each.path)
        assert found is not None
        assert len(await place.read(found)) == 1
    assert (await place.artifacts.list())[1] == await place.rows() == 4


async def test_upload_keeps_its_path_and_is_replaced_whole(place: Place) -> None:
    path = "pub/7/té st.png"
    old = await place.save(PNG, kind="pub", path=path, name="té st.png")
    new = await place.save(b"other", kind="pub", path=path, name="té st.png")
    found = await place.artifacts.find(path, kind="pub")
    assert found == new
    assert (new.path, new.content_type) == (path, "text/plain")
    assert await place.read(new) == b"other"
    assert await place.artifacts.find(path, kind="secure") is None
    assert len(await place.stored("pub")) == 1
    assert old.place not in await place.stored("pub")
    await place.artifacts.delete([new])
    assert (await place.artifacts.find(path), await place.stored("pub")) == (None, [])


async def test_upload_of_the_same_bytes_twice_keeps_them(place: Place) -> None:
    saved = [await place.save(kind="pub", path=f"pub/7/{n}.png") for n in "aab"]
    assert await place.stored("pub") == [saved[0].place]
    await place.artifacts.delete([saved[1]])
    assert await place.read(saved[2]) == PNG


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("pub", None),
        ("artifact", "pub/7/a.png"),
        ("pub", "secure/7/a.png"),
        ("pub", "pub/8/a.png"),
        ("pub", "pub/7/../8/a.png"),
        ("pub", "pub/7/.."),
        ("pub", "/pub/7/a.png"),
        ("pub", "pub/7/a\0.png"),
        ("pub", "pub/7/b\\a.png"),
        ("secret", "secret/7/a.png"),
    ],
)
async def test_path_outside_its_folder_is_refused(
    database_place: Place, kind: str, path: str | None
) -> None:
    with pytest.raises(InvalidRequest):
        await database_place.save(kind=kind, path=path)
    assert await database_place.rows() == 0


async def test_result_and_input_of_the_same_bytes_do_not_meet(place: Place) -> None:
    upload = FakeUpload(PNG, "a.png")
    sent = await place.files.put(upload, await digest_of(upload), key_id=7, job_ref="r")
    made = await place.save(PNG)
    assert sent.path == made.path
    assert await place.stored("upload") == await place.stored("artifact") == [made.path]
    await place.files.delete([sent.id])
    assert await place.stored("upload") == []
    assert await place.artifacts.find(made.path) == made
    assert await place.read(made) == PNG


async def test_input_of_a_job_is_read_again(place: Place) -> None:
    upload = FakeUpload(b"0123456789", "a.png", "image/png")
    sent = await place.files.put(upload, await digest_of(upload), key_id=7)
    kept = await place.files.open(sent.id, key_id=7)
    await kept.seek(4)
    assert (await kept.read(2), await kept.read(), await kept.read()) == (b"45", b"6789", b"")


async def test_path_being_deleted_is_not_taken_again(place: Place) -> None:
    first = await place.save()
    await place.artifacts.delete([first.id])
    assert await place.stored() == []
    second = await place.save()
    assert second.path.startswith(f"2026/11/23/7/{second.sha256}-")
    assert await place.artifacts.find(first.path) is None
    place.pass_time(days=3)
    await place.files.sweep(wanted)
    assert await place.read(second) == PNG
    assert await place.rows() == 1


async def test_result_expires_and_goes_with_its_bytes(place: Place) -> None:
    saved = await place.save(expires=NOON + timedelta(hours=1))
    stays = await place.save(b"stays")
    place.pass_time(minutes=59)
    await place.files.sweep(wanted)
    assert await place.artifacts.find(saved.path) == saved
    place.pass_time(minutes=1)
    assert await place.artifacts.find(saved.path) is None
    assert (await place.artifacts.list())[1] == 1
    await place.files.sweep(wanted)
    assert await place.stored() == [stays.path]
    place.pass_time(days=2)
    await place.files.sweep(wanted)
    assert await place.rows() == 1


async def test_results_are_kept_for_as_long_as_set(place: Place) -> None:
    old = await place.save()
    longer = await place.save(b"longer", expires=NOON + timedelta(days=9))
    upload = await place.save(kind="pub", path="pub/7/a.png")
    place.limit(Limits(keep_seconds=3600))
    found = await place.artifacts.find(old.path)
    assert found is not None
    assert found.expires == NOON + timedelta(hours=1)
    place.pass_time(hours=1)
    assert await place.artifacts.find(old.path) is None
    await place.files.sweep(wanted)
    assert await place.stored() == [longer.path]
    assert await place.artifacts.find(upload.path) == upload


async def test_more_than_one_round_of_old_results_go(database_place: Place) -> None:
    place = database_place
    place.limit(Limits(keep_seconds=60))
    row = "SELECT 'id-' || n, 1, 'p-' || n, '', 1, 0, 9, 'artifact', 'p-' || n, 0"
    columns = "id, key_id, path, sha256, size, created, look, kind, shown, kept"
    many = f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 700) {row} FROM c"
    await place.tables.write(Statement(f"INSERT INTO files ({columns}) {many}"))
    assert await place.shelf.sweep_old() == 700
    place.pass_time(days=2)
    await place.files.sweep(wanted)
    assert await place.rows() == 0


async def test_key_without_room_is_refused_before_bytes(place: Place) -> None:
    place.limit(Limits(per_key=20))
    await place.save(b"0123456789")
    upload = FakeUpload(b"abcdef")
    await place.files.put(upload, await digest_of(upload), key_id=7)
    before = (await place.stored(), await place.rows())
    with pytest.raises(Forbidden, match=r"5 bytes does not fit.* 20 bytes and have 16 bytes") as no:
        await place.save(b"ABCDE")
    assert (no.value.http_status, no.value.error_code) == (403, "StorageQuotaExceeded")
    assert (await place.stored(), await place.rows()) == before
    await place.save(b"ABCD")
    await place.save(b"ABCD")
    assert await place.artifacts.usage(7) == 20
    await place.save(b"X" * 100, key_id=0)
    await place.save(b"Y" * 20, key_id=8)


async def test_calls_at_once_cannot_share_the_last_room(place: Place) -> None:
    place.limit(Limits(per_key=20))
    saves = (place.save(b"%010d" % n) for n in range(6))
    done = await asyncio.gather(*saves, return_exceptions=True)
    assert sum(isinstance(each, Forbidden) for each in done) == 4
    assert await place.artifacts.usage(7) == 20
    assert len(await place.stored()) == 2


async def test_replaced_upload_makes_room_for_itself(database_place: Place) -> None:
    place = database_place
    place.limit(Limits(per_key=10))
    for letter in (b"a", b"b"):
        await place.save(letter * 10, kind="pub", path="pub/7/a.txt")
    assert await place.artifacts.usage(7) == 10


async def test_files_are_listed_by_owner_kind_and_name(place: Place) -> None:
    names = ("50% off.txt", "500 off.txt", "Cat_1.txt", "cat-1.txt")
    for n, name in enumerate(names):
        place.pass_time(seconds=1)
        await place.save(b"%d" % n, name=name)
    await place.save(b"x", key_id=8, name="cat.txt")
    await place.save(b"x", kind="secure", path="secure/7/cat.txt", name="cat.txt")

    async def listed(**wanted: str | int) -> tuple[list[str | None], int]:
        found, total = await place.artifacts.list(**wanted)  # pyright: ignore[reportArgumentType]
        return [each.name for each in found], total

    assert await listed(key_id=7, kind="artifact") == (list(reversed(names)), 4)
    assert await listed(key_id=7, kind="artifact", skip=1, take=2) == (
        ["Cat_1.txt", "500 off.txt"],
        4,
    )
    assert await listed(contains="50%") == (["50% off.txt"], 1)
    assert await listed(contains="cat_", key_id=7) == (["Cat_1.txt"], 1)
    assert await listed(contains="SECURE/7".lower()) == (["cat.txt"], 1)
    assert await listed(kind="upload") == ([], 0)
    assert (await listed(take=0))[0] == []


async def test_row_without_bytes_is_never_readable(place: Place) -> None:
    saved = await place.save()
    file = await place.shelf.table.find(saved.id)
    assert file is not None
    begun = StoredFile(
        "begun",
        7,
        "p.png",
        "",
        1,
        None,
        None,
        None,
        file.created,
        file.look,
        shown="p.png",
        kind="artifact",
    )
    await place.shelf.table.add(begun, elsewhere="q.png", room=None)
    assert await place.artifacts.find("p.png") is None
    other = msgspec.structs.replace(begun, id="other", path="r.png", shown="r.png")
    await place.shelf.table.add(other, elsewhere="s.png", room=None)
    await place.shelf.delete(["other"])
    assert await place.shelf.table.keep(other, file.created + 1) == (None, [])
    assert await place.artifacts.find("r.png") is None
    assert (await place.artifacts.list())[1] == 1
    await place.tables.write(Statement("UPDATE files SET look = 0 WHERE id = 'begun'"))
    await place.files.sweep(wanted)
    assert await place.artifacts.find(saved.path) == saved
    place.pass_time(days=3)
    await place.files.sweep(wanted)
    assert await place.rows() == 1


async def test_bytes_without_a_row_are_swept(place: Place) -> None:
    saved = await place.save()
    upload = await place.save(kind="pub", path="pub/7/a.png")
    orphan = place.source(b"orphan")
    theirs, ours = "theirs/readme.txt", f"2026/11/01/7/{'0' * 64}.png"
    for kind in ("artifact", "pub"):
        for path in (theirs, ours):
            await place.storage.of(kind).put(path, 6, orphan)
    assert await place.shelf.sweep_bytes(older=timedelta(days=-1)) == 2
    assert await place.stored() == [saved.path, theirs]
    assert await place.stored("pub") == [upload.place, theirs]
    assert await place.shelf.sweep_bytes() == 0


async def test_checkup_finds_what_is_missing_or_changed(place: Place) -> None:
    good, gone, other, short = [await place.save(b"%d" % n, key_id=n + 1) for n in range(4)]
    store = place.storage.of("artifact")
    await store.delete(gone.place)
    for file, content in ((other, b"X"), (short, b"")):
        await store.delete(file.place)
        await store.put(file.place, len(content), place.source(content))

    async def found(*, quick: bool) -> dict[str, str | None]:
        return {file.shown: why async for file, why in checked(place.shelf, quick=quick)}

    expected = {good.path: None, gone.path: MISSING, other.path: CHANGED, short.path: CHANGED}
    assert await found(quick=False) == expected
    assert await found(quick=True) == {**expected, other.path: None}


async def test_large_file_is_never_held_whole(place: Place) -> None:
    source = place.folder / "large"
    with source.open("wb") as opened:
        opened.truncate(40 * MB)
    before = memory()
    saved = await place.artifacts.save(source, key_id=7)
    size = 0
    async for piece in place.artifacts.read(saved):
        size += len(piece)
    assert size == saved.size == 40 * MB
    assert memory() - before < 24 * MB


async def test_full_disk_is_said_and_leaves_nothing(database_place: Place) -> None:
    place = database_place
    source = place.source(bytes(33 * MB))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * MB, hard))
    try:
        with pytest.raises(StorageUnavailable, match="make room at ARTIFACTS_PATH") as refused:
            await place.artifacts.save(source, key_id=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.error_reason == "storage_full"
    assert await place.artifacts.usage(7) == 0
    place.pass_time(days=2)
    await place.files.sweep(wanted)
    assert (await place.rows(), await place.stored()) == (0, [])


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_store_that_cannot_be_reached_is_said(database: Database, tmp_path: Path) -> None:
    tables = SqliteTables(database)
    url = "s3://bucket/p?endpoint=http://127.0.0.1:1&region=x"
    place = Place(tables, Storage(artifacts=tmp_path, files=tmp_path, url=url), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
        with pytest.raises(StorageUnavailable, match="cannot write files") as failed:
            await place.save()
    assert "never-shown" not in str(failed.value)
    assert (await place.artifacts.list())[1] == 0


@pytest.fixture
def database_place(tables: Tables, tmp_path: Path) -> Place:
    (tmp_path / "scratch").mkdir()
    storage = Storage(artifacts=tmp_path / "artifacts", files=tmp_path / "files")
    return Place(tables, storage, tmp_path / "scratch")
