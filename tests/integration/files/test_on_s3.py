"""A server whose files are in an object store: queued calls and their files do not notice."""

import asyncio
from datetime import timedelta
from pathlib import Path

import obstore
import pytest

import object_stores
from aiserver.files.storage import Limits, Storage
from aiserver.kit.db import Database
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import SqliteTables
from fakes.painting import Easel, form
from file_places import Place
from gateway import running_with

# What one page of a listing has at most.
PAGE = 1000


@pytest.fixture
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> object_stores.ObjectStore:
    for name, value in object_stores.credentials().items():
        monkeypatch.setenv(name, value)
    return object_stores.named(request.param)


@pytest.mark.parametrize(
    "store", ["moto", pytest.param("seaweed", marks=pytest.mark.long)], indirect=True
)
async def test_queued_call_gets_its_upload_from_the_bucket(
    store: object_stores.ObjectStore, tmp_path: Path, migrated: bytes
) -> None:
    prefix, easel, data = random_hex(8), Easel(), tmp_path / "data"
    settings = {"STORAGE_URL": store.url(prefix), "SHUTDOWN_GRACE": "0s"}

    def kept() -> list[str]:
        listed = obstore.list(store.bucket(), prefix=prefix).collect()
        return [meta["path"].removeprefix(f"{prefix}/") for meta in listed]

    async with running_with([easel], data, migrated, settings) as gateway:
        body, kind = form(image=("cat.png", b"\x89PNG cat"), refId="r")
        queued = await gateway.call("POST", "/api/QueuePaintPicture", body, headers=kind)
        assert queued.status == 200, queued.body
        await gateway.call("GET", "/api/GetJobEvents?refId=r")
        assert easel.seen[0][0].content == b"\x89PNG cat"
        [path] = kept()
        assert path.startswith("files/")
        assert not (data / "files").exists()
        [[id]] = await gateway.rows("SELECT id FROM files")
        await gateway.app._data.files.delete([id])
        assert kept() == []


@pytest.mark.long
@pytest.mark.parametrize("store", ["moto", "seaweed"], indirect=True)
async def test_more_leftovers_than_a_page_are_swept(
    store: object_stores.ObjectStore, database: Database, tmp_path: Path
) -> None:
    storage = Storage(artifacts=tmp_path, files=tmp_path, url=store.url(random_hex(8)))
    place = Place(SqliteTables(database), storage, tmp_path)
    place.limit(Limits(keep_seconds=3600))
    saved, orphan, blobs = await place.save(), place.source(b"x"), storage.of("artifact")
    paths = [f"2026/11/01/7/{number:064x}.png" for number in range(PAGE + 100)]
    for start in range(0, len(paths), 50):
        await asyncio.gather(*(blobs.put(path, 1, orphan) for path in paths[start : start + 50]))
    assert await place.shelf.sweep_bytes(older=timedelta(days=-1)) == len(paths)
    assert await place.stored() == [saved.place]
    place.pass_time(hours=2)
    assert await place.shelf.sweep_old() == 1
    assert await place.stored() == []
