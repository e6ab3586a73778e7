"""A result's link opens it without a key, whatever becomes of the server and of the keys."""

import io
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from typer.testing import CliRunner

from acceptance.running import PATIENCE, RunningServer
from aiserver.cli.main import app
from fakes.painting import form
from gateway import SECRET
from pictures import quarters

SETTINGS = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json", "AUTH_SECRET": SECRET}


class Installation:
    """A data folder, its server, and commands beside it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.server = RunningServer.start(data, SETTINGS)

    def restart(self) -> None:
        port = self.server.port
        assert self.server.stop() == 0
        self.server = RunningServer.start(self.data, SETTINGS, port=port)

    def command(self, *words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--data", str(self.data), "--json"])
        assert done.exit_code == 0, done.output + str(done.exception)
        return done.stdout

    def call(self, verb: str, operation: str, /, **members: Any) -> Any:
        """As the administrator."""
        headers = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
        at, body = (
            f"{self.server.base_url}/api/{operation}",
            json.dumps(members).encode() if members else None,
        )
        with urlopen(Request(at, data=body, headers=headers, method=verb)) as answer:
            return json.loads(answer.read() or b"null")

    def key(self, name: str) -> str:
        return self.call("POST", "AdminCreateApiKey", name=name)["result"]

    def converted(self, key: str) -> str:
        """The address in the answer."""
        written = io.BytesIO()
        quarters(800, 600).save(written, "png")
        body, headers = form(image=("cat.png", written.getvalue()), outputFormat="webp")
        request = Request(
            f"{self.server.base_url}/api/ConvertImage",
            data=body,
            headers={**headers, "authorization": f"Bearer {key}"},
        )
        with urlopen(request) as answer:
            said: Any = json.loads(answer.read())
        return said["results"][0]["url"]


@pytest.fixture
def installation(data_folder: Path) -> Generator[Installation]:
    opened = Installation(data_folder)
    yield opened
    opened.server.stop()


def picture(url: str) -> tuple[str | None, tuple[int, int]]:
    """Format and size of what is at an address, asked for with nothing but that address."""
    with urlopen(Request(url)) as answer:
        shown = Image.open(io.BytesIO(answer.read()))
        return shown.format, shown.size


def status(url: str, key: str | None = None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with urlopen(Request(url, headers=headers)) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def opens(url: str) -> bool:
    """Both the result and a variant of it, with the same query."""
    variant = url.replace("/artifacts/", "/variants/width=512/")
    return [picture(url), picture(variant)] == [("WEBP", (800, 600)), ("WEBP", (512, 384))]


def until(happened: Callable[[], bool]) -> None:
    """A server sees within a second what a command changed."""
    late = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < late


def test_link_outlives_restart_and_every_rotation(installation: Installation) -> None:
    key = installation.key("app")
    url = installation.converted(key)
    assert opens(url)
    installation.restart()
    assert opens(url)
    path, _, _ = url.partition("?")
    installation.command("files", "rotate-signing")
    assert opens(url)
    installation.command("keys", "rotate-encryption")
    assert opens(url)
    installation.command("keys", "rotate", "app")
    until(lambda: status(path, key) == 401)
    assert opens(url)
    installation.call("PATCH", "AdminUpdateApiKey", id=1, cancelledDate="2020-01-01T00:00:00Z")
    assert opens(url)
    installation.call("DELETE", "AdminDeleteApiKey?id=1")
    assert opens(url)
    installation.command("files", "rotate-signing")
    installation.restart()
    assert opens(url)
    assert opens(installation.converted(installation.key("second")))
    assert (status(path), status(url.replace("signature=", "signature=x"))) == (404, 404)


def test_links_close_once_their_secret_is_revoked(installation: Installation) -> None:
    key = installation.key("app")
    url = installation.converted(key)
    assert opens(url)
    installation.command("files", "rotate-signing", "--revoke")
    until(lambda: status(url) == 404)
    renewed = installation.converted(key)
    assert opens(renewed)
    installation.restart()
    assert opens(renewed)
