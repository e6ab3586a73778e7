"""Videos and sounds: what a call asks becomes a request of the room's own for ffmpeg."""

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av import requests as av
from aiserver.transforms.operations import (
    ConvertAudio,
    ConvertVideo,
    ConvertVideoOutputFormat,
    CropVideo,
    MediaRequest,
    ScaleVideo,
    TrimVideo,
    WatermarkVideo,
)


def check(request: av.Request, *, marked: bool) -> None:
    """Raises InvalidRequest for what is wrong whatever the file is; `marked`: with a mark."""
    av.check(request)
    if isinstance(request, av.WatermarkVideo) and not marked:
        raise InvalidRequest("No watermark image file provided", param="watermark")


def asked(request: MediaRequest) -> av.Request:
    """The same without the wire."""
    match request:
        case ConvertVideo():
            return av.ConvertVideo(into=av.VideoFormat(request.output_format.value))
        case CropVideo():
            return av.CropVideo(
                x=request.x,
                y=request.y,
                width=request.width,
                height=request.height,
                into=_into(request.output_format),
            )
        case ScaleVideo():
            return av.ScaleVideo(
                width=request.width, height=request.height, into=_into(request.output_format)
            )
        case TrimVideo():
            return av.TrimVideo(start=request.start_time, end=request.end_time, fast=request.fast)
        case WatermarkVideo():
            position = request.position
            return av.WatermarkVideo(
                position=av.Position(position.value) if position else av.Position.BOTTOM_RIGHT,
                scale=request.watermark_scale,
                opacity=request.opacity,
                margin=request.margin,
                into=_into(request.output_format),
            )
        case ConvertAudio():
            return av.ConvertAudio(into=request.output_format)


def _into(wanted: ConvertVideoOutputFormat | None) -> av.VideoFormat | None:
    return None if wanted is None else av.VideoFormat(wanted.value)
