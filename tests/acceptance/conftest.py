"""What tests of the command line share: a data folder of their own, an upstream beside them."""

import asyncio
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

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
