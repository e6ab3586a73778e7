"""ai-server files: what is kept is listed, deleted and checked beside the server's own data."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiserver.cli.main import app
from aiserver.cli.options import load
from aiserver.data import open_data
from aiserver.files.artifacts import Artifact
from aiserver.kit.clock import SystemClock
from aiserver.kit.redact import Redactor


class Shell:
    """Runs `ai-server files` on one data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["files", *words, "--data", str(self.data)])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def save(self, content: bytes, name: str, *, key_id: int = 7) -> Artifact:
        async def saved() -> Artifact:
            opened = await open_data(load(self.data, None), SystemClock(), Redactor())
            try:
                source = self.data / "source"
                source.write_bytes(content)
                return await opened.artifacts.save(source, key_id=key_id, name=name)
            finally:
                await opened.close()

        return asyncio.run(saved())

    def on_disk(self) -> list[Path]:
        return [path for path in (self.data / "artifacts").rglob("*") if path.is_file()]


@pytest.fixture
def shell(data_folder: Path) -> Shell:
    return Shell(data_folder)


def test_kept_files_are_listed(shell: Shell) -> None:
    assert "No files are kept." in shell("list")
    shell.save(b"one", "one.txt")
    shell.save(b"two", "two.txt", key_id=0)
    names = [row["name"] for row in shell.json("list")]
    assert sorted(names) == ["one.txt", "two.txt"]
    [row] = shell.json("list", "--key", "admin")
    assert (row["name"], row["key"], row["size"], row["contentType"]) == (
        "two.txt",
        "admin",
        3,
        "text/plain",
    )
    assert shell.json("list", "--kind", "pub") == []
    assert shell.json("list", "--contains", "on")[0]["name"] == "one.txt"
    assert "1 of 2 files" in shell("list", "--limit", "1")
    assert "use upload, artifact" in shell("list", "--kind", "x", code=1)


def test_deleted_file_is_gone_with_its_bytes(shell: Shell) -> None:
    saved = shell.save(b"one", "one.txt")
    said = shell("delete", f"/artifacts/{saved.path}", "2026/nothing.png", code=1)
    assert "1 file deleted." in said
    assert "2026/nothing.png: there is no such file" in said
    assert (shell.on_disk(), shell.json("list")) == ([], [])
    assert shell.json("delete", saved.path, code=1)["missing"] == [saved.path]


def test_links_are_signed_anew(shell: Shell) -> None:
    assert "go on until they expire, or until this was done 2 times more" in shell("rotate-signing")
    assert [shell.json("rotate-signing")["earlierSecrets"] for _ in range(3)] == [1, 2, 2]
    assert "open nothing any more" in shell("rotate-signing", "--revoke")
    assert shell.json("rotate-signing", "--revoke") == {"rotated": True, "earlierSecrets": 0}
    assert "--revoke" in shell("rotate-signing", "--help")


def test_checkup_names_damaged_files(shell: Shell) -> None:
    good, changed, gone = (shell.save(name.encode(), name) for name in ("a", "b", "c"))
    assert "3 files checked" in shell("verify")
    root = shell.data / "artifacts"
    (root / changed.path).write_bytes(b"X")
    (root / gone.path).unlink()
    found = shell.json("verify", code=1)
    assert found["checked"] == 3
    assert {row["path"]: row["problem"] for row in found["problems"]} == {
        changed.path: "changed",
        gone.path: "missing",
    }
    assert "1 of 3 files" in shell("verify", "--quick", code=1)
    shell("verify", "--forget-missing", code=1)
    assert {row["path"] for row in shell.json("list")} == {good.path, changed.path}
