"""Sizes, windows and rates of frames: arithmetic only."""

from fractions import Fraction

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.containers import VideoCodec
from aiserver.transforms.av.errors import MediaRefused
from aiserver.transforms.av.found import Track
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.requests import (
    HIGHEST,
    WIDEST,
    CropVideo,
    Position,
    ScaleVideo,
    WatermarkVideo,
)

# MPEG-4 part 2 counts a second in at most so many ticks.
MOST_TICKS = 65535
COMMON_RATE = Fraction(25)


def encodable(width: int, height: int, codec: VideoCodec) -> tuple[int, int]:
    """The nearest size, not above this one where that can be, that the codec takes."""
    step = 2 if codec.even else 1
    return max(codec.least, width - width % step), max(codec.least, height - height % step)


def window(request: CropVideo, video: Track, codec: VideoCodec) -> tuple[int, int, int, int]:
    """Width, height, x and y of the window, moved inside the frame. Raises InvalidRequest."""
    if request.width > video.width or request.height > video.height:
        raise InvalidRequest(
            f"Invalid crop dimensions: {request.width}x{request.height} is larger than the "
            f"video's {video.width}x{video.height}"
        )
    width, height = encodable(request.width, request.height, codec)
    if width > video.width or height > video.height:
        raise InvalidRequest(
            f"Invalid crop dimensions: this format needs {codec.least}x{codec.least} or more"
        )
    x = min(request.x, video.width - width)
    y = min(request.y, video.height - height)
    return width, height, x, y


def scaled(request: ScaleVideo, video: Track, codec: VideoCodec) -> tuple[int, int]:
    """The new size; the side that is not given keeps the displayed ratio. Raises InvalidRequest."""
    shape = Fraction(video.width, video.height) * video.pixel_aspect()
    width, height = request.width, request.height
    if width is None and height is not None:
        width = max(1, round(height * shape))
    if height is None and width is not None:
        height = max(1, round(width / shape))
    if width is None or height is None or width > WIDEST or height > HIGHEST:
        raise InvalidRequest(
            f"Invalid scale dimensions: {width}x{height} is more than {WIDEST}x{HIGHEST}"
        )
    return encodable(width, height, codec)


def mark(
    request: WatermarkVideo, picture: Track, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Width, height, x and y of a watermark on a frame; one that is too large is made to fit."""
    width, height = size
    margin = min(request.margin, (min(size) - 1) // 2)
    room = (
        Fraction(width - 2 * margin, picture.width),
        Fraction(height - 2 * margin, picture.height),
    )
    scale = min(Fraction(request.scale), *room)
    wide = max(1, round(picture.width * scale))
    high = max(1, round(picture.height * scale))
    if request.position is Position.CENTER:
        return wide, high, (width - wide) // 2, (height - high) // 2
    left = request.position in (Position.TOP_LEFT, Position.BOTTOM_LEFT)
    top = request.position in (Position.TOP_LEFT, Position.TOP_RIGHT)
    x = margin if left else width - wide - margin
    y = margin if top else height - high - margin
    return wide, high, x, y


def rate(video: Track, codec: VideoCodec, limits: Limits) -> str | None:
    """Frames a second to write at, as "num/den"; None leaves them as they come."""
    given = video.frames_a_second()
    if not codec.steady and (given is None or given <= limits.frame_rate):
        return None
    wanted = min(given or COMMON_RATE, Fraction(limits.frame_rate))
    if codec.rates:
        allowed = [Fraction(text) for text in codec.rates]
        nearly = wanted * Fraction(999, 1000)
        return _text(next((each for each in allowed if each >= nearly), allowed[-1]))
    exact = wanted.limit_denominator(1001)
    if exact.numerator > MOST_TICKS or exact <= 0:
        exact = max(Fraction(1, 100), wanted.limit_denominator(100))
    return _text(exact)


def check_frame(video: Track, limits: Limits) -> None:
    """Raises MediaRefused for a frame that is larger than is decoded here."""
    if min(video.width, video.height) < 1:
        raise MediaRefused("This video does not say how large its frames are; it may be damaged")
    side, pixels = limits.side, limits.pixels
    if max(video.width, video.height) > side or video.width * video.height > pixels:
        raise MediaRefused(
            f"This video's frames are {video.width}x{video.height}; at most {side} pixels a side "
            f"and {pixels} in all are accepted"
        )


def _text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"
