"""The pieces that commands are made of; a file's name only ever stands behind `file:`."""

from pathlib import Path

import msgspec

from aiserver.transforms.av import accepted, frames
from aiserver.transforms.av.containers import AudioCodec, Container, VideoCodec
from aiserver.transforms.av.found import Found, Track
from aiserver.transforms.av.limits import Limits

GLOBAL = (
    *("-nostdin", "-hide_banner", "-v", "warning", "-nostats", "-y"),
    *("-progress", "pipe:1", "-stats_period", "0.5"),
)
LAYOUTS = ("mono", "stereo", "3.0", "quad", "5.0", "5.1", "6.1", "7.1")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A file and what it holds."""

    path: Path
    found: Found


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the result must hold: sizes as displayed, seconds at least and at most.

    None where nobody can say.
    """

    videos: tuple[tuple[int, int], ...] = ()
    audios: int = 0
    least: float | None = None
    most: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ffmpeg, the file they write, and how long it will play, in seconds."""

    arguments: tuple[str, ...]
    target: Path
    container: Container
    expected: Expected
    length: float | None


def finish(
    *,
    before: tuple[str, ...],
    middle: tuple[str, ...],
    container: Container,
    folder: Path,
    expected: Expected,
    length: float | None,
) -> Plan:
    """The whole command, its result in the folder."""
    target = folder.absolute() / f"result{container.suffix}"
    arguments = (*GLOBAL, *before, *middle, "-dn", "-sn", *container.muxer, f"file:{target}")
    return Plan(
        arguments=arguments, target=target, container=container, expected=expected, length=length
    )


def guarded(formats: tuple[str, ...], limits: Limits) -> dict[str, str]:
    """Options that keep an input from naming other files or hosts, and from growing too large."""
    return {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(formats),
        "codec_whitelist": accepted.decoders(),
        "max_streams": str(4 * limits.tracks),
        "max_pixels": str(limits.pixels),
    }


def opening(source: Source, limits: Limits, *, at: float = 0.0) -> tuple[str, ...]:
    """One input, read as what it was found to be, from a time on where it has an index."""
    name = source.found.container
    options = [
        word for key, value in guarded((name,), limits).items() for word in (f"-{key}", value)
    ]
    seek = ("-ss", seconds(at)) if at and name not in accepted.UNINDEXED else ()
    threads = ("-threads", str(limits.threads))
    return (*seek, *threads, *options, "-f", name, "-i", f"file:{source.path.absolute()}")


def window_of_time(source: Source, start: float, length: float | None) -> tuple[str, ...]:
    """Options of the output: where to begin if the input cannot jump there, and how long."""
    late = source.found.container in accepted.UNINDEXED
    return exact_time(start if late else 0.0, length)


def exact_time(start: float, length: float | None) -> tuple[str, ...]:
    """Options of the output: all before is decoded too, since a jump may land between samples."""
    begin = ("-ss", seconds(start)) if start else ()
    return (*begin, *(() if length is None else ("-t", seconds(length))))


def cropped(video: Track, size: tuple[int, int], at: tuple[int, int]) -> tuple[str, ...]:
    """Filters to a window; the first scaling holds the size where it changes on the way."""
    steady = f"scale={video.width}:{video.height}"
    if size == (video.width, video.height):
        return (steady,)
    if size[0] > video.width or size[1] > video.height:
        return (f"scale={size[0]}:{size[1]}",)
    return (steady, f"crop={size[0]}:{size[1]}:{at[0]}:{at[1]}:exact=1")


def first_video(video: Track, steps: tuple[str, ...]) -> tuple[str, ...]:
    """The video that a request is about."""
    return ("-map", f"0:{video.index}", "-filter:v:0", ",".join(steps))


def overlay(
    video: Track,
    picture: Track,
    steps: tuple[str, ...],
    place: tuple[int, int, int, int],
    opacity: float,
) -> tuple[str, ...]:
    """The video with a picture over it for its whole length."""
    wide, high, x, y = place
    graph = (
        f"[0:{video.index}]{','.join(steps)}[main];"
        f"[1:{picture.index}]trim=end_frame=1,format=rgba,scale={wide}:{high},"
        f"colorchannelmixer=aa={opacity:.4f}[mark];"
        f"[main][mark]overlay={x}:{y}:eof_action=repeat[shown]"
    )
    return ("-filter_complex", graph, "-map", "[shown]")


def other_videos(videos: tuple[Track, ...], codec: VideoCodec) -> tuple[str, ...]:
    """Further video tracks, as they are."""
    words: list[str] = []
    for number, video in enumerate(videos, start=1):
        steps = cropped(video, frames.encodable(video.width, video.height, codec), (0, 0))
        words += ["-map", f"0:{video.index}", f"-filter:v:{number}", ",".join(steps)]
    return tuple(words)


def rates(videos: tuple[Track, ...], codec: VideoCodec, limits: Limits) -> tuple[str, ...]:
    """Frame rates, where the container or a limit asks for one."""
    words: list[str] = ["-threads", str(limits.threads)]
    for number, video in enumerate(videos):
        if (chosen := frames.rate(video, codec, limits)) is not None:
            words += [f"-r:v:{number}", chosen]
    return tuple(words)


def audio(tracks: tuple[Track, ...], container: Container) -> tuple[str, ...]:
    """Audio tracks in the container's codec."""
    words: list[str] = []
    codec = container.audio
    for number, track in enumerate(tracks):
        words += ["-map", f"0:{track.index}", *_fitting(track, number, codec)]
    return (*words, *codec.arguments) if tracks else ()


def _fitting(track: Track, number: int, codec: AudioCodec) -> list[str]:
    words: list[str] = []
    if track.channels > 2 and codec.named_layouts:
        layouts = "|".join(LAYOUTS[: codec.channels])
        words += [f"-filter:a:{number}", f"aformat=channel_layouts={layouts}"]
    elif track.channels > codec.channels:
        words += [f"-ac:a:{number}", str(codec.channels)]
    if codec.sample_rates and track.sample_rate not in codec.sample_rates:
        words += [f"-ar:a:{number}", str(codec.sample_rates[-1])]
    return words


def seconds(value: float) -> str:
    """To the microsecond, as ffmpeg reads it."""
    return f"{value:.6f}"
