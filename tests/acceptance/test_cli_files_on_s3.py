"""ai-server files where files are in an object store: checked and forgotten as on a disk."""

import asyncio
import json
from pathlib import Path
from typing import Any

import obstore
import pytest
from typer.testing import CliRunner

import object_stores
from aiserver.cli.main import app
from aiserver.cli.options import load
from aiserver.data import open_data
from aiserver.files.artifacts import Artifact
from aiserver.kit.clock import SystemClock
from aiserver.kit.ids import random_hex
from aiserver.kit.redact import Redactor


def saved(data: Path, contents: list[bytes]) -> list[Artifact]:
    async def save() -> list[Artifact]:
        opened = await open_data(load(data, None), SystemClock(), Redactor())
        source = data / "source"
        try:
            found: list[Artifact] = []
            for content in contents:
                source.write_bytes(content)
                found.append(await opened.artifacts.save(source, key_id=7))
            return found
        finally:
            await opened.close()

    return asyncio.run(save())


def test_checkup_names_damaged_objects(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, prefix = object_stores.moto(), random_hex(8)
    settings = {"STORAGE_URL": store.url(prefix), **object_stores.credentials()}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def verify(*words: str, code: int) -> Any:
        words = ("files", "verify", *words, "--json", "--data", str(data_folder))
        done = CliRunner().invoke(app, words)
        assert done.exit_code == code, done.output + str(done.exception)
        return json.loads(done.output)

    good, changed, gone = saved(data_folder, [b"a", b"b", b"c"])
    assert verify(code=0)["checked"] == 3
    bucket, root = store.bucket(), f"{prefix}/artifacts"
    obstore.put(bucket, f"{root}/{changed.place}", b"X")
    obstore.delete(bucket, f"{root}/{gone.place}")
    problems = {row["path"]: row["problem"] for row in verify(code=1)["problems"]}
    assert problems == {changed.path: "changed", gone.path: "missing"}
    assert [row["path"] for row in verify("--quick", code=1)["problems"]] == [gone.path]
    verify("--forget-missing", code=1)
    assert verify("--quick", code=0)["checked"] == 2
    assert obstore.get(bucket, f"{root}/{good.place}").bytes() == b"a"
