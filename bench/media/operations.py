"""What an operation on video or sound takes beside ffmpeg called for the same by hand."""

import random
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.machines import Server
from bench.media import server as ours
from bench.media.made import ffmpeg
from bench.report import Table, verdict

# Where the bare command takes this many seconds the limit is a multiple, else an addition.
_LONG = 5.0
_MOST_TIMES, _MOST_ADDED = 1.1, 0.4
_H264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-pix_fmt", "yuv420p")
_AAC = ("-c:a", "aac", "-b:a", "160k")
_MP4 = ("-movflags", "+faststart")


class Operation(NamedTuple):
    """A call, the words of the command that does the same, and whether its clip is the long one."""

    name: str
    values: dict[str, str]
    words: tuple[str, ...]
    ending: str
    long: bool
    field: str = "video"


OPERATIONS = (
    Operation("ConvertVideo", {"outputFormat": "mkv"}, (*_H264, *_AAC), ".mkv", long=True),
    Operation(
        "ScaleVideo",
        {"width": "640"},
        ("-vf", "scale=640:360", *_H264, *_AAC, *_MP4),
        ".mp4",
        long=True,
    ),
    Operation(
        "TrimVideo",
        {"startTime": "1", "endTime": "4"},
        ("-ss", "1", "-t", "3", *_H264, *_AAC, *_MP4),
        ".mp4",
        long=False,
    ),
    Operation(
        "ConvertAudio",
        {"outputFormat": "mp3"},
        ("-vn", "-c:a", "libmp3lame", "-q:a", "2"),
        ".mp3",
        long=False,
        field="audio",
    ),
)

Times = list[tuple[float, float]]


def measure(
    server: Server, folder: Path, *, short: Path, long: Path, rounds: int
) -> dict[str, Any]:
    """Calls wait for their result, with all that is around it: sent, queued, checked, stored."""
    seen: dict[str, Times] = {each.name: [] for each in OPERATIONS}
    for each in OPERATIONS:
        clip = long if each.long else short
        for _ in range(rounds):
            seen[each.name].append(_both(server, each, clip, folder))
    _show(seen)
    judged = [_judged(name, times) for name, times in seen.items()]
    return {"seconds": seen, "limits": judged}


def _both(server: Server, operation: Operation, clip: Path, folder: Path) -> tuple[float, float]:
    """Seconds of ours and of the bare command, in either order."""
    target = folder / f"bare{operation.ending}"

    def called() -> None:
        part = ours.file_part(operation.field, clip)
        ours.send(server, f"/api/{operation.name}", part, operation.values)

    def bare() -> None:
        ffmpeg("-i", str(clip), *operation.words, str(target))

    took = {work: 0.0 for work in (called, bare)}
    for work in random.sample([called, bare], 2):
        began = time.perf_counter()
        work()
        took[work] = time.perf_counter() - began
    return took[called], took[bare]


def _show(seen: dict[str, Times]) -> None:
    table = Table("Operations on video and sound, both cores", ("s", "bare s", "added s", "x bare"))
    for name, times in seen.items():
        cells = [
            statistics.median(column)
            for column in (
                [ours for ours, _ in times],
                [bare for _, bare in times],
                [ours - bare for ours, bare in times],
                [ours / bare for ours, bare in times],
            )
        ]
        table.add(name, [f"{cell:.2f}" for cell in cells])
    table.show()


def _judged(name: str, times: Times) -> dict[str, Any]:
    if statistics.median(bare for _, bare in times) >= _LONG:
        said, most = f"{name}, at most {_MOST_TIMES:g} x the bare command", _MOST_TIMES
        values = [called / bare for called, bare in times]
    else:
        said, most = f"{name}, s more than the bare command, at most {_MOST_ADDED:g}", _MOST_ADDED
        values = [called - bare for called, bare in times]
    return verdict(said, statistics.median(values), most, (min(values), max(values)))
