"""Opens a picture in the child: what it is and how large it is, before any pixel is decoded."""

import contextlib
import mmap
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pyvips

from aiserver.kit.imaging import bitmaps, colours
from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.headers import HEAD_BYTES, count_frames, sniff
from aiserver.kit.imaging.jobs import Limits

ACCEPTED = "JPEG, PNG, GIF, BMP, TIFF, WebP and AVIF"
_LOADERS = {
    "jpg": "Jpeg",
    "png": "Png",
    "gif": "Nsgif",
    "tiff": "Tiff",
    "webp": "Webp",
    "avif": "Heif",
    "heic": "Heif",
}
_ANIMATED = ("gif", "webp")
_SHRINKS = (8, 4, 2)
# What a pixel may take on average: 8 are four channels of 16 bits.
_BYTES_PER_PIXEL = 8
_BAND_BYTES = {
    "uchar": 1,
    "char": 1,
    "ushort": 2,
    "short": 2,
    "uint": 4,
    "int": 4,
    "float": 4,
    "complex": 8,
    "double": 8,
}


def allow_loaders() -> None:
    """From here on libvips reads the accepted formats, through open descriptors only."""
    # What libvips says may quote bytes of the file; left unread, it spoils every later error too.
    pyvips.error.__dict__["_to_string"] = _text
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in set(_LOADERS.values()):
        pyvips.operation_block_set(f"VipsForeignLoad{name}Source", False)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An open file whose header is within the limits; width and height are as shown.

    Several frames or pages are taken as upright, whatever they say. Of `uneven` pages, which
    differ in size, only the first can be read.
    """

    descriptor: int
    format: str
    size: int
    width: int
    height: int
    frames: int
    has_alpha: bool
    orientation: int
    has_profile: bool = False
    uneven: bool = False
    whole: pyvips.Image | None = None

    @property
    def animated(self) -> bool:
        return self.frames > 1 and self.format in _ANIMATED

    def load(self, *, frames: int, whole: bool = False) -> pyvips.Image:
        """The upright pixels of the first or all frames, one below another; decoded as needed.

        `whole` is for who reads them in another order than from top to bottom.
        """
        if self.whole is not None:
            return self.whole
        turned = self.orientation != 1
        access = "random" if whole or turned or frames > 1 else "sequential"
        image = _read(self.descriptor, access=access, **_pages(self.format, frames))
        return image.autorot() if turned else image

    def sized(self, width: int, height: int, *, frames: int) -> pyvips.Image:
        """The frames at exactly this size, in sRGB, decoded no larger than that needs."""
        if self.whole is not None:
            return self.whole.thumbnail_image(width, height=height, size="force")
        if not self.has_profile:
            return self._thumbnail(width, height, frames=frames)
        # Only where there is a profile: without one this takes longer than all the rest.
        try:
            image = self._thumbnail(width, height, frames=frames, output_profile="srgb")
        except pyvips.Error as error:
            if "VipsIcc" not in str(error):
                raise
            image = self._thumbnail(width, height, frames=frames)
        return colours.without_profile(image)

    def _thumbnail(self, width: int, height: int, *, frames: int, **colour: Any) -> pyvips.Image:
        if (shrink := self._shrink(width, height)) > 1:
            # By itself libvips decodes twice as many pixels each way, for a third more time.
            image = _read(self.descriptor, access="sequential", shrink=shrink)
            return image.thumbnail_image(
                width, height=height, size="force", no_rotate=True, **colour
            )
        return pyvips.Image.thumbnail_source(
            _source(self.descriptor),
            width,
            height=height,
            size="force",
            no_rotate=self.orientation == 1,
            # Its own `fail_on` would not reach the loader of a source.
            option_string="[fail_on=error,n=-1]" if frames > 1 else "[fail_on=error]",
            **colour,
        )

    def _shrink(self, width: int, height: int) -> int:
        """By how much a JPEG may be made smaller while it is decoded, and still be as large."""
        if self.format != "jpg" or self.orientation != 1:
            return 1
        fits = min(self.width // width, self.height // height)
        return next((shrink for shrink in _SHRINKS if shrink <= fits), 1)


@contextlib.contextmanager
def opened(path: str, limits: Limits) -> Generator[Picture]:
    """The picture in this file. Raises ImageRefused, and OSError if there is no such file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield _picture(descriptor, limits)
    finally:
        os.close(descriptor)


def decodes(path: str, limits: Limits) -> bool:
    """Whether the file is sound, found out by decoding all of it."""
    try:
        with opened(path, limits) as picture:
            picture.load(frames=1 if picture.uneven else picture.frames).avg()
    except (pyvips.Error, ImageRefused):
        return False
    return True


