"""The main of a child that is told of a file, reads its headers with PyAV and prints what it found.

Nothing else imports PyAV: its libraries are under the GPL and read files that nobody vouches for.
"""

import sys
import time
from pathlib import Path
from typing import cast

import av
import msgspec
from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from aiserver.transforms.av.accepted import UNTIMED
from aiserver.transforms.av.found import Found, Track

COVER = Disposition.attached_pic | Disposition.timed_thumbnails
MICROSECONDS = 1_000_000
# Files joined end to end begin to count anew; ffmpeg closes such a gap.
JUMP_SECONDS = 10.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to read: how libavformat is bounded, and for how many seconds packets are counted."""

    path: str
    options: dict[str, str]
    counting: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, or why the file cannot be read."""

    found: Found | None = None
    refused: str = ""


def main(order: Order) -> Answer:
    """Reads one file."""
    try:
        with av.open(
            f"file:{order.path}", "r", options=order.options, metadata_errors="replace"
        ) as container:
            return Answer(found=read(container, order))
    except (FFmpegError, ValueError, MemoryError) as error:
        return Answer(refused=f"{type(error).__name__}: {error}"[:500])


def read(container: InputContainer, order: Order) -> Found:
    """Everything that a plan needs to know of a file."""
    name = container.format.name.partition(",")[0]
    streams = [s for s in container.streams if s.type in ("video", "audio")]
    streams = [s for s in streams if not s.disposition & COVER]
    rotations = {s.index: rotation(container, s) for s in streams if isinstance(s, VideoStream)}
    duration = None if container.duration is None else container.duration / MICROSECONDS
    exact = duration is not None and name not in UNTIMED
    ends = {s.index: end_of(s, container) for s in streams}
    if not exact and streams:
        counted = count(container, streams, order.counting)
        if counted is not None:
            ends, exact = counted
            duration = max(ends.values())
    return Found(
        container=name,
        brand=container.metadata.get("major_brand", "").strip(),
        duration=duration,
        exact=exact,
        size=Path(order.path).stat().st_size,
        tracks=tuple(track(s, rotations.get(s.index, 0), ends.get(s.index)) for s in streams),
    )


def track(stream: Stream, rotation: int, end: float | None) -> Track:
    """One stream as a track."""
    # None for a codec that no decoder is known for, whatever the types say.
    context = cast("CodecContext | None", stream.codec_context)
    if context is None:
        return Track(index=stream.index, kind=stream.type, codec="")
    codec = context.codec.canonical_name
    if isinstance(stream, AudioStream):
        return Track(
            index=stream.index,
            kind="audio",
            codec=codec,
            end=end,
            channels=stream.channels,
            sample_rate=stream.sample_rate or 0,
        )
    assert isinstance(stream, VideoStream)
    size = (stream.width, stream.height)
    aspect = stream.sample_aspect_ratio
    turned = rotation % 180 != 0
    if aspect and turned:
        aspect = 1 / aspect
    rate = stream.average_rate or stream.guessed_rate
    return Track(
        index=stream.index,
        kind="video",
        codec=codec,
        end=end,
        width=size[turned],
        height=size[not turned],
        rotation=rotation,
        aspect=str(aspect) if aspect else "1/1",
        rate=str(rate) if rate else None,
    )


def rotation(container: InputContainer, stream: VideoStream) -> int:
    """Degrees that the first frame is to be turned by; 0 where it cannot be decoded."""
    try:
        frame = next(container.decode(stream), None)
    except (FFmpegError, ValueError):
        return 0
    finally:
        rewind(container)
    return 0 if frame is None else int(frame.rotation)


def end_of(stream: Stream, container: InputContainer) -> float | None:
    """Seconds from the file's start to the end of a stream, as its headers have it."""
    begin = (container.start_time or 0) / MICROSECONDS
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - begin
    return clock(stream.metadata.get("DURATION", ""))


def clock(text: str) -> float | None:
    """Matroska's tag of a track: hours, minutes and seconds."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def count(
    container: InputContainer, streams: list[Stream], seconds: float
) -> tuple[dict[int, float], bool] | None:
    """The end of every stream by its packets, and whether their times run without a jump.

    None when that takes too long or fails midway.
    """
    rewind(container)
    until = time.monotonic() + seconds
    first: float | None = None
    ends: dict[int, float] = {}
    clocks: dict[int, float] = {}
    steady = True
    try:
        for number, packet in enumerate(container.demux(streams)):
            if number % 256 == 0 and time.monotonic() > until:
                return None
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None:
                continue
            starts = float(at * packet.time_base)
            ends_at = starts + float((packet.duration or 0) * packet.time_base)
            first = starts if first is None else min(first, starts)
            index = packet.stream.index
            if packet.dts is not None:
                now = float(packet.dts * packet.time_base)
                steady = steady and 0 <= now - clocks.get(index, now) < JUMP_SECONDS
                clocks[index] = now
            ends[index] = max(ends.get(index, ends_at), ends_at)
    except (FFmpegError, ValueError):
        return None
    begin = first or 0.0
    return ({index: end - begin for index, end in ends.items()}, steady) if ends else None


def rewind(container: InputContainer) -> None:
    """To the start; a file that cannot seek is counted from where it is."""
    try:
        container.seek(0)
    except (FFmpegError, ValueError):
        return


if __name__ == "__main__":
    given = sys.stdin.buffer.read()
    sys.stdout.buffer.write(msgspec.json.encode(main(msgspec.json.decode(given, type=Order))))
