"""Kept files on each kind of storage: a folder, and object stores of other makers."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import object_stores
from aiserver.files.storage import Storage
from aiserver.kit.clock import SystemClock
from aiserver.kit.ids import random_hex
from aiserver.kit.postgres import Postgres
from aiserver.kit.postgres_tables import PostgresTables
from aiserver.kit.tables import SqliteTables
from file_places import Place
from postgres import server


@pytest.fixture(
    params=[
        "sqlite, folder",
        "postgres, folder",
        "sqlite, moto",
        pytest.param("postgres, seaweed", marks=pytest.mark.long),
    ]
)
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Place]:
    engine, _, store = request.param.partition(", ")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    url = None
    if store != "folder":
        for name, value in object_stores.credentials().items():
            monkeypatch.setenv(name, value)
        opened = object_stores.moto() if store == "moto" else object_stores.seaweed()
        url = opened.url(random_hex(8))
    storage = Storage(artifacts=tmp_path / "artifacts", files=tmp_path / "files", url=url)
    if engine == "sqlite":
        yield Place(SqliteTables(request.getfixturevalue("database")), storage, scratch)
        return
    address = server().fresh_database()
    database = await Postgres.open(address, connections=3)
    yield Place(PostgresTables(database, SystemClock()), storage, scratch)
    await database.close()
    server().give_back(address)
