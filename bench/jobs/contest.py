"""Queues in turn, each in a process of its own, on one PostgreSQL or a folder: jobs a second."""

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import installed
from bench.report import Table, at_least, verdict

PEERS = ("pgqueuer", "procrastinate")
EMBEDDED, POSTGRES = "embedded", "PostgreSQL"
_OURS = (EMBEDDED, POSTGRES)
ROOT = Path(__file__).parents[2]
_MOST_SECONDS = 180
# What each did in a second, so that a round of any takes about as long.
_PACE = {EMBEDDED: 4000, POSTGRES: 3500, "pgqueuer": 1200, "procrastinate": 280}
_BATCH, _BATCH_PACE = 100, 6000
_TIMES = {"start_ms": "start ms", "wait_ms": "result ms", "lone_ms": "rested ms"}

Found = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """How much to run, and beside what."""

    rounds: int
    seconds: float
    peers: Sequence[str]


@dataclass(frozen=True)
class Contestant:
    """`jobs` in a round; `a_call` of them are added at once."""

    name: str
    command: list[str | Path]
    place: str
    jobs: int
    a_call: int = 1

    def run(self) -> Found:
        told = ["--place", self.place, "--jobs", str(self.jobs), "--a-call", str(self.a_call)]
        return asked([*self.command, *told], self.name)


def ours(module: str) -> list[str | Path]:
    return [sys.executable, "-m", f"bench.jobs.{module}"]


def asked(command: list[str | Path], name: str) -> Found:
    """The figures that a queue's process prints."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{name} did not end in {_MOST_SECONDS} s: some of its jobs were never done.")
    if done.returncode != 0:
        sys.exit(f"{name} failed: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def hold(places: dict[str, str], archives: dict[str, str], setting: Setting) -> dict[str, Any]:
    """Prints the table; `places` by name, `archives` those of ours with a filled archive."""
    every = _contestants(places, archives, setting)
    rounds: dict[str, list[Found]] = {each.name: [] for each in every}
    for _ in range(setting.rounds):
        for each in random.sample(every, len(every)):
            rounds[each.name].append(each.run())
    _show(rounds)
    judged = [*_rates(rounds), *_waits(rounds), *_archives(rounds)]
    medians = {
        name: {what: _median(found, what) for what in found[0]} for name, found in rounds.items()
    }
    return {"medians": medians, "limits": judged}


def archived(name: str) -> str:
    return f"{name}, archive"


def _contestants(
    places: dict[str, str], archives: dict[str, str], setting: Setting
) -> list[Contestant]:
    every: list[Contestant] = []
    for name in _OURS:
        jobs = round(_PACE[name] * setting.seconds)
        every.append(Contestant(name, ours("through"), places[name], jobs))
        every.append(Contestant(archived(name), ours("through"), archives[name], jobs))
    for name in setting.peers:
        python = installed(name) / "python"
        command: list[str | Path] = [python, "-m", f"bench.jobs.peer_{name}"]
        every.append(Contestant(name, command, places[name], round(_PACE[name] * setting.seconds)))
        if name == "pgqueuer":
            jobs = round(_BATCH_PACE * setting.seconds)
            title = f"{name}, {_BATCH} a call"
            every.append(Contestant(title, command, places[name], jobs, _BATCH))
    return every


def _rates(rounds: dict[str, list[Found]]) -> list[dict[str, Any]]:
    rates = [each["rate"] for each in rounds[EMBEDDED]]
    spread = (min(rates), max(rates))
    judged = [at_least("embedded, jobs/s at least 4000", statistics.median(rates), 4000, spread)]
    if "pgqueuer" in rounds:
        for name, least in ((EMBEDDED, 3), (POSTGRES, 2)):
            said = f"{name}, at least {least} x pgqueuer"
            judged.append(_ratio(said, rounds[name], rounds["pgqueuer"], least))
    return judged


def _waits(rounds: dict[str, list[Found]]) -> list[dict[str, Any]]:
    limits = (
        (EMBEDDED, "wait_ms", "ms to the result, p50, at most 1", 1),
        (POSTGRES, "wait_ms", "ms to the result, p50, at most 8", 8),
        (EMBEDDED, "start_ms", "ms to the start, p50, at most 5", 5),
        (POSTGRES, "start_ms", "ms to the start, p50, at most 5", 5),
    )
    judged: list[dict[str, Any]] = []
    for name, what, said, most in limits:
        values = [each[what] for each in rounds[name]]
        spread = (min(values), max(values))
        judged.append(verdict(f"{name}, {said}", statistics.median(values), most, spread))
    return judged


def _archives(rounds: dict[str, list[Found]]) -> list[dict[str, Any]]:
    return [
        _ratio(
            f"{name}, with archive at least 0.8 x without",
            rounds[archived(name)],
            rounds[name],
            0.8,
        )
        for name in _OURS
    ]


def _ratio(said: str, of: list[Found], to: list[Found], least: float) -> dict[str, Any]:
    """Of rates, round by round."""
    ratios = [a["rate"] / b["rate"] for a, b in zip(of, to, strict=True)]
    return at_least(said, statistics.median(ratios), least, (min(ratios), max(ratios)))


def _show(rounds: dict[str, list[Found]]) -> None:
    title = f"No-op jobs, enqueued to done, {len(rounds[EMBEDDED])} rounds in turn"
    table = Table(title, ("jobs/s", "min..max", "x pgqueuer", *_TIMES.values()))
    for name, found in rounds.items():
        rates = sorted(each["rate"] for each in found)
        times = "-"
        if "pgqueuer" in rounds:
            pairs = zip(found, rounds["pgqueuer"], strict=True)
            times = f"{statistics.median(a['rate'] / b['rate'] for a, b in pairs):.2f}"
        spread = f"{rates[0]:.0f}..{rates[-1]:.0f}"
        waits = (_shown(found, what) for what in _TIMES)
        table.add(name, (f"{statistics.median(rates):.0f}", spread, times, *waits))
    table.show()


def _shown(found: list[Found], what: str) -> str:
    return f"{_median(found, what):.2f}" if what in found[0] else "-"


def _median(found: list[Found], what: str) -> float:
    return statistics.median(each[what] for each in found)
