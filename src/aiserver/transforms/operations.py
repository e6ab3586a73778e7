"""What can be called about pictures, videos and sounds: each makes a new file out of one."""

from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from aiserver.contract.operation import POST, Access, Queued, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.contract.uploads import FileField
from aiserver.jobs.records import ArtifactOutput, QueueMediaTransformResponse
from aiserver.transforms.av.requests import AudioFormat

KIND = "transform"
Request = TypeVar("Request", bound=msgspec.Struct)
Pixels = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Quality = Annotated[int, Meta(ge=1, le=100)]
Label = Annotated[str, Meta(max_length=200)]
Time = Annotated[str, Meta(max_length=40)]
Scale = Annotated[float, Meta(gt=0, le=10)]
Opacity = Annotated[float, Meta(ge=0, le=1)]
Margin = Annotated[int, Meta(ge=0, le=7680)]
_MARK = FileField("watermark", required=False)


class ImageOutputFormat(Enum):
    """The formats that pictures are written in."""

    JPG = "jpg"
    PNG = "png"
    GIF = "gif"
    BMP = "bmp"
    TIFF = "tiff"
    WEBP = "webp"
    AVIF = "avif"


class ConvertVideoOutputFormat(Enum):
    """The containers that videos are written in."""

    MP4 = "mp4"
    MOV = "mov"
    WEBM = "webm"
    MKV = "mkv"
    AVI = "avi"
    WMV = "wmv"
    MPEG = "mpeg"
    OGG = "ogg"


class WatermarkPosition(Enum):
    """Where a watermark lies."""

    TOP_LEFT = "TopLeft"
    TOP_RIGHT = "TopRight"
    BOTTOM_LEFT = "BottomLeft"
    BOTTOM_RIGHT = "BottomRight"
    CENTER = "Center"


class ArtifactGenerationResponse(Wire, kw_only=True):
    """`duration` is how long the work took."""

    results: list[ArtifactOutput] | None = None
    duration: timedelta | None = None
    response_status: ResponseStatus | None = None


def _transform(*files: FileField) -> Callable[[type[Request]], type[Request]]:
    """A direct call is a job too, which its caller waits for."""
    return operation(
        tag="Media",
        verbs=POST,
        access=Access.KEY,
        returns=ArtifactGenerationResponse,
        files=files,
        queued=Queued(
            into=QueueMediaTransformResponse,
            kind=KIND,
            status="GetArtifactGenerationStatus",
            waited=True,
        ),
    )


@_transform(FileField("image"))
class ConvertImage(Wire, kw_only=True):
    """Converts a picture to another format; animations stay so in gif and webp."""

    output_format: ImageOutputFormat | None = None
    quality: Quality | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("image"))
class CropImage(Wire, kw_only=True):
    """Cuts a window, in pixels, out of a picture; it must lie within.

    Without an `outputFormat` the picture keeps its own.
    """

    x: Pixels = 0
    y: Pixels = 0
    width: Pixels = 0
    height: Pixels = 0
    output_format: ImageOutputFormat | None = None
    quality: Quality | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("image"))
class ScaleImage(Wire, kw_only=True):
    """Scales a picture to a size in pixels; a side that is not given keeps the ratio.

    Without an `outputFormat` the picture keeps its own.
    """

    width: Pixels | None = None
    height: Pixels | None = None
    output_format: ImageOutputFormat | None = None
    quality: Quality | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("image"), _MARK)
class WatermarkImage(Wire, kw_only=True):
    """Lays a second picture, `watermark`, or a `text` over a picture.

    `watermarkScale` multiplies its size, `margin` is in pixels, `tiled` repeats it all over.
    """

    position: WatermarkPosition = WatermarkPosition.TOP_LEFT
    watermark_scale: Scale = 1.0
    opacity: Opacity = 0.5
    margin: Margin = 10
    tiled: bool = False
    text: Label | None = None
    output_format: ImageOutputFormat | None = None
    quality: Quality | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("video"))
class ConvertVideo(Wire, kw_only=True):
    """Converts a video to another format, with all its audio tracks."""

    output_format: ConvertVideoOutputFormat = ConvertVideoOutputFormat.MP4
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("video"))
class CropVideo(Wire, kw_only=True):
    """Cuts a window, in pixels, out of a video; one that fits but sticks out is moved inside."""

    x: Pixels = 0
    y: Pixels = 0
    width: Pixels = 0
    height: Pixels = 0
    output_format: ConvertVideoOutputFormat = ConvertVideoOutputFormat.MP4
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("video"))
class ScaleVideo(Wire, kw_only=True):
    """Scales a video to a size in pixels; a side that is not given keeps the ratio.

    Without an `outputFormat` the video keeps its own.
    """

    width: Pixels | None = None
    height: Pixels | None = None
    output_format: ConvertVideoOutputFormat | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("video"))
class TrimVideo(Wire, kw_only=True):
    """Keeps a video from one time to another, exact to the frame.

    Times are m:ss, hh:mm:ss.fff or seconds; without `endTime` it is kept to its end. `fast` copies
    what is there, from the keyframe before the start.
    """

    start_time: Time
    end_time: Time | None = None
    fast: bool = False
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("video"), _MARK)
class WatermarkVideo(Wire, kw_only=True):
    """Lays a picture, `watermark`, over a video.

    `watermarkScale` multiplies the picture's size, `margin` is in pixels.
    """

    position: WatermarkPosition | None = None
    watermark_scale: Scale = 0.2
    opacity: Opacity = 1.0
    margin: Margin = 10
    output_format: ConvertVideoOutputFormat | None = None
    ref_id: Label | None = None
    tag: Label | None = None


@_transform(FileField("audio"))
class ConvertAudio(Wire, kw_only=True):
    """Converts a sound, or the sound of a video, to another format."""

    output_format: AudioFormat = AudioFormat.MP3
    ref_id: Label | None = None
    tag: Label | None = None


ImageRequest = ConvertImage | CropImage | ScaleImage | WatermarkImage
MediaRequest = ConvertVideo | CropVideo | ScaleVideo | TrimVideo | WatermarkVideo | ConvertAudio
