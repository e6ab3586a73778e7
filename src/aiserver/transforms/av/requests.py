"""What can be asked of a media file, and what is wrong with that whatever the file is."""

from enum import Enum
from typing import TypeVar

import msgspec

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.times import end_seconds, start_seconds

WIDEST = 7680
HIGHEST = 4320


class VideoFormat(Enum):
    """The containers that videos are written in."""

    MP4 = "mp4"
    MOV = "mov"
    WEBM = "webm"
    MKV = "mkv"
    AVI = "avi"
    WMV = "wmv"
    MPEG = "mpeg"
    OGG = "ogg"


class AudioFormat(Enum):
    """The formats that audio is written in."""

    MP3 = "mp3"
    WAV = "wav"
    AAC = "aac"
    FLAC = "flac"
    OGG = "ogg"
    M4A = "m4a"
    WMA = "wma"


class Position(Enum):
    """Where a watermark lies."""

    TOP_LEFT = "TopLeft"
    TOP_RIGHT = "TopRight"
    BOTTOM_LEFT = "BottomLeft"
    BOTTOM_RIGHT = "BottomRight"
    CENTER = "Center"


class ConvertVideo(msgspec.Struct, frozen=True, kw_only=True):
    """Every video and audio track into another container."""

    into: VideoFormat


class CropVideo(msgspec.Struct, frozen=True, kw_only=True):
    """A window of the displayed frame, in pixels; one that sticks out is moved inside."""

    x: int
    y: int
    width: int
    height: int
    into: VideoFormat | None = VideoFormat.MP4


class ScaleVideo(msgspec.Struct, frozen=True, kw_only=True):
    """Another frame size in pixels; a side that is not given keeps the displayed ratio."""

    width: int | None = None
    height: int | None = None
    into: VideoFormat | None = None


class TrimVideo(msgspec.Struct, frozen=True, kw_only=True):
    """From one time to another, exact to the frame.

    `fast` copies the tracks of a file that has an index: from the keyframe before the start.
    """

    start: str
    end: str | None = None
    fast: bool = False
    into: VideoFormat | None = None


class TrimAudio(msgspec.Struct, frozen=True, kw_only=True):
    """The audio of a file from one time to another, exact to the sample."""

    start: str
    end: str | None = None
    into: AudioFormat | None = None


class WatermarkVideo(msgspec.Struct, frozen=True, kw_only=True):
    """A picture over the video: `scale` of its own size, `opacity` 0 to 1, `margin` in pixels."""

    position: Position = Position.BOTTOM_RIGHT
    scale: float = 0.2
    opacity: float = 1.0
    margin: int = 10
    into: VideoFormat | None = None


class ConvertAudio(msgspec.Struct, frozen=True, kw_only=True):
    """The audio of a file into another format."""

    into: AudioFormat


VideoRequest = ConvertVideo | CropVideo | ScaleVideo | TrimVideo | WatermarkVideo
AudioRequest = ConvertAudio | TrimAudio
Request = VideoRequest | AudioRequest
Format = TypeVar("Format", VideoFormat, AudioFormat)


def format_named(kind: type[Format], name: str | None) -> Format:
    """The format of that name, in any case. Raises InvalidRequest."""
    if not name:
        raise InvalidRequest("No output format provided", param="outputFormat")
    for member in kind:
        if member.value == name.lower():
            return member
    known = ", ".join(member.value for member in kind)
    message = f"Invalid output format: {name[:40]!r} is not one of {known}"
    raise InvalidRequest(message, param="outputFormat")


def check(request: Request) -> None:
    """Raises InvalidRequest for what is wrong whatever the file is."""
    match request:
        case CropVideo():
            if min(request.x, request.y) < 0 or min(request.width, request.height) < 1:
                raise InvalidRequest(
                    "Invalid crop dimensions: x and y are 0 or more, width and height 1 or more"
                )
        case ScaleVideo():
            _check_scale(request)
        case TrimVideo() | TrimAudio():
            _check_times(request)
        case WatermarkVideo():
            _check_watermark(request)
        case ConvertVideo() | ConvertAudio():
            return


def _check_scale(request: ScaleVideo) -> None:
    if request.width is None and request.height is None:
        raise InvalidRequest("Invalid scale dimensions: give a width, a height or both")
    width, height = request.width, request.height
    if not 1 <= (1 if width is None else width) <= WIDEST:
        raise InvalidRequest(f"Invalid scale dimensions: width is 1 to {WIDEST}", param="width")
    if not 1 <= (1 if height is None else height) <= HIGHEST:
        raise InvalidRequest(f"Invalid scale dimensions: height is 1 to {HIGHEST}", param="height")


def _check_times(request: TrimVideo | TrimAudio) -> None:
    start, end = start_seconds(request.start), end_seconds(request.end)
    if end is not None and end <= start:
        raise InvalidRequest("Invalid end time: it must be after the start time", param="endTime")
    if isinstance(request, TrimVideo) and request.fast and request.into is not None:
        raise InvalidRequest("A fast trim keeps the format", param="outputFormat")


def _check_watermark(request: WatermarkVideo) -> None:
    if not 0.0 < request.scale <= 10.0:
        raise InvalidRequest("Invalid watermark scale: it is above 0 and at most 10")
    if not 0.0 <= request.opacity <= 1.0:
        raise InvalidRequest("Invalid watermark opacity: it is 0 to 1")
    if not 0 <= request.margin <= WIDEST:
        raise InvalidRequest(f"Invalid watermark margin: it is 0 to {WIDEST} pixels")
