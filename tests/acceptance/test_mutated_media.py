"""No media file is a server error: spoilt ones of every format, each through one operation."""

import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from acceptance.running import RunningServer
from aiserver.kit.imaging.pool import MOST_CHILDREN
from aiserver.kit.upstream import Target, UpstreamPool
from clips import Clips
from fakes.painting import form
from media import Corpus, Medium, corpus, spoilt

SECRET = "test-secret-0123456789-0123456789"
MIB = 1 << 20
# What is held against the server; the table at the end says how near it came.
LONGEST_SECONDS = 30.0
MOST_GROWTH, MOST_SERVER = 64 * MIB, 400 * MIB
MOST_CHILD = {"imaging": 2048 * MIB, "ffmpeg": 1536 * MIB, "reader": 512 * MIB}
# Calls to ffmpeg take some hundred times as long as those to libvips.
AV_SHARE = 0.08
_AT_ONCE, _SETTLED, _SAID, _ENOUGH = 4, 0.1, 2000, 10
_PICTURE_FORMATS = ("jpg", "png", "gif", "bmp", "tiff", "webp")
_VIDEO_FORMATS = ("mp4", "mov", "webm", "mkv", "avi", "wmv", "mpeg", "ogg")
_AUDIO_FORMATS = ("mp3", "wav", "aac", "flac", "ogg", "m4a", "wma")
_POSITIONS = ("TopLeft", "TopRight", "BottomLeft", "BottomRight", "Center")
_ENDINGS = ("jpg", "png", "mp4", "mp3", "exe", "svg", "m3u8", "")
_FAILED_LINE = re.compile(r'"level": ?"(error|critical)"|^Traceback')
# How refusals are told apart in the table.
_REFUSALS = {
    "damaged": re.compile("damaged|cut short|cut off"),
    "not taken": re.compile("no image|not accepted|cannot be read|no video|no audio|not a picture"),
    "too large": re.compile("more than|at most|too large"),
    "no such part": re.compile("Invalid|differ in size|smaller"),
}
Parts = dict[str, str | tuple[str, bytes]]


class Ask(NamedTuple):
    """One request: its operation and parts; `name` is the kind of file that was spoilt."""

    operation: str
    parts: Parts
    name: str


class Asks:
    """`[number]` is a request; the same seed gives the same bytes."""

    def __init__(self, files: Corpus, *, seed: int) -> None:
        self._files = files
        self._all = [*files.pictures, *files.videos, *files.audios]
        self._seed = seed

    def __getitem__(self, number: int) -> Ask:
        rng = random.Random(f"{self._seed}/{number}")
        kinds, shares = (
            ("picture", "video", "audio"),
            (1 - AV_SHARE, AV_SHARE * 0.7, AV_SHARE * 0.3),
        )
        kind = rng.choices(kinds, shares)[0]
        of_kind = {"picture": self._files.pictures, "video": self._files.videos}
        medium = rng.choice(of_kind.get(kind, self._files.audios))
        # A file of another kind may be sent: a picture as a video, or a sound as a picture.
        if rng.random() < 0.02:
            medium = rng.choice(self._all)
        others = self._all if rng.random() < 0.3 else of_kind.get(kind, self._files.audios)
        ending = medium.ending if rng.random() < 0.85 else rng.choice(_ENDINGS)
        file = (f"file.{ending}", spoilt(rng, medium, others))
        ways = {"picture": self._picture, "video": self._video, "audio": self._audio}
        operation, parts = ways[kind](rng, file)
        return Ask(operation, parts, medium.name)

    def _picture(self, rng: random.Random, file: tuple[str, bytes]) -> tuple[str, Parts]:
        into = "avif" if rng.random() < 0.02 else rng.choice(_PICTURE_FORMATS)

        def side() -> str:
            return str(rng.randint(1, 60))

        match rng.randrange(8):
            case 0 | 1 | 2:
                return "ConvertImage", {"image": file, "outputFormat": into}
            case 3 | 4:
                sides = rng.choice((("width",), ("height",), ("width", "height")))
                kept: Parts = {} if rng.random() < 0.5 else {"outputFormat": into}
                return "ScaleImage", {"image": file, **kept, **{one: side() for one in sides}}
            case 5:
                window: Parts = {"x": "1", "y": "2", "width": side(), "height": side()}
                return "CropImage", {"image": file, **window}
            case 6:
                marked: Parts = {"image": file, "watermark": self._sound(self._files.pictures, rng)}
            case _:
                marked = {"image": self._sound(self._files.pictures, rng), "watermark": file}
        tiled = rng.choice(("true", "false"))
        position, kind = rng.choice(_POSITIONS), {"outputFormat": into}
        return "WatermarkImage", {**marked, **kind, "tiled": tiled, "position": position}

    def _video(self, rng: random.Random, file: tuple[str, bytes]) -> tuple[str, Parts]:
        into = rng.choice(_VIDEO_FORMATS)
        match rng.randrange(8):
            case 0 | 1:
                return "ConvertVideo", {"video": file, "outputFormat": into}
            case 2:
                return "ScaleVideo", {"video": file, "width": str(rng.randint(1, 90))}
            case 3:
                window: Parts = {"x": "3", "y": "1", "width": "20", "height": "10"}
                return "CropVideo", {"video": file, **window, "outputFormat": into}
            case 4 | 5:
                fast = rng.choice(("true", "false"))
                ends: Parts = {} if rng.random() < 0.3 else {"endTime": "0.25"}
                return "TrimVideo", {"video": file, "startTime": "0.08", "fast": fast, **ends}
            case 6:
                return "ConvertAudio", {"audio": file, "outputFormat": rng.choice(_AUDIO_FORMATS)}
            case _:
                picture = rng.choice(self._files.pictures)
                spoil = rng.random() < 0.5
                mark = spoilt(rng, picture, self._files.pictures) if spoil else picture.data
                video = self._sound(self._files.videos, rng) if spoil else file
                parts: Parts = {"video": video, "watermark": (f"mark.{picture.ending}", mark)}
                return "WatermarkVideo", parts

    def _audio(self, rng: random.Random, file: tuple[str, bytes]) -> tuple[str, Parts]:
        return "ConvertAudio", {"audio": file, "outputFormat": rng.choice(_AUDIO_FORMATS)}

    def _sound(self, among: list[Medium], rng: random.Random) -> tuple[str, bytes]:
        chosen = rng.choice(among)
        return f"sound.{chosen.ending}", chosen.data


