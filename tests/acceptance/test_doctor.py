"""The command `doctor`: what is fine, what is wrong, and that one problem hides no other."""

import asyncio
import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiserver import settings as s
from aiserver.cli import doctor
from aiserver.cli.checks import CHECKS, Finding, Installation, file_system
from aiserver.cli.checks import port as port_check
from aiserver.cli.main import app
from aiserver.kit.db import Connection, Database
from aiserver.kit.redact import Redactor
from fakes.upstream import (
    Exchange,
    FakeUpstream,
    Script,
    answer_normally,
    closed_port,
    raw,
    status,
)
from gateway import TestGateway

KEY = "sk-canary-0123456789abcdef"


class Doctor:
    """Runs the command on one data folder; the rows of its answer by name."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def run(self, *words: str, stdin: str = "") -> Any:
        return CliRunner().invoke(app, [*words, "--data", str(self.data)], input=stdin)

    def add(self, url: str, *words: str, key: str = KEY) -> None:
        given = ["providers", "add", "mine", "--type", "custom", "--url", url, "--key-stdin"]
        done = self.run(*given, *words, stdin=key)
        assert done.exit_code == 0, done.output

    def rows(self, *, code: int) -> dict[str, dict[str, str]]:
        done = self.run("doctor", "--json")
        assert done.exit_code == code, done.output + str(done.exception)
        assert KEY not in done.output
        return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.fixture
def here(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setenv("LOCAL_MODELS", "false")
    monkeypatch.setenv("PORT", str(closed_port()))
    return Doctor(data_folder)


def to_listing(answer: Script, *, head: bytes = b"") -> Script:
    """Answers a list of models so, and the question for the time with this head."""

    async def script(exchange: Exchange) -> None:
        if exchange.request.method == "HEAD":
            await raw(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 0\r\n\r\n")(exchange)
        else:
            await answer(exchange)

    return script


def asked(fake: FakeUpstream, answer: Script, *, head: bytes = b"") -> None:
    fake.next(*[to_listing(answer, head=head)] * 2)


def test_sound_installation_passes(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    rows = here.rows(code=0)
    assert [row for row in rows.values() if row["state"] == "failed"] == []
    assert rows["provider mine"]["found"] == "takes calls; lists 1 models"
    assert rows["encryption key"]["found"] == "opens 1 upstream keys"
    assert rows["database"]["found"].startswith("intact; schema ")
    assert "is free" in rows["port"]["found"]
    assert {request.method for request in fake.requests} == {"GET", "HEAD"}


def test_table_is_for_people(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    done = here.run("doctor")
    assert done.exit_code == 0
    assert "What to do" in done.stdout
    assert "checks: 0 failed" in done.stdout


@pytest.mark.parametrize(
    ("answer", "found", "do"),
    [
        (status(401, {"error": {"message": f"bad key {KEY}"}}), "credentials", "--key-stdin"),
        (status(404, {}), "does not know", "address"),
        (status(302, {}, "Location: /"), "redirects", "address"),
        (status(500, {}), "failed with status 500", "later"),
        (raw(b"SSH-2.0-OpenSSH_9.9\r\n", then="close"), "cannot be read", "protocol"),
        (status(200, ["no", "listing"]), "no known form", "protocol"),
    ],
)
def test_provider_that_does_not_answer_well_is_failed(
    here: Doctor, fake: FakeUpstream, answer: Script, found: str, do: str
) -> None:
    here.add(fake.base_url)
    asked(fake, answer)
    row = here.rows(code=1)["provider mine"]
    assert row["state"] == "failed"
    assert found in row["found"]
    assert do in row["do"]


def test_provider_that_is_away_is_failed(here: Doctor) -> None:
    here.add(f"http://127.0.0.1:{closed_port()}")
    row = here.rows(code=1)["provider mine"]
    assert "cannot be reached" in row["found"]
    assert "ai-server providers edit mine --url" in row["do"]


def test_trouble_with_tls_is_told_apart(here: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        here.add(f"https://127.0.0.1:{plain.getsockname()[1]}")

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = plain.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        row = here.rows(code=1)["provider mine"]
        plain.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "SSL" in row["found"]
    assert "certificate" in row["do"]


def test_model_that_is_not_listed_is_named(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url, "--model", "a=fake-model", "--model", "b=gone-model")
    row = here.rows(code=0)["provider mine"]
    assert (row["state"], "gone-model" in row["found"]) == ("warning", True)


def test_disabled_provider_is_left_alone(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    here.run("providers", "disable", "mine")
    assert "not asked" in here.rows(code=0)["provider mine"]["found"]
    assert fake.requests == []


def test_provider_of_the_environment_is_asked_before_the_first_start(
    here: Doctor, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    monkeypatch.setenv("GROQ_BASE_URL", fake.base_url)
    (here.data / "app.db").unlink()
    rows = here.rows(code=0)
    assert rows["provider groq"]["found"] == "takes calls; lists 1 models"
    assert rows["database"]["state"] == "warning"
    asked(fake, status(403, {}))
    assert "set GROQ_API_KEY" in here.rows(code=1)["provider groq"]["do"]


def test_variable_that_is_not_set_is_named(here: Doctor, fake: FakeUpstream) -> None:
    words = ["providers", "add", "mine", "--type", "custom", "--url", fake.base_url]
    assert here.run(*words, "--key-var", "NO_SUCH_KEY").exit_code == 0
    row = here.rows(code=0)["provider mine"]
    assert (row["state"], "NO_SUCH_KEY" in row["do"]) == ("warning", True)


def test_wrong_clock_is_noticed(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    asked(fake, answer_normally, head=b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n")
    row = here.rows(code=0)["clock"]
    assert (row["state"], "ahead of mine" in row["found"]) == ("warning", True)


def test_lost_encryption_key_is_noticed_and_none_is_made(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    (here.data / "encryption.key").unlink()
    rows = here.rows(code=1)
    assert rows["encryption key"]["found"] == "does not open the keys of mine"
    assert "key" in rows["provider mine"]["do"]
    assert not (here.data / "encryption.key").exists()


def test_other_encryption_key_is_noticed(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    (here.data / "encryption.key").write_text("00" * 32)
    assert "mine" in here.rows(code=1)["encryption key"]["found"]


def test_unusable_encryption_key_hides_nothing_else(
    here: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", "short")
    rows = here.rows(code=1)
    assert "32 bytes" in rows["encryption key"]["found"]
    assert rows["database"]["state"] == "ok"


def test_key_that_others_may_read_is_noticed(here: Doctor, fake: FakeUpstream) -> None:
    here.add(fake.base_url)
    (here.data / "encryption.key").chmod(0o644)
    row = here.rows(code=0)["encryption key"]
    assert (row["state"], "chmod 600" in row["do"]) == ("warning", True)


def test_broken_database_hides_nothing_else(here: Doctor) -> None:
    (here.data / "app.db").write_bytes(b"not a database " * 1000)
    rows = here.rows(code=1)
    assert rows["database"]["state"] == "failed"
    assert rows["data folder"]["state"] != "failed"


def test_damaged_page_is_found(here: Doctor) -> None:
    path = here.data / "app.db"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in range(2, len(content) // size):
        content[page * size : page * size + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert here.rows(code=1)["database"]["state"] == "failed"


@pytest.mark.parametrize(
    ("schema", "code", "says"), [("0001", 0, "migrates"), ("9999", 1, "newer")]
)
def test_other_schema_is_told_and_left_as_it_is(
    here: Doctor, schema: str, code: int, says: str
) -> None:
    def write(connection: Connection) -> None:
        connection.execute("UPDATE alembic_version SET version_num = ?", (schema,))

    database = Database.open(here.data / "app.db")
    asyncio.run(database.write(write))
    database.close()
    row = here.rows(code=code)["database"]
    assert says in row["found"] + row["do"]
    assert schema in here.rows(code=code)["database"]["found"]


def test_nothing_is_made_before_the_first_start(here: Doctor) -> None:
    here.data = here.data / "not" / "there"
    rows = here.rows(code=0)
    assert rows["data folder"]["do"] == "The first start makes it."
    assert not here.data.parent.exists()


def test_data_folder_that_cannot_be_written_is_failed(here: Doctor) -> None:
    here.data = here.data / "app.db"
    assert "cannot be written" in here.rows(code=1)["data folder"]["found"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/data", "ext4"),
        ("/srv/share/data", "nfs4"),
        ("/srv/shared", "ext4"),
        ("/srv/with space/x", "cifs"),
    ],
)
def test_network_disk_is_recognised(path: str, kind: str) -> None:
    mounts = (
        "rootfs / ext4 rw 0 0\nh:/x /srv/share nfs4 rw 0 0\n//h/y /srv/with\\040space cifs rw 0 0\n"
    )
    assert file_system(Path(path), mounts) == kind


def test_port_of_another_program_is_failed(here: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(5)
        monkeypatch.setenv("PORT", str(other.getsockname()[1]))

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                other.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        row = here.rows(code=1)["port"]
        thread.join()
    assert (row["state"], "another PORT" in row["do"]) == ("failed", True)


async def test_port_of_our_server_is_fine(gateway: TestGateway) -> None:
    environment = {"PORT": str(gateway.port), "HOST": "127.0.0.1", "APP_DATA": str(gateway.data)}
    async with doctor.opened(s.load(environment=environment), Redactor()) as at:
        found = await asyncio.to_thread(port_check, at)
    assert (found.state, "is ready" in found.found) == ("ok", True)


def test_broken_override_is_named(here: Doctor) -> None:
    folder = here.data / "overrides"
    folder.mkdir()
    (folder / "prices.json").write_text('[{"type": "Custom", "model": "m", "input": -1}]')
    (folder / "prompts.json").write_text("{")
    found = here.rows(code=1)["overrides"]["found"]
    assert "prices.json" in found
    assert "prompts.json" in found


def test_unusable_settings_are_told_alone(here: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "many")
    rows = here.rows(code=1)
    assert list(rows) == ["settings"]
    assert "PORT" in rows["settings"]["found"]


def test_check_that_crashes_stops_no_other(here: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(at: Installation) -> Finding:
        raise RuntimeError("boom")

    monkeypatch.setitem(CHECKS, "limits", crash)
    rows = here.rows(code=1)
    assert rows["limits"]["found"] == "RuntimeError: boom"
    assert rows["database"]["state"] == "ok"


async def test_check_that_hangs_is_bounded(
    here: Doctor, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(here.add, upstream.base_url)
    release = threading.Event()

    def hang(at: Installation) -> Finding:
        release.wait(30)
        return Finding("limits", "ok", "late")

    monkeypatch.setitem(CHECKS, "limits", hang)
    upstream.next(*[raw(b"", then="stall")] * 2)
    async with doctor.opened(s.load(flags={"APP_DATA": str(here.data)}), Redactor()) as at:
        found = {f.name: f for f in await doctor.examine(at, Redactor().learn, seconds=0.5)}
    release.set()
    assert "no answer in 0.5 s" in found["limits"].found
    assert "no answer in 0.5 s" in found["provider mine"].found
    assert found["sqlite"].state == "ok"


def test_absent_model_is_a_hint_and_no_failure(
    here: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_MODELS")
    row = here.rows(code=0)["embedded model"]
    assert (row["state"], "ai-server models pull" in row["do"]) == ("warning", True)
