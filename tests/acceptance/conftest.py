"""What acceptance tests share: a data folder of their own, an upstream beside them, a storage."""

import asyncio
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

import object_stores
from aiserver.kit.ids import random_hex
from aiserver.settings import SETTINGS
from fakes.upstream import FakeUpstream


@pytest.fixture
def data_folder(tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty installation for commands, with no setting in the environment."""
    for setting in SETTINGS:
        monkeypatch.delenv(setting.name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "app.db").write_bytes(migrated)
    return tmp_path / "data"


@pytest.fixture
def fake() -> Generator[FakeUpstream]:
    """An upstream on a loop of its own: a command runs one itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = FakeUpstream()
    asyncio.run_coroutine_threadsafe(served.__aenter__(), loop).result()
    yield served
    asyncio.run_coroutine_threadsafe(served.__aexit__(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["folder", pytest.param("seaweed", marks=pytest.mark.long)])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of a place for files; a quick run tries moto where a test is marked `on_moto`."""
    if request.param == "folder":
        return {}
    for name, value in object_stores.credentials().items():
        monkeypatch.setenv(name, value)
    return {"STORAGE_URL": object_stores.named(request.param).url(random_hex(8))}
