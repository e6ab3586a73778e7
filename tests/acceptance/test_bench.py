"""The benchmark in small: wrong answers are seen, jobs and media come to figures."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture
def load(tmp_path: Path) -> Path:
    """The load generator, compiled."""
    compiler = shutil.which("gcc")
    assert compiler is not None, "Install gcc to run the benchmark's tests."
    built = tmp_path / "load"
    source = ROOT / "bench" / "c" / "load.c"
    subprocess.run([compiler, "-O1", "-o", built, source], check=True)
    return built


def test_every_answer_belongs_to_its_request(tmp_path: Path) -> None:
    shown = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "--only", "crosstalk", "--calls", "5000"]
    run = subprocess.run(
        [*command, "--json", str(shown)], cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    [found] = json.loads(shown.read_text())["crosstalk"]
    assert (found["calls"], found["value"], found["outcome"]) == (5000, 0, "PASS")


def test_every_figure_of_the_jobs_is_printed(tmp_path: Path) -> None:
    shown = tmp_path / "figures.json"
    scale = ["--rounds", "1", "--seconds", "0.05", "--idle", "0.5", "--archived", "500"]
    command = [sys.executable, "-m", "bench", "--only", "jobs", "--peers", "none", *scale]
    run = subprocess.run(
        [*command, "--queued", "1000", "--json", str(shown)],
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(shown.read_text())["jobs"]
    named = ["embedded", "PostgreSQL", "embedded, archive", "PostgreSQL, archive"]
    assert set(found["medians"]) == set(named)
    assert all(figures["rate"] > 0 for figures in found["medians"].values())
    # Without pgqueuer nothing is compared with it; all other limits are judged.
    assert len(found["limits"]) == 13
    assert all(limit["what"] in run.stdout for limit in found["limits"])


def test_every_figure_of_the_media_is_printed(tmp_path: Path) -> None:
    shown = tmp_path / "figures.json"
    scale = ["--rounds", "1", "--seconds", "1", "--clip", "2", "--large", "30000000"]
    command = [sys.executable, "-m", "bench", "--only", "media", "--peers", "none", *scale]
    run = subprocess.run(
        [*command, "--json", str(shown)], cwd=ROOT, timeout=240, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(shown.read_text())["media"]
    assert all(figures["rate"] > 0 for figures in found["new"]["medians"].values())
    judged = [*found["new"]["limits"], *found["again"]["limits"], *found["large"], found["once"]]
    judged += found["operations"]["limits"]
    # Without thumbor and ipx nothing is compared with them; all other limits are judged.
    assert len(judged) == 12
    assert all(limit["what"] in run.stdout for limit in judged)
    assert found["once"]["value"] == 1


async def test_answer_of_another_request_is_counted(load: Path) -> None:
    # One answer for all: right for nobody, though each is a good answer.
    assert (await _run(load, b'{"content":"tok-00000000000000aa"}'))["mismatches"] == 100


async def test_answer_without_a_token_is_counted(load: Path) -> None:
    assert (await _run(load, b"{}"))["mismatches"] == 100


async def _run(load: Path, answer: bytes) -> Any:
    """The report of 100 calls to a server that always says the same."""
    server = await asyncio.start_server(lambda r, w: _same(r, w, answer), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        command = [str(load), "--port", str(port), "--requests", "100", "--connections", "4"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(20):
            shown, _ = await process.communicate()
    return json.loads(shown)


async def _same(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
    try:
        while True:
            asked = await reader.readuntil(b"\r\n\r\n")
            size = asked.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(size))
            writer.write(head + answer)
    except asyncio.IncompleteReadError:
        writer.close()
