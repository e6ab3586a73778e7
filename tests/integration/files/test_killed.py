"""A server that is killed while it keeps a file: nothing of it can be read, and it is cleaned up."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from aiserver.files.storage import Storage
from aiserver.files.table import StoredFile
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables
from file_places import Place

MB = 1024 * 1024
SAVE = """
import asyncio, sys
from pathlib import Path
from aiserver.files.artifacts import Artifacts
from aiserver.files.shelf import Shelf
from aiserver.files.storage import Limits, Storage
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables

folder = Path(sys.argv[1])
tables = SqliteTables(Database.open(folder / "app.db"))
storage = Storage(artifacts=folder / "artifacts", files=folder / "files")
saved = Artifacts(Shelf(tables, storage, Limits(), SystemClock())).save(folder / "large", key_id=7)
asyncio.run(saved)
"""


async def everybody(_: StoredFile) -> bool:
    return True


async def test_file_of_a_killed_server_is_not_there(database: Database, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(128 * MB)
    artifacts = tmp_path / "artifacts"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", SAVE, str(tmp_path))
    while not (begun := list(artifacts.rglob("*#*"))):
        assert child.returncode is None
        await asyncio.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    assert begun[0].exists()

    place = Place(SqliteTables(database), Storage(artifacts=artifacts, files=artifacts), tmp_path)
    shown = begun[0].relative_to(artifacts).as_posix().partition("#")[0]
    assert (await place.rows(), (await place.artifacts.list())[1]) == (1, 0)
    assert await place.artifacts.find(shown) is None
    place.pass_time(days=400)
    await place.files.sweep(everybody)
    place.pass_time(days=400)
    await place.files.sweep(everybody)
    assert await place.rows() == 0
    assert await place.shelf.sweep_bytes(older=timedelta(days=-1)) == 1
    assert not [path for path in artifacts.rglob("*") if path.is_file()]
