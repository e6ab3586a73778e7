"""The benchmarks that run the gateway and its peers in turn, and what each must reach."""

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gateway import NAME, gateway
from bench.loads import Load, Sample, large_bodies, low_rate, plain, streams
from bench.machines import Server
from bench.peers import PEERS, echo_upstream, fixed_upstream, nginx_unbuffered
from bench.report import Table, verdict

_WARM_UP, _SLOW_WARM_UP = 1.0, 10.0


@dataclass(frozen=True)
class Limit:
    """At most `most`: a multiple of what `against` has, or added to what it has."""

    what: str
    column: str
    against: str
    most: float
    added: bool = False


@dataclass(frozen=True)
class Comparison:
    title: str
    load: Load
    unit: str
    limits: tuple[Limit, ...]
    upstream: Callable[[Path], Server] = echo_upstream
    columns: tuple[str, str] = ("p50 ms", "p99 ms")
    streamed: bool = False
    # The upstream itself, without a gateway before it, is the base of what a gateway adds.
    direct: bool = True


COMPARISONS = {
    "plain": Comparison(
        "Plain chat at saturation, 32 connections, an answer of 700 bytes",
        plain,
        "request",
        (
            Limit("CPU a request", "cpu", "nginx", 2.5),
            Limit("CPU a request", "cpu", "vllm-router", 0.75),
        ),
        upstream=fixed_upstream,
        direct=False,
    ),
    "streams": Comparison(
        "200 streams of 50 chunks, 20 ms apart",
        streams,
        "chunk",
        (
            Limit("CPU a chunk", "cpu", "nginx", 1.6),
            Limit("ms to the first token, p50", "p50", "direct", 2.0, added=True),
        ),
        columns=("first p50", "first p99"),
        streamed=True,
    ),
    "latency": Comparison(
        "Plain chat, 200 requests a second",
        low_rate,
        "request",
        (Limit("ms, p50", "p50", "direct", 0.6, added=True),),
    ),
    "bodies": Comparison(
        "Requests of 1 MB, 8 connections",
        large_bodies,
        "request",
        (Limit("CPU a request", "cpu", "nginx", 3.0),),
        direct=False,
    ),
}


@dataclass(frozen=True)
class Setting:
    """How much to run, and beside what."""

    rounds: int
    seconds: float
    peers: Sequence[str]
    lanes: Sequence[str]


def compare(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Prints the table of a benchmark; its medians by server, and each limit's outcome."""
    comparison = COMPARISONS[name]
    with ExitStack() as stack:
        servers = _started(stack, comparison, setting, folder)
        for server in servers:
            comparison.load(server, folder, _SLOW_WARM_UP if server.slow else _WARM_UP)
        rounds: dict[str, list[Sample]] = {server.name: [] for server in servers}
        for _ in range(setting.rounds):
            for server in random.sample(servers, len(servers)):
                rounds[server.name].append(comparison.load(server, folder, setting.seconds))
    _show(comparison, rounds)
    judged = [_judge(limit, rounds) for limit in comparison.limits if limit.against in rounds]
    return {"medians": {n: asdict(_median(r)) for n, r in rounds.items()}, "limits": judged}


def _started(
    stack: ExitStack, comparison: Comparison, setting: Setting, folder: Path
) -> list[Server]:
    upstream = comparison.upstream(folder)
    stack.callback(upstream.stop)
    servers = [upstream] if comparison.direct else []
    for peer in setting.peers:
        start = PEERS[peer]
        if peer == "nginx" and comparison.streamed:
            start = nginx_unbuffered
        servers.append(start(folder, upstream.port))
        stack.callback(servers[-1].stop)
    for lane in setting.lanes:
        servers.append(gateway(folder, upstream.port, lane=lane))
        stack.callback(servers[-1].stop)
    return servers


def _median(rounds: list[Sample]) -> Sample:
    return Sample(
        *(
            statistics.median(getattr(each, column) for each in rounds)
            for column in ("cpu", "rate", "p50", "p99")
        )
    )


def _ratios(rounds: dict[str, list[Sample]], name: str, against: str) -> list[float]:
    """Of CPU, round by round."""
    return [a.cpu / b.cpu for a, b in zip(rounds[name], rounds[against], strict=True)]


def _show(comparison: Comparison, rounds: dict[str, list[Sample]]) -> None:
    heads = (f"CPU us/{comparison.unit}", "min..max", "x nginx", f"{comparison.unit}s/s")
    table = Table(comparison.title, (*heads, *comparison.columns))
    for name, samples in rounds.items():
        middle, spent = _median(samples), sorted(each.cpu for each in samples)
        times, cpu = "-", f"{middle.cpu:.1f}"
        spread = f"{spent[0]:.0f}..{spent[-1]:.0f}"
        if name == "direct":
            cpu = spread = times
        elif "nginx" in rounds:
            times = f"{statistics.median(_ratios(rounds, name, 'nginx')):.2f}"
        speed = (f"{middle.rate:.0f}", f"{middle.p50:.2f}", f"{middle.p99:.2f}")
        table.add(name, (cpu, spread, times, *speed))
    table.show()


def _judge(limit: Limit, rounds: dict[str, list[Sample]]) -> dict[str, Any]:
    ours = next(name for name in rounds if name.startswith(NAME))
    if limit.added:
        values = [
            getattr(a, limit.column) - getattr(b, limit.column)
            for a, b in zip(rounds[ours], rounds[limit.against], strict=True)
        ]
        said = f"added {limit.what} at most {limit.most:g}"
    else:
        values = _ratios(rounds, ours, limit.against)
        said = f"{limit.what} at most {limit.most:g} x {limit.against}"
    return verdict(said, statistics.median(values), limit.most, (min(values), max(values)))
