"""All figures of the job queue: rest, jobs a second, waits, a long queue, an old archive."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.jobs import contest
from bench.jobs.contest import EMBEDDED, POSTGRES, Setting, asked, hold, ours
from bench.jobs.deep import CLAIMED, MODELS
from bench.machines import family, reaped, spent
from bench.postgres import Cluster, cluster
from bench.report import verdict

_IDLE_MOST = {EMBEDDED: 0.3, POSTGRES: 0.8}
_CLAIM_MOST_MS, _GROWN_MOST_MB = 5.0, 100.0


@dataclass(frozen=True)
class Scale:
    """Jobs in the archive and in the long queue, and seconds of rest."""

    archived: int
    queued: int
    idle_seconds: float


def run(setting: Setting, scale: Scale, folder: Path) -> dict[str, Any]:
    with cluster(folder) as server:
        new = _Places(folder, server)
        idle = _idle(new, server, scale.idle_seconds)
        archives = {name: new.place(name) for name in (EMBEDDED, POSTGRES)}
        _fill(list(archives.values()), scale.archived)
        places = {name: new.place(name) for name in (EMBEDDED, POSTGRES, *setting.peers)}
        rates = hold(places, archives, setting)
        deep = _deep(new, scale.queued)
    limits = [*rates["limits"], *deep, *idle]
    return {"medians": rates["medians"], "limits": limits}


class _Places:
    """New, empty places for stores."""

    def __init__(self, folder: Path, server: Cluster) -> None:
        self._folder = folder
        self._server = server
        self._count = 0

    def place(self, name: str) -> str:
        """A folder for the embedded store, for all others a PostgreSQL URL."""
        self._count += 1
        if name != EMBEDDED:
            return self._server.create(f"bench_{self._count}")
        made = self._folder / f"store-{self._count}"
        made.mkdir()
        return str(made)


def _fill(places: list[str], count: int) -> None:
    began = time.monotonic()

    def filled(place: str) -> None:
        asked([*ours("archive"), "--place", place, "--jobs", str(count)], "The archive")

    with ThreadPoolExecutor(len(places)) as threads:
        list(threads.map(filled, places))
    print(f"\nArchives of {count} jobs made in {time.monotonic() - began:.0f} s", flush=True)


def _deep(new: _Places, queued: int) -> list[dict[str, Any]]:
    print(f"\nA queue of {queued} jobs over {MODELS} models, claims of {CLAIMED}")
    judged: list[dict[str, Any]] = []
    for name in (EMBEDDED, POSTGRES):
        command = [*ours("deep"), "--place", new.place(name), "--jobs", str(queued)]
        found = asked(command, name)
        said = f"{name}, ms a claim, p50, at most {_CLAIM_MOST_MS:g}"
        judged.append(verdict(said, found["claim_ms"], _CLAIM_MOST_MS))
        print(f"        {found['worker_ms']:.2f} ms of a worker that looks for what waits")
        said = f"{name}, MB more with {queued // 2} queued, at most {_GROWN_MOST_MB:g}"
        judged.append(verdict(said, found["grown"] / 1e6, _GROWN_MOST_MB))
    return judged


def _idle(new: _Places, server: Cluster, seconds: float) -> list[dict[str, Any]]:
    """Percent of a core, both stores at once; the database counts with the one that is on it."""
    print(f"\nAt rest for {seconds:g} s")
    resting = {name: _resting(new.place(name)) for name in (EMBEDDED, POSTGRES)}
    try:
        for process in resting.values():
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit("A queue at rest failed; the messages above say why.")
        embedded, postgres = (resting[name].pid for name in (EMBEDDED, POSTGRES))
        meters: dict[str, Callable[[], float]] = {
            EMBEDDED: lambda: _total(embedded),
            POSTGRES: lambda: _total(postgres) + _total(server.process.pid),
        }
        before = {name: meter() for name, meter in meters.items()}
        time.sleep(seconds)
        used = {name: (meter() - before[name]) / 1e4 / seconds for name, meter in meters.items()}
    finally:
        for process in resting.values():
            process.communicate(timeout=30)
    return [
        verdict(f"{name}, % of a core at rest, at most {most:g}", used[name], most)
        for name, most in _IDLE_MOST.items()
    ]


def _resting(place: str) -> "subprocess.Popen[bytes]":
    command = [*ours("idle"), "--place", place]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=contest.ROOT, stdin=pipe, stdout=pipe)


def _total(pid: int) -> float:
    """Microseconds of CPU of a process and its children, those that ended too."""
    total = reaped(pid)
    for each in family(pid):
        # One that ends just now is among the reaped the next time.
        with suppress(OSError):
            total += spent(each)
    return total
