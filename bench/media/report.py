"""All figures of pictures, video, sound and large files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machines import install
from bench.media import large, made, once, operations, variants
from bench.media.server import EVERY_CORE, files_server


@dataclass(frozen=True)
class Setting:
    """How much to run, and beside what; `clip` in seconds, `large` in bytes."""

    rounds: int
    seconds: float
    peers: Sequence[str]
    clip: int
    large: int


def run(setting: Setting, folder: Path) -> dict[str, Any]:
    install("nginx", "wrk")
    sources = folder / "sources"
    sources.mkdir()
    picture = made.picture(sources)
    short, long = made.clip(sources, min(5, setting.clip)), made.clip(sources, setting.clip)
    done: dict[str, Any] = {
        "new": variants.new(
            folder, picture, setting.peers, rounds=setting.rounds, seconds=setting.seconds
        ),
        "again": variants.again(folder, picture, rounds=setting.rounds, seconds=setting.seconds),
    }
    server = files_server(folder, core=EVERY_CORE)
    try:
        # First, since a disk that still writes the large file would be in its way.
        done["operations"] = operations.measure(
            server, folder, short=short, long=long, rounds=(setting.rounds + 1) // 2
        )
        done["once"] = once.measure(server, picture)
        done["large"] = large.measure(server, setting.large)
    finally:
        server.stop()
    return done
