"""The one operation that takes every transform, by the name of its task and raw arguments."""

from enum import Enum
from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import POST, Access, Queued, operation
from aiserver.contract.responses import Wire
from aiserver.contract.twins import Wishes
from aiserver.contract.uploads import FileField
from aiserver.transforms.operations import KIND, ImageOutputFormat, Label, Pixels

Words = Annotated[str, Meta(max_length=1000)]


class MediaTransformTaskType(Enum):
    """What can be done; clients may send the position here as a number."""

    IMAGE_SCALE = "ImageScale"
    VIDEO_SCALE = "VideoScale"
    IMAGE_CONVERT = "ImageConvert"
    AUDIO_CONVERT = "AudioConvert"
    VIDEO_CONVERT = "VideoConvert"
    IMAGE_CROP = "ImageCrop"
    VIDEO_CROP = "VideoCrop"
    VIDEO_CUT = "VideoCut"
    AUDIO_CUT = "AudioCut"
    WATERMARK_IMAGE = "WatermarkImage"
    WATERMARK_VIDEO = "WatermarkVideo"


class MediaOutputFormat(Enum):
    """The formats of videos and sounds together."""

    MP4 = "mp4"
    AVI = "avi"
    MKV = "mkv"
    MOV = "mov"
    WEBM = "webm"
    GIF = "gif"
    MP3 = "mp3"
    WAV = "wav"
    FLAC = "flac"
    WMV = "wmv"
    MPEG = "mpeg"
    OGG = "ogg"
    AAC = "aac"
    M4A = "m4a"
    WMA = "wma"


class MediaTransformArgs(Wire, kw_only=True):
    """A task, VideoScale without another, and its arguments; those of other tasks say nothing.

    Sizes are in pixels, times in seconds; a `cutEnd` of -1 is the end. `watermarkScale` multiplies
    the size of the watermark. A codec must be that of the format. The file names say nothing: a
    result is named as its upload was.
    """

    task_type: MediaTransformTaskType | None = None
    video_file_name: Words | None = None
    audio_file_name: Words | None = None
    image_file_name: Words | None = None
    watermark_file_name: Words | None = None
    output_format: MediaOutputFormat | None = None
    image_output_format: ImageOutputFormat | None = None
    scale_width: Pixels | None = None
    scale_height: Pixels | None = None
    crop_x: Pixels | None = None
    crop_y: Pixels | None = None
    crop_width: Pixels | None = None
    crop_height: Pixels | None = None
    cut_start: float | None = None
    cut_end: float | None = None
    watermark_position: Words | None = None
    watermark_scale: Label | None = None
    audio_codec: Label | None = None
    video_codec: Label | None = None
    audio_bitrate: Label | None = None
    audio_sample_rate: Pixels | None = None


class CreateTransformResponse(Wire, kw_only=True):
    """The ids of the job."""

    id: int
    ref_id: str


@operation(
    tag="Media",
    verbs=POST,
    access=Access.KEY,
    returns=CreateTransformResponse,
    files=tuple(
        FileField(name, required=False) for name in ("image", "video", "audio", "watermark")
    ),
    queued=Queued(
        into=CreateTransformResponse, kind=KIND, status="GetArtifactGenerationStatus", only=True
    ),
)
class CreateMediaTransform(Wishes, kw_only=True):
    """Queues any transform: answers at once with the ids of a job, which does the work.

    `replyTo` is sent the outcome, with `state` in it. The file is the part `image`, `video` or
    `audio` that the task is about, and `watermark` where it lays one over.
    """

    request: MediaTransformArgs
