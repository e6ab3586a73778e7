"""A server whose files are in an object store: queued calls and their files do not notice."""

from pathlib import Path

import obstore
import pytest

import object_stores
from aiserver.kit.ids import random_hex
from fakes.painting import Easel, form
from gateway import running_with


@pytest.mark.parametrize("maker", ["moto", pytest.param("seaweed", marks=pytest.mark.long)])
async def test_queued_call_gets_its_upload_from_the_bucket(
    maker: str, tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_stores.credentials().items():
        monkeypatch.setenv(name, value)
    store = object_stores.moto() if maker == "moto" else object_stores.seaweed()
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
