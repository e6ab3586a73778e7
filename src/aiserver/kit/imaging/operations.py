"""What each job does to a picture."""

from aiserver.kit.imaging import variants, watermarks
from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.frames import each_frame
from aiserver.kit.imaging.jobs import (
    Convert,
    Crop,
    Format,
    Inspect,
    Job,
    Limits,
    Result,
    Scale,
    Variant,
    Watermark,
)
from aiserver.kit.imaging.pictures import Picture, opened, refuse_size
from aiserver.kit.imaging.writing import write


def perform(job: Job, limits: Limits) -> Result:
    """Raises ImageRefused for the caller's faults, pyvips.Error for damaged pictures."""
    with opened(job.source, limits) as picture:
        match job:
            case Inspect():
                return _inspected(picture)
            case Convert():
                return _convert(picture, job, limits)
            case Crop():
                return _crop(picture, job, limits)
            case Scale():
                return _scale(picture, job, limits)
            case Watermark():
                return _watermark(picture, job, limits)
            case Variant():
                return _variant(picture, job, limits)


def sources(job: Job) -> list[str]:
    """The files that the job reads."""
    mark = job.mark if isinstance(job, Watermark) and not job.text else None
    return [job.source, mark] if mark else [job.source]


def _inspected(picture: Picture) -> Result:
    return Result(
        format=picture.format,
        size=picture.size,
        width=picture.width,
        height=picture.height,
        frames=picture.frames,
        has_alpha=picture.has_alpha,
        orientation=picture.orientation,
    )


def _convert(picture: Picture, job: Convert, limits: Limits) -> Result:
    image = picture.load(frames=_kept(picture, job.format))
    return write(image, job.result, kind=job.format, quality=job.quality, limits=limits)


def _crop(picture: Picture, job: Crop, limits: Limits) -> Result:
    inside = (
        min(job.x, job.y) >= 0
        and min(job.width, job.height) >= 1
        and job.x + job.width <= picture.width
        and job.y + job.height <= picture.height
    )
    if not inside:
        raise ImageRefused(
            f"Invalid crop dimensions: {job.width} x {job.height} at {job.x},{job.y} does not lie"
            f" within the image of {picture.width} x {picture.height}.",
            code="InvalidCrop",
        )
    kind = _kind(job.format, picture)
    image = each_frame(
        picture.load(frames=_kept(picture, kind)),
        lambda frame: frame.crop(job.x, job.y, job.width, job.height),
    )
    return write(image, job.result, kind=kind, quality=job.quality, limits=limits)


def _scale(picture: Picture, job: Scale, limits: Limits) -> Result:
    sides = [side for side in (job.width, job.height) if side is not None]
    if not sides or min(sides) < 1:
        raise ImageRefused(
            "Invalid scale dimensions: give a width, a height or both, each at least 1.",
            code="InvalidScale",
        )
    width, height = variants.by_ratio(picture.width, picture.height, job.width, job.height)
    kind = _kind(job.format, picture)
    frames = _kept(picture, kind)
    refuse_size(width, height, frames, limits)
    image = picture.sized(width, height, frames=frames)
    return write(image, job.result, kind=kind, quality=job.quality, limits=limits)


def _watermark(picture: Picture, job: Watermark, limits: Limits) -> Result:
    kind = _kind(job.format, picture)
    image = picture.load(frames=_kept(picture, kind))
    marked = watermarks.marked(image, job, limits)
    return write(marked, job.result, kind=kind, quality=job.quality, limits=limits)


def _variant(picture: Picture, job: Variant, limits: Limits) -> Result:
    kind = _kind(job.format, picture)
    image = variants.variant(picture, job, kind=kind, frames=_kept(picture, kind), limits=limits)
    return write(image, job.result, kind=kind, quality=job.quality, limits=limits, strip=job.strip)


def _kind(wanted: Format | None, picture: Picture) -> Format:
    own: dict[str, Format] = {
        "jpg": "jpg",
        "png": "png",
        "gif": "gif",
        "bmp": "bmp",
        "tiff": "tiff",
        "webp": "webp",
        "avif": "avif",
    }
    return wanted or own.get(picture.format, "jpg")


def _kept(picture: Picture, kind: Format) -> int:
    """How many frames or pages a file of this format takes over. Raises ImageRefused."""
    keeps = kind in ("gif", "webp") if picture.animated else kind == picture.format == "tiff"
    if keeps and picture.uneven:
        raise ImageRefused(
            "The TIFF's pages differ in size, or some are damaged, and cannot be written together;"
            " ask for another format to get the first page.",
            code="UnevenPages",
        )
    return picture.frames if keeps else 1
