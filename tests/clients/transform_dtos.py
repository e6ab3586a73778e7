"""Types of the transforms as the generator for Python writes them, for the typed client."""

# As in python_dtos.
# ruff: noqa: UP006, UP035, UP042, UP045
# pyright: reportArgumentType=false

import datetime
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional

from dataclasses_json import LetterCase, Undefined, dataclass_json
from servicestack import IGet, IPost, IReturn, IReturnVoid, ResponseStatus

from clients.python_dtos import BackgroundJobState


class ImageOutputFormat(str, Enum):
    JPG = "jpg"
    PNG = "png"
    GIF = "gif"
    BMP = "bmp"
    TIFF = "tiff"
    WEBP = "webp"


class ConvertVideoOutputFormat(str, Enum):
    MP4 = "mp4"
    MOV = "mov"
    WEB_M = "webm"
    MVK = "mkv"
    AVI = "avi"
    WMV = "wmv"
    MPEG = "mpeg"
    OGG = "ogg"


class AudioFormat(str, Enum):
    MP3 = "mp3"
    WAV = "wav"
    AAC = "aac"
    FLAC = "flac"
    OGG = "ogg"
    M4A = "m4a"
    WMA = "wma"


class WatermarkPosition(str, Enum):
    TOP_LEFT = "TopLeft"
    TOP_RIGHT = "TopRight"
    BOTTOM_LEFT = "BottomLeft"
    BOTTOM_RIGHT = "BottomRight"
    CENTER = "Center"


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ArtifactOutput:
    url: Optional[str] = None
    file_name: Optional[str] = None
    provider: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ArtifactGenerationResponse:
    results: Optional[List[ArtifactOutput]] = None
    duration: Optional[datetime.timedelta] = None
    response_status: Optional[ResponseStatus] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueMediaTransformResponse:
    job_id: int = 0
    ref_id: Optional[str] = None
    job_state: Optional[BackgroundJobState] = None
    status: Optional[str] = None
    response_status: Optional[ResponseStatus] = None
    status_url: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class GetArtifactGenerationStatusResponse:
    job_id: int = 0
    ref_id: Optional[str] = None
    job_state: Optional[BackgroundJobState] = None
    status: Optional[str] = None
    results: Optional[List[ArtifactOutput]] = None
    duration: Optional[datetime.timedelta] = None
    response_status: Optional[ResponseStatus] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class GetArtifactGenerationStatus(IReturn[GetArtifactGenerationStatusResponse], IGet):
    job_id: Optional[int] = None
    ref_id: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ConvertImage(IReturn[ArtifactGenerationResponse], IPost):
    image: Optional[str] = None
    output_format: Optional[ImageOutputFormat] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueConvertImage(IReturn[QueueMediaTransformResponse], IPost):
    image: Optional[str] = None
    output_format: Optional[ImageOutputFormat] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class CropImage(IReturn[ArtifactGenerationResponse], IPost):
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    image: Optional[str] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueCropImage(IReturn[QueueMediaTransformResponse], IPost):
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    image: Optional[str] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ScaleImage(IReturn[ArtifactGenerationResponse], IPost):
    image: Optional[str] = None
    width: Optional[int] = None
    height: Optional[int] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class WatermarkImage(IReturn[ArtifactGenerationResponse], IPost):
    image: Optional[str] = None
    position: Optional[WatermarkPosition] = None
    watermark_scale: float = 1.0
    opacity: float = 0.5
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueWatermarkImage(IReturn[QueueMediaTransformResponse], IPost):
    image: Optional[str] = None
    position: Optional[WatermarkPosition] = None
    opacity: float = 0.5
    watermark_scale: float = 1.0
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ConvertVideo(IReturn[ArtifactGenerationResponse], IPost):
    output_format: Optional[ConvertVideoOutputFormat] = None
    video: Optional[str] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueConvertVideo(IReturn[QueueMediaTransformResponse], IPost):
    output_format: Optional[ConvertVideoOutputFormat] = None
    video: Optional[str] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class CropVideo(IReturn[ArtifactGenerationResponse], IPost):
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    video: Optional[str] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueCropVideo(IReturn[QueueMediaTransformResponse], IPost):
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    video: Optional[str] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class TrimVideo(IReturn[ArtifactGenerationResponse], IPost):
    start_time: Optional[str] = None
    end_time: Optional[str] = None
    video: Optional[str] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueTrimVideo(IReturn[QueueMediaTransformResponse], IPost):
    start_time: Optional[str] = None
    end_time: Optional[str] = None
    video: Optional[str] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ConvertAudio(IReturn[ArtifactGenerationResponse], IPost):
    output_format: Optional[AudioFormat] = None
    audio: Optional[str] = None
    ref_id: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueConvertAudio(IReturn[QueueMediaTransformResponse], IPost):
    output_format: Optional[AudioFormat] = None
    audio: Optional[str] = None
    ref_id: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None


class MediaTransformTaskType(str, Enum):
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


class MediaOutputFormat(str, Enum):
    MP4 = "mp4"
    AVI = "avi"
    MKV = "mkv"
    MOV = "mov"
    WEB_M = "webm"
    GIF = "gif"
    MP3 = "mp3"
    WAV = "wav"
    FLAC = "flac"


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class MediaTransformArgs:
    task_type: Optional[MediaTransformTaskType] = None
    video_file_name: Optional[str] = None
    audio_file_name: Optional[str] = None
    image_file_name: Optional[str] = None
    watermark_file_name: Optional[str] = None
    output_format: Optional[MediaOutputFormat] = None
    image_output_format: Optional[ImageOutputFormat] = None
    scale_width: Optional[int] = None
    scale_height: Optional[int] = None
    crop_x: Optional[int] = None
    crop_y: Optional[int] = None
    crop_width: Optional[int] = None
    crop_height: Optional[int] = None
    cut_start: Optional[float] = None
    cut_end: Optional[float] = None
    watermark_position: Optional[str] = None
    watermark_scale: Optional[str] = None
    audio_codec: Optional[str] = None
    video_codec: Optional[str] = None
    audio_bitrate: Optional[str] = None
    audio_sample_rate: Optional[int] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class CreateTransformResponse:
    id: int = 0
    ref_id: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class CreateMediaTransform(IReturn[CreateTransformResponse], IPost):
    request: Optional[MediaTransformArgs] = None
    provider: Optional[str] = None
    state: Optional[str] = None
    reply_to: Optional[str] = None
    ref_id: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class HasDummyReplyTo(IReturnVoid, IPost):
    ref_id: Optional[str] = None
