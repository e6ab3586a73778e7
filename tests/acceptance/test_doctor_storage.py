"""The row of `doctor` for storage: what it tries, what it says of trouble, and what it leaves."""

import json
from pathlib import Path
from typing import Any

import obstore
import pytest
from typer.testing import CliRunner

import object_stores
from aiserver.cli import storage_check
from aiserver.cli.main import app
from aiserver.kit.ids import random_hex
from fakes.upstream import closed_port


class Row:
    """What the command says of storage; settings as environment variables."""

    def __init__(self, data: Path, patch: pytest.MonkeyPatch) -> None:
        self.data = data
        self._patch = patch
        self.set(LOCAL_MODELS="false", PORT=str(closed_port()))

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(name, value)

    def __call__(self) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["doctor", "--json", "--data", str(self.data)])
        assert object_stores.SECRET not in done.output
        [row] = [row for row in json.loads(done.stdout) if row["name"] == "storage"]
        return row


@pytest.fixture
def row(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    for name in object_stores.credentials():
        monkeypatch.delenv(name, raising=False)
    return Row(data_folder, monkeypatch)


def test_folders_of_files_are_tried_and_none_is_made(row: Row) -> None:
    found = row()
    assert (found["state"], found["do"]) == ("ok", "")
    assert f"{row.data / 'artifacts'} (made with the first file)" in found["found"]
    assert "GB free" in found["found"]
    assert not (row.data / "artifacts").exists()
    (row.data / "files").mkdir()
    assert f"{row.data / 'files'};" in row()["found"]
    assert list((row.data / "files").iterdir()) == []


@pytest.mark.parametrize("setting", ["ARTIFACTS_PATH", "AI_FILES_PATH"])
def test_folder_that_cannot_be_written_is_failed(row: Row, tmp_path: Path, setting: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    row.set(**{setting: str(tmp_path / "file" / "below")})
    found = row()
    assert found["state"] == "failed"
    assert "cannot be written: Not a directory" in found["found"]
    assert setting in found["do"]


@pytest.mark.parametrize(("least", "state"), [(0.0, "warning"), (float("inf"), "failed")])
def test_little_room_is_told(
    row: Row, monkeypatch: pytest.MonkeyPatch, least: float, state: str
) -> None:
    monkeypatch.setattr(storage_check, "_LITTLE_FREE", float("inf"))
    monkeypatch.setattr(storage_check, "_LEAST_FREE", least)
    found = row()
    assert found["state"] == state
    assert "ARTIFACT_TTL" in found["do"]


def test_object_store_is_tried_and_nothing_left_there(row: Row) -> None:
    store, prefix = object_stores.moto(), random_hex(8)
    row.set(STORAGE_URL=store.url(prefix), **object_stores.credentials())
    found = row()
    assert (found["state"], found["do"]) == ("ok", "")
    assert found["found"] == f"s3://bucket/{prefix} takes, gives, lists and deletes objects"
    assert list(obstore.list(store.bucket(), prefix=prefix).collect()) == []


def test_bucket_that_is_not_there_is_named(row: Row) -> None:
    url = object_stores.moto().url("x").replace("s3://bucket", "s3://none")
    row.set(STORAGE_URL=url, **object_stores.credentials())
    found = row()
    assert found["state"] == "failed"
    assert found["found"] == "s3://none/x: NoSuchBucket: The specified bucket does not exist"
    assert "Make the bucket" in found["do"]


def test_store_that_is_away_is_failed(row: Row) -> None:
    url = f"s3://bucket/x?endpoint=http://127.0.0.1:{closed_port()}&region=x"
    row.set(STORAGE_URL=url, **object_stores.credentials())
    found = row()
    assert (found["state"], found["found"]) == ("failed", "s3://bucket/x: it cannot be reached")
    assert "endpoint=" in found["do"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "said"),
    [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNot")],
)
def test_wrong_credential_is_named(row: Row, name: str, said: str) -> None:
    row.set(STORAGE_URL=object_stores.seaweed().url("x"), **object_stores.credentials())
    row.set(**{name: "wrong-0123456789"})
    found = row()
    assert found["state"] == "failed"
    assert said in found["found"]
    assert found["do"] == f"Correct {name}."
    assert "wrong-0123456789" not in found["found"]
