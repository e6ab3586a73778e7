"""Pictures: what a call asks becomes a job for the children that decode, and their errors ours."""

from pathlib import Path
from typing import Protocol

from aiserver.contract.errors import InvalidRequest, StorageUnavailable, Unavailable
from aiserver.kit import log
from aiserver.kit.imaging import jobs
from aiserver.kit.imaging.errors import (
    ImageRefused,
    ImagingBusy,
    ImagingDiskFull,
    ImagingFailed,
)
from aiserver.kit.imaging.jobs import Format
from aiserver.transforms.av.errors import TransformFailed
from aiserver.transforms.operations import (
    ConvertImage,
    CropImage,
    ImageOutputFormat,
    ImageRequest,
    ScaleImage,
    WatermarkImage,
)

IMAGE_SECONDS = 60.0
_FORMATS: dict[ImageOutputFormat, Format] = {
    ImageOutputFormat.JPG: "jpg",
    ImageOutputFormat.PNG: "png",
    ImageOutputFormat.GIF: "gif",
    ImageOutputFormat.BMP: "bmp",
    ImageOutputFormat.TIFF: "tiff",
    ImageOutputFormat.WEBP: "webp",
    ImageOutputFormat.AVIF: "avif",
}
_log = log.get("transforms")


class Imaging(Protocol):
    """Runs jobs on pictures in children (kit.imaging)."""

    async def run(self, job: jobs.Job, *, timeout: float) -> jobs.Result: ...


class RefusedImage(InvalidRequest):
    """This picture cannot be used; send it in another format."""

    reason = "invalid_media"


def check(request: ImageRequest, *, marked: bool) -> None:
    """Raises InvalidRequest for what is wrong whatever the picture is; `marked`: with a mark."""
    match request:
        case ConvertImage():
            if request.output_format is None:
                raise InvalidRequest("No output format provided", param="outputFormat")
        case CropImage():
            if min(request.x, request.y) < 0 or min(request.width, request.height) < 1:
                raise InvalidRequest(
                    "Invalid crop dimensions: x and y are 0 or more, width and height 1 or more"
                )
        case ScaleImage():
            given = [side for side in (request.width, request.height) if side is not None]
            if not given or min(given) < 1:
                raise InvalidRequest(
                    "Invalid scale dimensions: give a width, a height or both, each at least 1"
                )
        case WatermarkImage():
            if not marked and not request.text:
                raise InvalidRequest("No watermark image file provided", param="watermark")


def job_of(request: ImageRequest, *, source: Path, result: Path, mark: Path | None) -> jobs.Job:
    """The same for the children; paths are absolute."""
    files = {"source": str(source), "result": str(result)}
    into = None if request.output_format is None else _FORMATS[request.output_format]
    match request:
        case ConvertImage():
            if into is None:
                raise InvalidRequest("No output format provided", param="outputFormat")
            return jobs.Convert(**files, format=into, quality=request.quality)
        case CropImage():
            return jobs.Crop(
                **files,
                x=request.x,
                y=request.y,
                width=request.width,
                height=request.height,
                format=into,
                quality=request.quality,
            )
        case ScaleImage():
            return jobs.Scale(
                **files,
                width=request.width,
                height=request.height,
                format=into,
                quality=request.quality,
            )
        case WatermarkImage():
            return jobs.Watermark(
                **files,
                mark=None if mark is None else str(mark),
                text=request.text or None,
                position=request.position.value,
                scale=request.watermark_scale,
                opacity=request.opacity,
                margin=request.margin,
                tiled=request.tiled,
                format=into,
                quality=request.quality,
            )


async def made(imaging: Imaging, job: jobs.Job) -> jobs.Result:
    """What came of it. Raises InvalidRequest for the caller's picture, else an ApiError of ours."""
    try:
        return await imaging.run(job, timeout=IMAGE_SECONDS)
    except ImageRefused as error:
        _log.info("image_refused", code=error.code, detail=error.detail)
        raise RefusedImage(str(error)) from error
    except ImagingBusy as error:
        raise Unavailable(str(error), retry_after=error.retry_after) from error
    except ImagingDiskFull as error:
        raise StorageUnavailable(str(error), reason="storage_full", retry_after=60) from error
    except ImagingFailed as error:
        raise TransformFailed(str(error)) from error