def refuse_size(width: int, height: int, frames: int, limits: Limits) -> None:
    """Raises ImageRefused where this many pixels or frames are over the limits."""
    if frames > limits.max_frames:
        raise ImageRefused(
            f"The image has more than {limits.max_frames} frames, the most that are accepted.",
            code="TooManyFrames",
        )
    if width * height * frames > limits.max_pixels:
        size = f"{width} x {height}" + (f" x {frames} frames" if frames > 1 else "")
        raise ImageRefused(
            f"The image of {size} has more than {limits.max_pixels / 1e6:g} million pixels in all,"
            " the most that are accepted.",
            code="TooManyPixels",
        )


def _picture(descriptor: int, limits: Limits) -> Picture:
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        raise ImageRefused("The image is not a plain file.", code="UnsupportedImage")
    if about.st_size == 0:
        raise ImageRefused("The image file is empty.", code="UnsupportedImage")
    if about.st_size > limits.source_bytes:
        raise ImageRefused(
            f"The image file has more than {limits.source_bytes / 2**20:.3g} MB.",
            code="FileTooLarge",
        )
    kind = sniff(os.pread(descriptor, HEAD_BYTES, 0))
    if kind is None:
        raise ImageRefused(
            f"The file is no image of an accepted format: {ACCEPTED}.", code="UnsupportedImage"
        )
    frames = 1
    if kind in ("gif", "webp", "tiff"):
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            frames = count_frames(data, kind, most=limits.max_frames)
        refuse_size(1, 1, frames, limits)
    if kind == "bmp":
        return _bitmap(descriptor, about.st_size, limits)
    return _checked(descriptor, kind, about.st_size, frames, limits)


def _checked(descriptor: int, kind: str, size: int, frames: int, limits: Limits) -> Picture:
    header, uneven = _header(descriptor, kind, frames)
    width, height = header.width, header.get_page_height()
    pages = frames if uneven else header.height // height
    # The decoder has the last word on what it would decode.
    refuse_size(width, height, pages, limits)
    if width * height * pages * _pixel_bytes(header) > limits.max_pixels * _BYTES_PER_PIXEL:
        raise ImageRefused(
            "The image has too many channels, or too many bits in each, for its size.",
            code="TooManyPixels",
        )
    colours.refuse_unreadable(header)
    orientation = _orientation(header) if pages == 1 else 1
    return Picture(
        descriptor=descriptor,
        format=kind,
        size=size,
        width=height if orientation >= 5 else width,
        height=width if orientation >= 5 else height,
        frames=pages,
        has_alpha=bool(header.hasalpha()),
        orientation=orientation,
        has_profile=colours.has_profile(header),
        uneven=uneven,
    )


def _header(descriptor: int, kind: str, frames: int) -> tuple[pyvips.Image, bool]:
    """What libvips says before it decodes, and whether it can read no more than the first page."""
    try:
        return _read(descriptor, access="sequential", **_pages(kind, frames)), False
    except pyvips.Error:
        if kind == "heic":
            raise ImageRefused(
                f"HEIC images cannot be read here; accepted are {ACCEPTED}.",
                code="UnsupportedImage",
            ) from None
        if os.pread(descriptor, 4, 8) == b"avis":
            raise ImageRefused(
                "Animated AVIF images cannot be read here; send the animation as GIF or WebP.",
                code="UnsupportedImage",
            ) from None
        if kind != "tiff" or frames == 1:
            raise
    return _read(descriptor, access="sequential"), True


def _bitmap(descriptor: int, size: int, limits: Limits) -> Picture:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        width, height = bitmaps.measured(file)
        refuse_size(width, height, 1, limits)
        image = bitmaps.read(file)
    return Picture(
        descriptor=descriptor,
        format="bmp",
        size=size,
        width=width,
        height=height,
        frames=1,
        has_alpha=bool(image.hasalpha()),
        orientation=1,
        whole=image,
    )


def _text(words: Any) -> str:
    return "" if words == pyvips.ffi.NULL else pyvips.ffi.string(words).decode(errors="replace")


def _source(descriptor: int) -> pyvips.Source:
    return pyvips.Source.new_from_descriptor(descriptor)


def _read(descriptor: int, **options: Any) -> pyvips.Image:
    return pyvips.Image.new_from_source(_source(descriptor), "", fail_on="error", **options)


def _pages(kind: str, frames: int) -> dict[str, int]:
    return {"n": -1} if frames > 1 and kind in (*_ANIMATED, "tiff") else {}


def _pixel_bytes(image: pyvips.Image) -> int:
    return image.bands * _BAND_BYTES.get(str(image.format), 16)


def _orientation(image: pyvips.Image) -> int:
    value = image.get("orientation") if image.get_typeof("orientation") else 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
