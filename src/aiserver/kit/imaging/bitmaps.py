"""BMP, which libvips neither reads nor writes, by Pillow."""

from typing import BinaryIO

import pyvips
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile

from aiserver.kit.imaging.errors import ImageRefused

_DAMAGED = "The BMP file is damaged or cut off, or of a kind that cannot be read."


def measured(file: BinaryIO) -> tuple[int, int]:
    """Width and height by the header."""
    file.seek(0)
    try:
        return BmpImageFile(file).size
    except (OSError, SyntaxError, ValueError, OverflowError) as error:
        raise ImageRefused(_DAMAGED, code="DamagedImage") from error


def read(file: BinaryIO) -> pyvips.Image:
    """The pixels, in RGB or RGBA."""
    file.seek(0)
    try:
        with BmpImageFile(file) as bitmap:
            mode = "RGBA" if bitmap.mode in ("RGBA", "PA", "LA") else "RGB"
            pixels = bitmap.convert(mode)
    except (OSError, SyntaxError, ValueError, IndexError, OverflowError) as error:
        raise ImageRefused(_DAMAGED, code="DamagedImage") from error
    return pyvips.Image.new_from_memory(
        pixels.tobytes(), pixels.width, pixels.height, len(mode), "uchar"
    ).copy(interpretation="srgb")


def write(image: pyvips.Image, file: BinaryIO) -> None:
    """`image` is three bands of 8 bits."""
    pixels = Image.frombuffer("RGB", (image.width, image.height), image.write_to_memory())
    pixels.save(file, "BMP")
