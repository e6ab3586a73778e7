"""The command line: what it prints, what it changes, and what it says when it cannot."""

import hashlib
import json
import threading
from collections.abc import Generator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiserver import __version__
from aiserver.cli import models
from aiserver.cli.main import app
from aiserver.providers.local.weights import Weight
from aiserver.settings import SETTINGS


class Shell:
    """Runs commands on one data folder."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def __call__(self, *words: str, stdin: str = "", code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--data", str(self._data)], input=stdin)
        assert done.exit_code == code, done.output + str(done.exception)
        return done.stdout if code == 0 else done.stderr

    def json(self, *words: str, stdin: str = "") -> Any:
        return json.loads(self(*words, "--json", stdin=stdin))


@pytest.fixture
def shell(data_folder: Path) -> Shell:
    return Shell(data_folder)


def test_key_is_printed_alone_and_once(shell: Shell) -> None:
    text = shell("keys", "create", "app").strip()
    assert text.startswith("ak-")
    assert len(text) == 35
    listed = shell("keys", "list")
    assert text not in listed
    assert f"ak-***{text[-3:]}" in listed


def test_key_members_are_kept(shell: Shell) -> None:
    shell("keys", "create", "app", "--model", "a", "--model", "b", "--restrict-to", "Hello")
    shell("keys", "edit", "app", "--expires", "2030-01-31", "--notes", "n", "--clear", "models")
    [row] = shell.json("keys", "list")
    assert (row["restrictTo"], row["models"], row["notes"]) == (["Hello"], [], "n")
    assert row["expiryDate"] == "2030-01-31T00:00:00Z"


def test_key_that_publishes_its_results_is_seen_in_the_list(shell: Shell) -> None:
    shell("keys", "create", "app", "--feature", "PublicArtifacts")
    assert shell.json("keys", "list")[0]["features"] == ["PublicArtifacts"]
    shell("keys", "edit", "app", "--clear", "features")
    assert shell.json("keys", "list")[0]["features"] == []
    assert "features, restrict-to" in shell("keys", "edit", "app", "--clear", "name", code=1)


def test_key_is_found_by_id_name_or_end(shell: Shell) -> None:
    text = shell.json("keys", "create", "app")["key"]
    for word in ("1", "app", text[-3:], text):
        assert shell.json("keys", "disable", word)["done"] == "disabled"
        assert shell.json("keys", "enable", word)["done"] == "enabled"


def test_rotated_key_keeps_its_id(shell: Shell) -> None:
    old = shell.json("keys", "create", "app")
    new = shell.json("keys", "rotate", "app")
    assert new["id"] == old["id"]
    assert new["key"] != old["key"]
    assert shell.json("keys", "list")[0]["visibleKey"] == f"ak-***{new['key'][-3:]}"


def test_deleted_key_is_gone(shell: Shell) -> None:
    shell("keys", "create", "app")
    shell("keys", "delete", "app")
    assert "No keys yet" in shell("keys", "list")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keys", "disable", "nobody"], "There is no key 'nobody'"),
        (["keys", "create", "x", "--expires", "soon"], "--expires soon: use a date"),
        (["keys", "edit", "twin", "--notes", "n"], "several keys: 1, 2"),
        (["keys", "edit", "1", "--clear", "name"], "use scopes"),
        (["providers", "remove", "nobody"], "There is no provider 'nobody'"),
        (["providers", "add", "x", "--type", "nope"], "'AiTypeId' must be one of Open AI"),
        (["providers", "add", "x", "--type", "custom", "--url", "host"], "must be a URL"),
        (["models", "pull", "gpt-9"], "Unknown model 'gpt-9'; embedded: smollm2:135m"),
    ],
)
def test_failure_says_what_to_do(shell: Shell, words: list[str], says: str) -> None:
    shell("keys", "create", "twin")
    shell("keys", "create", "twin")
    assert says in shell(*words, code=1).replace("\n", " ")


def test_secret_is_made_anew(shell: Shell) -> None:
    first, second = shell("keys", "reset-admin").strip(), shell("keys", "reset-admin").strip()
    assert first.startswith("as-")
    assert first != second


def test_provider_lives_its_life(shell: Shell) -> None:
    words = ["providers", "add", "mine", "--type", "openai", "--url", "https://host", "--key-stdin"]
    shell(*words, "--model", "a=upstream-a", "--model", "b", stdin="sk-canary-0123456789\n")
    shell("providers", "edit", "mine", "--priority", "3", "--name", "ours")
    shell("providers", "disable", "ours")
    [row] = shell.json("providers", "list")
    assert row == {
        "id": 1,
        "name": "ours",
        "type": "Open AI",
        "source": "admin",
        "url": "https://host",
        "hasKey": True,
        "enabled": False,
        "priority": 3,
        "weight": 1,
        "concurrency": 0,
        "models": ["a", "b"],
    }
    assert "canary" not in shell("providers", "list")
    shell("providers", "enable", "ours")
    shell("providers", "remove", "ours")
    assert "No providers yet" in shell("providers", "list")


def test_encryption_is_rotated_without_losing_a_key(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["providers", "add", "mine", "--type", "openai", "--key-stdin"]
    shell(*words, stdin="sk-canary-0123456789\n")
    path = tmp_path / "data" / "encryption.key"
    before = path.read_text()
    assert shell.json("keys", "rotate-encryption") == {"encrypted": 1}
    after = path.read_text()
    assert after != before
    assert len(after.split()) == 1
    shell("providers", "edit", "mine", "--name", "ours")
    assert shell.json("keys", "rotate-encryption") == {"encrypted": 1}
    monkeypatch.setenv("ENCRYPTION_KEY", after.strip())
    assert "comes from ENCRYPTION_KEY" in shell("keys", "rotate-encryption", code=1)


def test_provider_name_is_taken_once(shell: Shell) -> None:
    shell("providers", "add", "mine", "--type", "custom", "--url", "https://host")
    assert "exists already" in shell("providers", "add", "mine", "--type", "custom", code=1)


@pytest.mark.parametrize("model", ["", "=upstream", "m" * 301, "m=" + "u" * 301])
def test_provider_model_that_cannot_be_kept_is_refused(shell: Shell, model: str) -> None:
    shell("providers", "add", "mine", "--type", "custom", "--url", "https://host")
    assert "--model" in shell("providers", "edit", "mine", "--model", model, code=2)
    assert shell.json("providers", "list")[0]["models"] == ["(as the upstream lists)"]


def test_models_say_what_is_here(shell: Shell) -> None:
    [row] = shell.json("models", "list")
    assert (row["id"], row["present"], row["licence"]) == ("smollm2:135m", False, "Apache-2.0")
    assert "toy" in row["description"].lower()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[bytes]:
    """The bytes of the one weight there is, served from MODELS_URL."""
    content, folder = b"weight" * 1000, tmp_path / "mirror"
    folder.mkdir()
    (folder / "w.gguf").write_bytes(content)
    weight = Weight(
        id="w:1",
        file="w.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        licence="Apache-2.0",
        description="A toy.",
        sources=(),
    )
    monkeypatch.setattr(models, "WEIGHTS", (weight,))

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(folder))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv("MODELS_URL", f"http://127.0.0.1:{server.server_port}")
        yield content
        server.shutdown()
        serving.join()


def test_weight_is_pulled_once(shell: Shell, tmp_path: Path, mirror: bytes) -> None:
    path = Path(shell.json("models", "pull")["w:1"])
    assert path.read_bytes() == mirror
    assert shell.json("models", "list")[0]["present"] is True
    (tmp_path / "mirror" / "w.gguf").unlink()
    assert "w:1 is in" in shell("models", "pull", "w:1")


def test_weight_that_cannot_be_had_names_its_sources(
    shell: Shell, tmp_path: Path, mirror: bytes
) -> None:
    (tmp_path / "mirror" / "w.gguf").write_bytes(mirror[::-1])
    said = shell("models", "pull", code=1).replace("\n", " ")
    assert "could not be pulled" in said
    assert "sha256" in said


def test_config_check_shows_where_values_come_from(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    rows = {row["name"]: row for row in shell.json("config", "check")}
    assert rows["PORT"] == {"name": "PORT", "value": "5006", "from": "default"}
    assert rows["OPENAI_API_KEY"]["from"] == "environment"
    assert rows["APP_DATA"]["from"] == "flag"
    assert "canary" not in json.dumps(rows)
    assert "canary" not in shell("config", "check")


def test_config_check_stops_on_an_unknown_key(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "ai-server.toml"
    file.write_text("prot = 1\n")
    assert "unknown setting `prot`" in shell("config", "check", code=1)


def test_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["version"]).stdout.strip() == f"ai-server {__version__}"
    assert (
        CliRunner().invoke(app, ["version", "--json"]).stdout
        == f'{{\n  "version": "{__version__}"\n}}\n'
    )


def test_help_lists_every_setting() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"]).stdout
    assert all(setting.name in shown for setting in SETTINGS)


@pytest.mark.parametrize("words", [["--help"], ["keys"], ["providers", "--help"], ["models"]])
def test_help_is_there(words: list[str]) -> None:
    shown = CliRunner().invoke(app, words)
    assert "Usage:" in shown.output
    assert shown.exit_code in (0, 2)


def test_broken_database_is_named(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "data" / "app.db").write_bytes(b"not a database " * 1000)
    assert "Cannot open the database" in shell("keys", "list", code=1)


def test_wrong_encryption_key_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCRYPTION_KEY", "short")
    assert "32 bytes" in shell("keys", "list", code=1)
