"""CPU of binding a request, and per chat call as a ratio to nginx as a plain proxy: make bench."""

import argparse
import os
import random
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench import binding
from bench.machines import LOAD_CORE, Server, install, new_key, servers

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = '{body}'
"""
_BODY = '{"model":"bench-model","messages":[{"role":"user","content":"%s"}]}' % ("x" * 500)


class Round:
    """What one server did in one round."""

    def __init__(self, cpu: float, rate: float, latency: float) -> None:
        self.cpu = cpu
        self.rate = rate
        self.latency = latency


def measure(server: Server, script: Path, *, seconds: int, connections: int) -> Round:
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += ["--latency", "-s", str(script), f"{server.url}/v1/chat/completions"]
    before = server.spent()
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = server.spent() - before
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", shown)
    if failed:
        raise SystemExit(f"{server.name}: {failed[1]} calls failed; the figures mean nothing.")
    requests = int(found(r"(\d+) requests in", shown))
    return Round(spent / requests, float(found(r"Requests/sec:\s+([\d.]+)", shown)), median(shown))


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"The load generator printed no {pattern!r}:\n{text}")
    return match[1]


def median(shown: str) -> float:
    """Milliseconds."""
    value = found(r"50%\s+([\d.]+[um]?s)", shown)
    number = float(re.sub(r"[a-z]+", "", value))
    return number / 1000 if value.endswith("us") else number * (1 if value.endswith("ms") else 1000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=("binding", "proxy"), help="one of the two; default both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    given = parser.parse_args()
    if given.only != "proxy":
        binding.report()
    if given.only != "binding":
        compare_with_proxy(given.rounds, given.seconds, given.connections)


def compare_with_proxy(count: int, seconds: int, connections: int) -> None:
    install()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with servers(folder) as (peer, gateway):
            script = folder / "chat.lua"
            script.write_text(_SCRIPT.format(key=new_key(gateway), body=_BODY))
            rounds: dict[str, list[Round]] = {peer.name: [], gateway.name: []}
            for _ in range(count):
                for server in random.sample([peer, gateway], 2):
                    result = measure(server, script, seconds=seconds, connections=connections)
                    rounds[server.name].append(result)
    report(rounds["peer"], rounds["gateway"], connections)


def report(peer: list[Round], gateway: list[Round], connections: int) -> None:
    ratios = [g.cpu / p.cpu for g, p in zip(gateway, peer, strict=True)]
    print(
        f"Plain chat of {len(_BODY)} bytes, {connections} connections, {len(ratios)} rounds, "
        f"load average {os.getloadavg()[0]:.1f}; medians:"
    )
    print(f"{'':12}{'CPU us/call':>12}{'calls/s':>10}{'p50 ms':>9}")
    for name, rows in (("nginx proxy", peer), ("gateway", gateway)):
        cells = [statistics.median(getattr(r, m) for r in rows) for m in ("cpu", "rate", "latency")]
        print(f"{name:12}{cells[0]:12.0f}{cells[1]:10.0f}{cells[2]:9.2f}")
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"CPU per call, gateway to nginx: {statistics.median(ratios):.1f} ({spread})")


if __name__ == "__main__":
    main()
