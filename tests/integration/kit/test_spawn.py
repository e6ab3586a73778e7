"""Children are started without a word of Python in between, and their ends are told."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aiserver.kit.spawn import Spawned, spawn

SOURCES = Path(__file__).parents[3] / "src"
PATIENCE = 10.0


class Heard(asyncio.SubprocessProtocol):
    """What a child wrote, and what was told of it in order."""

    def __init__(self) -> None:
        self.written = {1: b"", 2: b""}
        self.told: list[str] = []
        self.over = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.written[fd] += data

    def process_exited(self) -> None:
        self.told.append("exited")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("over")
        self.over.set()


async def ended(code: str, *, stdin: int = subprocess.DEVNULL) -> tuple[Spawned, Heard]:
    child, heard = await spawn(Heard, sys.executable, "-S", "-c", code, stdin=stdin)
    async with asyncio.timeout(PATIENCE):
        await heard.over.wait()
    child.close()
    return child, heard


@pytest.fixture(params=["handle", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems tell of a child's end by a handle, or only to who waits."""

    def none(_: int) -> int:
        raise OSError

    if request.param == "thread":
        monkeypatch.setattr("aiserver.kit.spawn._end_of", none)


@pytest.mark.usefixtures("way")
async def test_output_and_end_are_told() -> None:
    says = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    child, heard = await ended(says)
    assert heard.written == {1: b"out\n", 2: b"err\n"}
    assert (child.get_returncode(), heard.told) == (3, ["exited", "over"])


@pytest.mark.usefixtures("way")
async def test_signal_is_a_negative_code() -> None:
    child, _ = await ended("import os; os.kill(os.getpid(), 9)")
    assert child.get_returncode() == -9


async def test_child_that_ends_before_it_is_written_to_is_told() -> None:
    for _ in range(5):
        child, heard = await ended("", stdin=subprocess.PIPE)
        assert (child.get_returncode(), heard.told[-1]) == (0, "over")


async def test_closed_child_is_ended() -> None:
    child, heard = await spawn(Heard, sys.executable, "-S", "-c", "input()", stdin=subprocess.PIPE)
    assert child.get_returncode() is None
    child.close()
    async with asyncio.timeout(PATIENCE):
        await heard.over.wait()
    assert child.get_returncode() == -9


async def test_missing_program_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        await spawn(Heard, "/no/such/program")


STUCK = """
import asyncio, os, sys, threading, uvloop
from aiserver.kit.spawn import spawn

held = threading.Lock()
held.acquire()
os.register_at_fork(after_in_child=held.acquire)

async def main():
    await spawn(asyncio.SubprocessProtocol, sys.executable, "-S", "-c", "")
    print("started")

uvloop.run(main())
"""


def test_lock_that_a_thread_holds_stops_no_child() -> None:
    words = [sys.executable, "-c", STUCK]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "started\n", done.stderr


def test_no_child_is_started_in_another_way() -> None:
    other = re.compile(r"subprocess_exec\(|create_subprocess_|os\.fork\(")
    found = [path for path in SOURCES.rglob("*.py") if other.search(path.read_text())]
    assert found == []