class Watched:
    """The memory of the server and of every child that was seen beside it, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.seen: set[tuple[int, str]] = set()
        self.highest: dict[str, int] = {}

    async def keep(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.05)

    def look(self) -> None:
        for pid in self.children():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                kind = _kind(words)
                held = _memory(pid, "VmHWM")
                self.highest[kind] = max(self.highest.get(kind, 0), held)
                self.seen.add((pid, _began(pid)))

    def server(self, field: str = "VmRSS") -> int:
        return _memory(self._pid, field)

    def children(self) -> list[int]:
        """Of the server, and theirs."""
        found, look_at = [], [self._pid]
        parents = dict(_parents())
        while look_at:
            parent = look_at.pop()
            below = [pid for pid, above in parents.items() if above == parent]
            found += below
            look_at += below
        return found

    def living(self) -> list[int]:
        """Those that were seen and are there still."""
        left: list[int] = []
        for pid, began in self.seen:
            with suppress(OSError):
                if _began(pid) == began:
                    left.append(pid)
        return left


def _kind(words: list[bytes]) -> str:
    if b"aiserver.kit.imaging.child" in words:
        return "imaging"
    return "reader" if b"aiserver.transforms.av.reader" in words else "ffmpeg"


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit():
                yield int(entry.name), int(_stat(int(entry.name))[1])


def _stat(pid: int) -> list[str]:
    """From the state on; a program's name may have spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _began(pid: int) -> str:
    return _stat(pid)[19]


