"""Small clips made by ffmpeg, and an independent reader of what became of them."""

import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame

from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.programs import Programs, find_programs
from aiserver.transforms.av.requests import Request
from aiserver.transforms.av.run import Produced

FAST_H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")


class Transforming(Protocol):
    """Runs a transform into the test's own folder."""

    def __call__(
        self,
        request: Request,
        media: Path,
        watermark: Path | None = None,
        *,
        report: Callable[[int], None] = ...,
        limits: Limits = ...,
        programs: Programs | None = None,
    ) -> Awaitable[Produced]: ...


@dataclass(frozen=True)
class Seen:
    """What PyAV finds in a file: sizes of its videos, codecs of its tracks, its decoded length."""

    kinds: tuple[str, ...]
    codecs: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    seconds: float


class Clips:
    """Makes each clip once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffmpeg = find_programs().ffmpeg

    def made(self, name: str, *words: str) -> Path:
        path = self.folder / name
        if not path.exists():
            command = (self.ffmpeg, "-v", "error", "-nostdin", "-y", *words, str(path))
            subprocess.run(command, check=True, timeout=60)
        return path

    def moving(self, name: str, *words: str, size: str = "160x90", seconds: float = 1.0) -> Path:
        """A test picture that moves, with a tone."""
        return self.made(
            name,
            *("-f", "lavfi", "-i", f"testsrc=s={size}:r=25:d={seconds}"),
            *("-f", "lavfi", "-i", f"sine=440:d={seconds}"),
            *(words or (*FAST_H264, "-c:a", "aac")),
        )

    def plain(self) -> Path:
        return self.moving("plain.mp4")

    def two_tongued(self) -> Path:
        """One video, two audio tracks."""
        return self.made(
            "two.mkv",
            *("-i", str(self.plain()), "-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy"),
        )

    def silent(self) -> Path:
        return self.made("silent.mp4", "-i", str(self.plain()), "-an", "-c", "copy")

    def turned(self) -> Path:
        """Lies on its side: 160x90 in the file, 90x160 as displayed."""
        return self.made(
            "turned.mp4", "-display_rotation", "90", "-i", str(self.plain()), "-c", "copy"
        )

    def odd(self) -> Path:
        return self.moving("odd.mkv", "-c:v", "ffv1", "-c:a", "pcm_s16le", size="161x91")

    def long(self) -> Path:
        """Takes longer to turn into webm than a test may take, on any machine."""
        part = self.moving("part.mp4", size="640x360", seconds=5.0)
        return self.made("long.mp4", "-stream_loop", "35", "-i", str(part), "-c", "copy")

    def clock(self) -> Path:
        """Six seconds whose frames are as bright as their number, 25 a second, and a beep at 2."""
        return self.made(
            "clock.mp4",
            *("-f", "lavfi", "-i", "nullsrc=s=64x36:r=25:d=6,format=gray,geq=lum=16+1.5*N"),
            *(
                "-f",
                "lavfi",
                "-i",
                "aevalsrc=if(between(t\\,2\\,2.2)\\,sin(6283*t)\\,0):d=6:s=48000",
            ),
            *("-c:v", "libx264", "-preset", "ultrafast", "-crf", "1", "-g", "50"),
            *("-pix_fmt", "yuv420p", "-c:a", "aac"),
        )


def seen(path: Path) -> Seen:
    """Decodes a whole file."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.type in ("video", "audio")]
        kinds = tuple(stream.type for stream in streams)
        codecs = tuple(stream.codec_context.codec.canonical_name for stream in streams)
        sizes = tuple((video.width, video.height) for video in container.streams.video)
        starts: list[float] = []
        ends = dict.fromkeys(kinds, 0.0)
        for frame in _frames(container, streams):
            assert isinstance(frame, VideoFrame | AudioFrame)
            kind = "video" if isinstance(frame, VideoFrame) else "audio"
            # The reader of ASF times only some of the frames.
            at = ends[kind] if frame.time is None else frame.time
            starts.append(at)
            ends[kind] = max(ends[kind], at + _lasts(frame))
    return Seen(kinds=kinds, codecs=codecs, sizes=sizes, seconds=max(ends.values()) - min(starts))


def _frames(container: InputContainer, streams: Sequence[Stream]) -> Iterator[object]:
    for packet in container.demux(*streams):
        # Theora repeats a picture by a packet of no bytes, which the reader takes for a fault.
        if packet.size or packet.pts is None:
            yield from packet.decode()


def pictures(path: Path) -> Iterator[VideoFrame]:
    """The frames of a file's first video."""
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def grey(frame: VideoFrame, x: int, y: int) -> int:
    """How bright a pixel is."""
    plane = frame.reformat(format="gray").planes[0]
    return memoryview(plane)[y * plane.line_size + x]


def first_sound(path: Path) -> float:
    """When the first tone begins, in seconds."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            assert frame.time is not None
            loud = abs(frame.to_ndarray()[0]) > 0.1
            if loud.any():
                return frame.time + int(loud.argmax()) / frame.sample_rate
    raise AssertionError("there is no sound")


def _lasts(frame: VideoFrame | AudioFrame) -> float:
    if isinstance(frame, AudioFrame):
        return frame.samples / frame.sample_rate
    return 0.04
