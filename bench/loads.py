"""Runs a load against a server and says what each request cost it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machines import LOAD_CORE, Server

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""
_BODY = '{"model":"bench-model","messages":[{"role":"user","content":"%s"}]}' % ("x" * 500)
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_PINNED = ["taskset", "-c", LOAD_CORE]


@dataclass(frozen=True)
class Sample:
    """What one server did in one round: microseconds of CPU, calls a second, milliseconds."""

    cpu: float
    rate: float
    p50: float
    p99: float


Load = Callable[[Server, Path, float], Sample]


def plain(server: Server, folder: Path, seconds: float) -> Sample:
    """As many whole answers as go through; CPU of each."""
    script = folder / "chat.lua"
    script.write_text(_SCRIPT.format(key=server.key, body=_BODY))
    connections = 8 if server.slow else 32
    return saturated(server, "/v1/chat/completions", script, seconds, connections=connections)


def saturated(
    server: Server, path: str, script: Path, seconds: float, *, connections: int
) -> Sample:
    """As many requests as go through, made by a script of wrk; CPU of each."""
    command = [
        *_PINNED,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "20s",
    ]
    command += ["--latency", "-s", str(script), f"{server.url}{path}"]
    before = server.spent()
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = server.spent() - before
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", shown)
    broken = re.search(
        r"Socket errors: connect [^0].*|Socket errors: connect 0, read [^0].*", shown
    )
    if failed or broken:
        reason = failed[0] if failed else broken[0] if broken else ""
        sys.exit(f"{server.name}: not every call went well; the figures mean nothing: {reason}")
    requests = int(_found(r"(\d+) requests in", shown)[1])
    rate = float(_found(r"Requests/sec:\s+([\d.]+)", shown)[1])
    return Sample(spent / requests, rate, _percentile(50, shown), _percentile(99, shown))


def streams(server: Server, folder: Path, seconds: float) -> Sample:
    """200 streams of 50 chunks, 20 ms apart; CPU of a chunk, time to the first token."""
    count = 10 if server.slow else 200
    options = {"connections": count, "stream_every": 1, "chunks": 50, "gap": 20, "ramp": 1000}
    done, spent = _load(server, folder, seconds, **options)
    first, chunks = done["first"], done["chunks"]
    return Sample(spent / chunks, chunks / done["seconds"], first["p50"], first["p99"])


def low_rate(server: Server, folder: Path, seconds: float) -> Sample:
    """Whole answers at 200 a second; their latency."""
    rate = 20 if server.slow else 200
    done, spent = _load(server, folder, seconds, rate=rate, skip=rate // 4)
    return _whole(done, spent)


def large_bodies(server: Server, folder: Path, seconds: float) -> Sample:
    """Requests of 1 MB, eight at a time; CPU of each."""
    done, spent = _load(server, folder, seconds, connections=8, size=1_000_000)
    return _whole(done, spent)


def checked(server: Server, folder: Path, *, requests: int, **options: int) -> dict[str, Any]:
    """So many calls, each answer compared with its request; the load's own report."""
    shown = subprocess.run(
        _command(server, folder, requests=requests, **options),
        stdout=subprocess.PIPE,
        timeout=60 + requests / 100,
        check=True,
    )
    return json.loads(shown.stdout)


@contextmanager
def held_streams(server: Server, folder: Path, count: int) -> Generator[None]:
    """So many streams are open meanwhile, each with a chunk a second."""
    options = {"connections": count, "requests": count, "stream_every": 1, "ramp": 1000}
    command = [*_command(server, folder, **options, chunks=600, gap=1000), "--hold"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        opened = load.stdout.readline()
        if json.loads(opened or "{}").get("open") != count:
            sys.exit(f"{server.name} did not open {count} streams.")
        yield
        load.stdin.close()


def _load(
    server: Server, folder: Path, seconds: float, **options: int
) -> tuple[dict[str, Any], float]:
    """What the load reports, and the CPU that the server spent meanwhile."""
    command = _command(server, folder, seconds=round(seconds), **options)
    before = server.spent()
    shown = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + 120, check=True)
    spent = server.spent() - before
    done = json.loads(shown.stdout)
    if done["failures"] or done["mismatches"]:
        sys.exit(f"{server.name}: not every answer was right; the figures mean nothing: {done}")
    return done, spent


def _command(server: Server, folder: Path, **options: int) -> list[str]:
    command = [*_PINNED, str(folder / "load"), "--port", str(server.port), "--key", server.key]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    return command


def _whole(done: dict[str, Any], spent: float) -> Sample:
    latency = done["latency"]
    return Sample(spent / done["requests"], done["rate"], latency["p50"], latency["p99"])


def _percentile(which: int, shown: str) -> float:
    """Milliseconds."""
    found = _found(rf"{which}%\s+([\d.]+)(us|ms|s)", shown)
    return float(found[1]) * _UNITS[found[2]]


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        sys.exit(f"The load generator printed no {pattern!r}:\n{text}")
    return match
