"""Variants that nobody has asked for before, and one that everybody asks for."""

import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.gateway import NAME
from bench.loads import Sample, saturated
from bench.machines import Server
from bench.media import server as ours
from bench.media.contestants import (
    ENGINE,
    LIBVIPS,
    RESIZE,
    THUMBNAIL,
    contestants,
    variant_of,
)
from bench.media.peers import nginx_files
from bench.report import Table, at_least

_CONNECTIONS = 16
_GET = """
wrk.headers["Authorization"] = "Bearer {key}"
"""

Rounds = dict[str, list[Sample]]


class Limit(NamedTuple):
    """At least so many times what `against` does in a second, or with the same CPU."""

    who: str
    against: str
    least: float
    by_cpu: bool = False


_NEW = (
    Limit(ENGINE, LIBVIPS, 0.8),
    Limit(NAME, LIBVIPS, 0.8),
    Limit(NAME, THUMBNAIL, 1.0),
    Limit(NAME, RESIZE, 1.5),
    Limit(NAME, "thumbor", 1.0),
    Limit(NAME, "ipx", 1.0),
)
# By CPU, since nginx may wait for the load.
_AGAIN = (Limit(NAME, "nginx", 0.15, by_cpu=True),)


def new(
    folder: Path, picture: Path, peers: Sequence[str], *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Every request is for a variant that is not there yet."""
    with ExitStack() as stack:
        every, left_out = contestants(stack, folder, picture, peers, rounds=rounds)
        seen: Rounds = {name: [] for name in every}
        for _ in range(rounds):
            for name in random.sample(list(every), len(every)):
                seen[name].append(every[name](seconds))
    _show("New variants, 2000x1333 to 500 wide, one core each", LIBVIPS, "picture", seen)
    for name, reason in left_out.items():
        print(f"  {name} is left out: {reason}")
    return {**_judged(_NEW, seen), "left_out": left_out}


def again(folder: Path, picture: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Every request is for the same variant, which nginx has as a file."""
    with ExitStack() as stack:
        server = ours.files_server(folder)
        stack.callback(server.stop)
        path = variant_of(ours.upload(server, ours.file_part("file", picture)), 1000)
        root = folder / "files"
        root.mkdir()
        (root / "variant.jpg").write_bytes(ours.read(server, path))
        # nginx reads it as a user of its own.
        folder.chmod(0o711)
        plain = nginx_files(folder, root, "/variant.jpg")
        stack.callback(plain.stop)
        paths = {server: path, plain: "/variant.jpg"}
        seen: Rounds = {each.name: [] for each in paths}
        for each in paths:
            _got(each, paths[each], folder, seconds / 3)
        for _ in range(rounds):
            for each in random.sample(list(paths), len(paths)):
                seen[each.name].append(_got(each, paths[each], folder, seconds))
    size = (root / "variant.jpg").stat().st_size
    _show(f"The same variant again, {size} bytes, one core each", "nginx", "request", seen)
    return _judged(_AGAIN, seen)


def _got(server: Server, path: str, folder: Path, seconds: float) -> Sample:
    script = folder / "get.lua"
    script.write_text(_GET.format(key=server.key))
    return saturated(server, path, script, seconds, connections=_CONNECTIONS)


def _median(samples: list[Sample]) -> Sample:
    return Sample(
        *(
            statistics.median(getattr(each, column) for each in samples)
            for column in ("cpu", "rate", "p50", "p99")
        )
    )


def _show(title: str, base: str, unit: str, seen: Rounds) -> None:
    heads = (f"CPU us/{unit}", "min..max", f"x {base}", f"{unit}s/s", f"x {base}")
    table = Table(title, heads)
    for name, samples in seen.items():
        middle, spent = _median(samples), sorted(each.cpu for each in samples)
        table.add(
            name,
            (
                f"{middle.cpu:.0f}",
                f"{spent[0]:.0f}..{spent[-1]:.0f}",
                f"{statistics.median(_times(seen, name, base)):.2f}",
                f"{middle.rate:.0f}",
                f"{statistics.median(_times(seen, name, base, rate=True)):.2f}",
            ),
        )
    table.show()


def _judged(limits: Sequence[Limit], seen: Rounds) -> dict[str, Any]:
    judged: list[dict[str, Any]] = []
    for limit in limits:
        against = next((name for name in seen if _is(name, limit.against)), None)
        if against is not None:
            values = _times(seen, limit.who, against, rate=not limit.by_cpu)
            what = "for the same CPU" if limit.by_cpu else "a second"
            said = f"{limit.who}, {what} at least {limit.least:g} x {against}"
            spread = (min(values), max(values))
            judged.append(at_least(said, statistics.median(values), limit.least, spread))
    medians = {name: asdict(_median(samples)) for name, samples in seen.items()}
    return {"medians": medians, "limits": judged}


def _is(name: str, wanted: str) -> bool:
    """Peers are named with their version."""
    return name == wanted or name.startswith(f"{wanted} ")


def _times(seen: Rounds, who: str, against: str, *, rate: bool = False) -> list[float]:
    """How many times what another does, round by round."""
    pairs = zip(seen[who], seen[against], strict=True)
    return [a.rate / b.rate if rate else b.cpu / a.cpu for a, b in pairs]
