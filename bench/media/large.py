"""A file of a gigabyte, sent and read back: what the server holds of it in memory."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.machines import Server
from bench.media import server as ours
from bench.report import verdict

_MOST_MB = 20.0
_WARM_UP = 32 * 2**20


def measure(server: Server, size: int) -> list[dict[str, Any]]:
    """The most that the server's process held meanwhile over what it had before."""
    ours.read_away(server, ours.upload(server, _file("first.bin", _WARM_UP)))
    idle = _memory(server, "VmRSS")
    paths: list[str] = []
    sent = _peak(server, lambda: paths.append(ours.upload(server, _file("large.bin", size))))
    came: list[int] = []
    read = _peak(server, lambda: came.append(ours.read_away(server, paths[0])))
    if came != [size]:
        raise SystemExit(f"{size} bytes were sent, {came[0]} came back.")
    print(f"\n{size / 1e9:g} GB sent in {sent[1]:.1f} s and read back in {read[1]:.1f} s")
    print(f"  the server had {idle / 1e6:.0f} MB before")
    return [
        verdict(f"MB more while it is {what}, at most {_MOST_MB:g}", (most - idle) / 1e6, _MOST_MB)
        for what, (most, _) in (("sent", sent), ("read", read))
    ]


def _peak(server: Server, work: Callable[[], None]) -> tuple[int, float]:
    """Bytes at the highest, by the system's own mark, and the seconds that it took."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    began = time.perf_counter()
    work()
    return _memory(server, "VmHWM"), time.perf_counter() - began


def _memory(server: Server, name: str) -> int:
    """Bytes."""
    told = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(told.partition(f"{name}:")[2].split()[0]) * 1024


def _file(name: str, size: int) -> ours.Part:
    piece = os.urandom(ours.PIECE)

    def pieces() -> Iterable[bytes]:
        for start in range(0, size, len(piece)):
            yield piece[: size - start]

    return ours.Part("file", name, size, pieces)