def _memory(pid: int, field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


class Trial:
    """Sends files by number, counts what became of them, keeps what failed."""

    def __init__(self, server: RunningServer, asks: Asks, say: Callable[[str], None]) -> None:
        self.watched = Watched(server.process.pid)
        self.counts: dict[str, Counter[str]] = {}
        self.times: list[tuple[float, int, str]] = []
        self.failures: list[str] = []
        self.growth = 0
        self._server = server
        self._asks = asks
        self._say = say
        self._pool = UpstreamPool()

    async def run(self, count: int) -> None:
        began, settled = time.monotonic(), 0
        watching = asyncio.ensure_future(self.watched.keep())
        try:
            await self._all(iter(range(settled_at := max(1, int(count * _SETTLED)))))
            settled = self.watched.server()
            for first in range(settled_at, count, _SAID):
                last = min(first + _SAID, count)
                await self._all(iter(range(first, last)))
                memory = f"{self.watched.server() // MIB} MB"
                self._say(f"{last} files in {time.monotonic() - began:.0f} s, server {memory}")
            self.growth = self.watched.server() - settled
        finally:
            watching.cancel()

    async def _all(self, numbers: Iterator[int]) -> None:
        await asyncio.gather(*(self._take(numbers) for _ in range(_AT_ONCE)))

    async def _take(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            if len(self.failures) >= _ENOUGH:
                return
            ask = self._asks[number]
            began = time.monotonic()
            status, body = await self.post(ask.operation, ask.parts)
            self.times.append((time.monotonic() - began, number, f"{ask.operation} {ask.name}"))
            outcome, wrong = _outcome(status, body)
            self.counts.setdefault(ask.name, Counter())[outcome] += 1
            if wrong:
                self.failures.append(f"file {number} ({ask.operation}, {ask.name}): {body[:600]!r}")

    async def post(self, operation: str, parts: Parts) -> tuple[int, bytes]:
        body, kind = form(**parts)
        headers = {**kind, "authorization": f"Bearer {SECRET}"}
        target = Target.parse(f"{self._server.base_url}/api/{operation}")
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            async with (
                asyncio.timeout(LONGEST_SECONDS),
                await self._pool.send(target, method=b"POST", headers=sent, body=body) as response,
            ):
                return response.status, await response.read(MIB)
        except Exception as error:
            # Whatever it is, the server did not answer; the next file gets another connection.
            return 0, f"{type(error).__name__}: {error}".encode()

    async def close(self) -> None:
        await self._pool.aclose()

    def table(self) -> str:
        outcomes = sorted({name for row in self.counts.values() for name in row})
        lines = [["", *outcomes]]
        total: Counter[str] = Counter()
        for name, row in sorted(self.counts.items()):
            lines.append([name, *(str(row[each] or "") for each in outcomes)])
            total += row
        lines.append(["all", *(str(total[each]) for each in outcomes)])
        widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
        shown = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        ]
        slowest = [f"{took:.1f} s: file {n}, {what}" for took, n, what in sorted(self.times)[-3:]]
        memory = {name: f"{held // MIB} MB" for name, held in self.watched.highest.items()}
        server = f"{self.watched.server('VmHWM') // MIB} MB at most, grew {self.growth // MIB} MB"
        return "\n".join(
            [*shown, f"slowest {'; '.join(slowest)}", f"server {server}; children at most {memory}"]
        )


def _outcome(status: int, body: bytes) -> tuple[str, bool]:
    """What to count an answer as, and whether it is none that a file may have."""
    if status == 200:
        return "done", b'"results"' not in body
    try:
        message = json.loads(body)["responseStatus"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"{status} without a message", True
    if not 400 <= status < 500:
        return str(status), True
    named = next((name for name, words in _REFUSALS.items() if words.search(message)), "other")
    return named, not message or "/scratch/" in message


async def tried(
    data: Path, migrated: bytes, *, seed: int, count: int, say: Callable[[str], None]
) -> Trial:
    data.mkdir()
    (data / "app.db").write_bytes(migrated)
    (data.parent / "clips").mkdir()
    files = corpus(Clips(data.parent / "clips"))
    environment = {"AUTH_SECRET": SECRET, "LOCAL_MODELS": "false", "LOG_LEVEL": "warning"}
    server = await asyncio.to_thread(RunningServer.start, data, environment)
    trial = Trial(server, Asks(files, seed=seed), say)
    try:
        await trial.run(count)
        say(trial.table())
        told = [f"seed {seed}:", *trial.failures, *_complaints(server)]
        assert not trial.failures, "\n".join(told)
        await _still_well(trial, files)
        assert not [path for path in (data / "scratch").glob("*/*") if path.is_dir()]
        assert len(trial.watched.children()) <= MOST_CHILDREN
        _bounded(trial)
    finally:
        await trial.close()
        await asyncio.to_thread(server.stop)
    assert trial.watched.living() == []
    assert list((data / "scratch").glob("*/*")) == []
    assert not _complaints(server), "\n".join(_complaints(server))
    return trial


def _complaints(server: RunningServer) -> list[str]:
    """The server's own errors in its log."""
    lines = server.printed().splitlines()
    return [line for line in lines if _FAILED_LINE.search(line)][:20]


async def _still_well(trial: Trial, files: Corpus) -> None:
    sound: dict[str, Parts] = {
        "ConvertImage": {"image": ("a.png", files.pictures[0].data), "outputFormat": "png"},
        "ConvertVideo": {"video": ("a.mp4", files.videos[0].data), "outputFormat": "mkv"},
        "ConvertAudio": {"audio": ("a.mp3", files.audios[0].data), "outputFormat": "wav"},
    }
    for operation, parts in sound.items():
        status, body = await trial.post(operation, parts)
        assert status == 200, body


def _bounded(trial: Trial) -> None:
    assert trial.growth <= MOST_GROWTH
    assert trial.watched.server("VmHWM") <= MOST_SERVER
    for kind, held in trial.watched.highest.items():
        assert held <= MOST_CHILD[kind], f"{kind} held {held // MIB} MB"
    assert max(trial.times)[0] <= LONGEST_SECONDS


async def test_spoilt_files_are_no_server_errors(tmp_path: Path, migrated: bytes) -> None:
    trial = await tried(tmp_path / "data", migrated, seed=7, count=60, say=lambda _: None)
    assert {"done", "damaged"} <= {name for row in trial.counts.values() for name in row}


@pytest.mark.long
async def test_many_spoilt_files_are_no_server_errors(
    tmp_path: Path, migrated: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    # MUTATION_SEED=... sends the files of a failure again.
    seed = int(os.environ.get("MUTATION_SEED") or random.randrange(2**32))

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    say(f"\nseed {seed}")
    await tried(tmp_path / "data", migrated, seed=seed, count=20_000, say=say)
