"""What memory many calls and many open streams cost."""

from pathlib import Path
from typing import Any

from bench.gateway import alone
from bench.loads import checked, held_streams
from bench.machines import Server
from bench.report import verdict

STREAMS, CALLS = 1000, 500_000
_GROWTH, _KILOBYTES_A_STREAM = 1.05, 40.0
_SLICES = 10


def measure(folder: Path, *, lane: str, calls: int = CALLS, streams: int = STREAMS) -> Any:
    """Prints how memory moves with so many calls, then with so many streams open."""
    with alone(folder, lane=lane) as server:
        opened = _streams(server, folder, streams)
    with alone(folder, lane=lane) as server:
        return {"streams": opened, "calls": _calls(server, folder, calls)}


def _streams(server: Server, folder: Path, count: int) -> dict[str, Any]:
    _some(server, folder, 1000)
    idle = server.resident()
    with held_streams(server, folder, count):
        held = server.resident()
    print(f"\nMemory: {count} open streams, {_mib(idle)} to {_mib(held)} ({server.name})")
    each = (held - idle) / count / 1000
    return verdict(f"kB a stream at most {_KILOBYTES_A_STREAM:g}", each, _KILOBYTES_A_STREAM)


def _calls(server: Server, folder: Path, count: int) -> dict[str, Any]:
    """The first slice is the warm-up."""
    seen: list[int] = []
    for _ in range(_SLICES):
        _some(server, folder, count // _SLICES)
        seen.append(server.resident())
    print(f"\nMemory: {count} calls, {', '.join(map(_mib, seen))} ({server.name})")
    return verdict(f"x what it had after a tenth, at most {_GROWTH}", seen[-1] / seen[0], _GROWTH)


def _some(server: Server, folder: Path, count: int) -> None:
    checked(server, folder, requests=count, connections=32, stream_every=10, chunks=5, gap=1)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
