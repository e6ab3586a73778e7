"""`ai-server providers test`: what one provider answers, how to mend it, and no key on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiserver.cli.main import app
from fakes.upstream import FakeUpstream, closed_port, status

KEY = "sk-canary-0123456789abcdef"


class Shell:
    """Runs commands on one data folder; no output may ever show the key."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def __call__(self, *words: str, stdin: str = "", code: int = 0) -> Any:
        done = CliRunner().invoke(app, [*words, "--data", str(self._data)], input=stdin)
        assert done.exit_code == code, done.output + str(done.exception)
        assert KEY not in done.output
        return done

    def add(self, url: str, *words: str) -> None:
        given = ["providers", "add", "mine", "--type", "custom", "--url", url, "--key-stdin"]
        self(*given, *words, stdin=KEY)

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self("providers", "test", "mine", *words, "--json", code=code).stdout)


@pytest.fixture
def shell(data_folder: Path) -> Shell:
    return Shell(data_folder)


def test_models_are_listed_and_nothing_is_chatted(shell: Shell, fake: FakeUpstream) -> None:
    shell.add(fake.base_url)
    shell("providers", "disable", "mine")
    told = shell("providers", "test", "mine").stdout
    assert "takes calls; lists 1 models" in told
    assert "Models: fake-model" in told
    assert {request.method for request in fake.requests} == {"GET"}
    assert shell.json()["models"] == ["fake-model"]


def test_chat_is_announced_and_uses_the_upstreams_name(shell: Shell, fake: FakeUpstream) -> None:
    shell.add(fake.base_url, "--model", "mine-model=fake-model")
    done = shell("providers", "test", "mine", "--chat", "mine-model")
    assert "may bill it" in done.stderr
    assert "Chat: " in done.stdout
    [chat] = [request for request in fake.requests if request.method == "POST"]
    assert chat.json()["model"] == "fake-model"
    assert shell.json("--chat", "mine-model")["chatSeconds"] >= 0


def test_refused_key_says_how_to_give_another(shell: Shell, fake: FakeUpstream) -> None:
    shell.add(fake.base_url)
    fake.next(status(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    tried = shell.json(code=1)
    assert tried["state"] == "failed"
    assert "ai-server providers edit mine --key-stdin" in tried["do"]


def test_address_that_leads_nowhere_is_named(shell: Shell) -> None:
    shell.add(f"http://127.0.0.1:{closed_port()}")
    told = shell("providers", "test", "mine", code=1).stdout
    assert "cannot be reached" in told
    assert "ai-server providers edit mine --url" in told


def test_chat_that_fails_is_a_failure(shell: Shell, fake: FakeUpstream) -> None:
    shell.add(fake.base_url)
    tried = shell.json("--chat", "fault:rate-limited", code=1)
    assert tried["state"] == "failed"
    assert tried["models"] == ["fake-model"]


def test_unknown_provider_lists_the_known(shell: Shell) -> None:
    told = shell("providers", "test", "nobody", code=1).stderr
    assert "There is no provider 'nobody'. Known providers: none." in told


def test_weight_is_kept_and_bounded(shell: Shell) -> None:
    shell.add("http://127.0.0.1:1", "--weight", "3")
    shell("providers", "edit", "mine", "--weight", "1000")
    [row] = json.loads(shell("providers", "list", "--json").stdout)
    assert row["weight"] == 1000
    shell("providers", "edit", "mine", "--weight", "0", code=2)
