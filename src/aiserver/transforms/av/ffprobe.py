"""What the system's ffprobe prints, read."""

from pathlib import Path
from typing import Any

import msgspec

from aiserver.transforms.av.accepted import UNTIMED
from aiserver.transforms.av.found import Found, Track
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.parts import guarded


class Stream(msgspec.Struct, kw_only=True):
    """One stream, as ffprobe prints it."""

    index: int
    codec_type: str = ""
    codec_name: str = ""
    width: int = 0
    height: int = 0
    sample_aspect_ratio: str = ""
    avg_frame_rate: str = ""
    r_frame_rate: str = ""
    channels: int = 0
    sample_rate: str = "0"
    start_time: str = ""
    duration: str = ""
    disposition: dict[str, int] = {}
    tags: dict[str, Any] = {}
    side_data_list: list[dict[str, Any]] = []


class Format(msgspec.Struct, kw_only=True):
    """The file itself, as ffprobe prints it."""

    format_name: str
    start_time: str = ""
    duration: str = ""
    tags: dict[str, Any] = {}


class Printed(msgspec.Struct, kw_only=True):
    """All of it."""

    format: Format
    streams: list[Stream] = []


def arguments(path: Path, formats: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """What to call it with."""
    bounds = guarded(formats, limits)
    words = [word for key, value in bounds.items() for word in (f"-{key}", value)]
    shown = ("-of", "json", "-show_format", "-show_streams")
    return ("-v", "error", "-hide_banner", *words, *shown, "-i", f"file:{path}")


def read(printed: bytes, size: int) -> Found:
    """The file's tracks. Raises msgspec.DecodeError."""
    whole = msgspec.json.decode(printed, type=Printed)
    name = whole.format.format_name.partition(",")[0]
    begin = _number(whole.format.start_time) or 0.0
    duration = _number(whole.format.duration)
    return Found(
        container=name,
        brand=str(whole.format.tags.get("major_brand", "")).strip(),
        duration=duration,
        exact=duration is not None and name not in UNTIMED,
        size=size,
        tracks=tuple(_track(stream, begin) for stream in whole.streams if _is_track(stream)),
    )


def _is_track(stream: Stream) -> bool:
    flags = stream.disposition
    cover = flags.get("attached_pic", 0) or flags.get("timed_thumbnails", 0)
    return stream.codec_type in ("video", "audio") and not cover


def _track(stream: Stream, begin: float) -> Track:
    rotation = _rotation(stream)
    turned = rotation % 180 != 0
    size = (stream.width, stream.height)
    aspect = stream.sample_aspect_ratio.replace(":", "/") or "1/1"
    if turned:
        aspect = "/".join(reversed(aspect.split("/")))
    rates = (stream.avg_frame_rate, stream.r_frame_rate)
    return Track(
        index=stream.index,
        kind=stream.codec_type,
        codec=stream.codec_name,
        end=_end(stream, begin),
        width=size[turned],
        height=size[not turned],
        rotation=rotation,
        aspect=aspect,
        rate=next((rate for rate in rates if rate and not rate.startswith("0/")), None),
        channels=stream.channels,
        sample_rate=int(_number(stream.sample_rate) or 0),
    )


def _rotation(stream: Stream) -> int:
    turns = [data["rotation"] for data in stream.side_data_list if "rotation" in data]
    return int(turns[0]) if turns else int(_number(str(stream.tags.get("rotate", ""))) or 0)


def _end(stream: Stream, begin: float) -> float | None:
    duration = _number(stream.duration)
    if duration is not None:
        return (_number(stream.start_time) or 0.0) + duration - begin
    parts = str(stream.tags.get("DURATION", "")).split(":")
    values = [_number(part) for part in parts]
    if len(values) != 3 or values[0] is None or values[1] is None or values[2] is None:
        return None
    return values[0] * 3600 + values[1] * 60 + values[2]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
