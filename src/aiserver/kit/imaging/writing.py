"""Writes pixels as a file of the wanted format."""

import os

import pyvips

from aiserver.kit.imaging import bitmaps, colours
from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Format, Limits, Result
from aiserver.kit.imaging.pictures import refuse_size

_QUALITY: dict[Format, int] = {"jpg": 85, "webp": 80, "avif": 55}
_LONGEST_SIDE: dict[Format, int] = {
    "jpg": 65_500,
    "gif": 65_535,
    "bmp": 65_535,
    "webp": 16_383,
    "avif": 16_384,
}
_WITHOUT_ALPHA = ("jpg", "bmp")
_WITH_PROFILE = ("jpg", "png", "tiff", "webp", "avif")
_KEEP_NOTHING = 0
_KEEP_EXIF_AND_PROFILE = 1 | 8


def has_alpha(kind: Format) -> bool:
    """Whether files of this format can be transparent."""
    return kind not in _WITHOUT_ALPHA


def write(
    image: pyvips.Image,
    path: str,
    *,
    kind: Format,
    quality: int | None,
    limits: Limits,
    strip: bool = False,
) -> Result:
    """A new file at `path`, which is removed again on any error. Raises ImageRefused."""
    height = image.get_page_height()
    frames = image.height // height
    _refuse(image.width, height, frames, kind, limits)
    fitting = _fitting(image, kind, strip=strip)
    descriptor = os.open(
        path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        _save(
            fitting,
            descriptor,
            kind=kind,
            quality=quality or _QUALITY.get(kind, 0),
            keep=_KEEP_NOTHING if strip else _KEEP_EXIF_AND_PROFILE,
        )
        size = os.fstat(descriptor).st_size
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return Result(
        format=kind,
        size=size,
        width=image.width,
        height=height,
        frames=frames,
        has_alpha=bool(fitting.hasalpha()),
    )


def _refuse(width: int, height: int, frames: int, kind: Format, limits: Limits) -> None:
    refuse_size(width, height, frames, limits)
    longest = _LONGEST_SIDE.get(kind)
    if longest and max(width, height) > longest:
        raise ImageRefused(
            f"{kind} images have at most {longest} pixels a side; {width} x {height} is too large.",
            code="TooManyPixels",
        )


def _fitting(image: pyvips.Image, kind: Format, *, strip: bool) -> pyvips.Image:
    """What the format can hold of it."""
    fitting = colours.plain(image, keep_profile=kind in _WITH_PROFILE and not strip)
    if kind not in ("png", "tiff"):
        fitting = colours.eight_bits(fitting)
    if kind in _WITHOUT_ALPHA:
        fitting = colours.flat(fitting)
    return colours.srgb(fitting) if kind == "bmp" else fitting


def _save(image: pyvips.Image, descriptor: int, *, kind: Format, quality: int, keep: int) -> None:
    if kind == "bmp":
        with os.fdopen(os.dup(descriptor), "wb") as file:
            bitmaps.write(image, file)
        return
    target = pyvips.Target.new_to_descriptor(descriptor)
    match kind:
        case "jpg":
            image.jpegsave_target(target, Q=quality, keep=keep)
        case "png":
            _save_png(image, descriptor, keep)
        case "gif":
            image.gifsave_target(target, keep=keep)
        case "tiff":
            image.tiffsave_target(target, compression="lzw", predictor="horizontal", keep=keep)
        case "webp":
            image.webpsave_target(target, Q=quality, keep=keep)
        case "avif":
            image.heifsave_target(
                target, compression="av1", Q=quality, bitdepth=8, effort=_effort(image), keep=keep
            )


def _save_png(image: pyvips.Image, descriptor: int, keep: int) -> None:
    try:
        image.pngsave_target(pyvips.Target.new_to_descriptor(descriptor), keep=keep)
    except pyvips.Error as error:
        # The library refuses a damaged colour profile in these words, before it reads a pixel.
        refused = "vips2png: unable to write" in str(error) and "system error" not in str(error)
        if not refused or not image.get_typeof("icc-profile-data"):
            raise
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        bare = colours.without_profile(image)
        bare.pngsave_target(pyvips.Target.new_to_descriptor(descriptor), keep=keep)


def _effort(image: pyvips.Image) -> int:
    """Less care for large pictures, whose encoding would take minutes."""
    pixels = image.width * image.height
    return 4 if pixels <= 2_000_000 else 2 if pixels <= 8_000_000 else 0
