"""A real llama.cpp of random weights, served by the child that the gateway itself uses."""

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiserver.providers.local.engine import native_package_installed
from fakes.gguf import write_tiny_gguf

PATIENCE = 30.0
# Grammars bound the spaces between tokens, so that even random weights come to an end.
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Llama:
    """Where it listens, and the key that it takes; its one model is `tiny`."""

    url: str
    key: str


@contextmanager
def running_llama(folder: Path, *, slots: int) -> Generator[Llama]:
    """Serves until the end of the block; weights and log go into the folder."""
    assert native_package_installed(), "the tests need the extra `local`; make test installs it"
    model = write_tiny_gguf(folder / "tiny.gguf")
    key = secrets.token_urlsafe(16)
    argv = [sys.executable, "-m", "aiserver.providers.local.llama_child", "--model", str(model)]
    argv += ["--alias", "tiny", "--threads", "1", "--context", "4096", "--slots", str(slots)]
    pipe = subprocess.PIPE
    with (
        (folder / "llama.log").open("wb") as log,
        subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=log) as child,
    ):
        try:
            told = _say_hello(child, key)
            assert told.get("ready"), f"{told} {(folder / 'llama.log').read_text()}"
            yield Llama(told["url"], key)
        finally:
            child.kill()


def _say_hello(child: subprocess.Popen[bytes], key: str) -> dict[str, Any]:
    """Hands the key over and waits for the ready line; a child that is silent is killed."""
    assert child.stdin is not None
    assert child.stdout is not None
    overdue = threading.Timer(PATIENCE, child.kill)
    overdue.start()
    try:
        child.stdin.write(f"{key}\n".encode())
        child.stdin.flush()
        return json.loads(child.stdout.readline() or b"{}")
    finally:
        overdue.cancel()
