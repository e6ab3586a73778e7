"""Draws a line of text: white with a dark rim, to be read on any picture."""

import pyvips
from PIL import Image, ImageDraw, ImageFont

from aiserver.kit.imaging.errors import ImageRefused

_LARGEST_LETTERS = 1000.0
# Sizes are found by measuring the text once at this one.
_MEASURED_AT = 40.0


def drawn(text: str, size: float, room: tuple[int, int]) -> pyvips.Image:
    """Four bands, letters `size` pixels high or smaller, so that all is within `room`.

    Raises ImageRefused.
    """
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if not line:
        raise ImageRefused("The watermark's text has nothing to draw.", code="NoWatermark")
    # The font that comes with Pillow has no more than this; others come from the system.
    cover = _by_pillow if line.isascii() else _by_system
    width, height = _extent(cover(line, _MEASURED_AT))
    size = min(size, _LARGEST_LETTERS)
    rim = 1 + round(size / 12)
    inner = max(1, room[0] - 4 * rim), max(1, room[1] - 4 * rim)
    ratio = min(size / _MEASURED_AT, inner[0] / width, inner[1] / height)
    letters = cover(line, max(1.0, _MEASURED_AT * ratio))
    return _within(_rimmed(letters, rim), room)


def _by_pillow(line: str, size: float) -> pyvips.Image:
    font = ImageFont.load_default(size)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(line))
    canvas = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), line, font=font, fill=255)
    return pyvips.Image.new_from_memory(canvas.tobytes(), canvas.width, canvas.height, 1, "uchar")


def _by_system(line: str, size: float) -> pyvips.Image:
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At 72 dots an inch a point is a pixel.
    try:
        return pyvips.Image.text(escaped, font=f"sans {size:.1f}", dpi=72)
    except pyvips.Error as error:
        raise ImageRefused(
            "The watermark's text cannot be drawn with the fonts of this machine.",
            code="NoWatermark",
        ) from error


def _extent(letters: pyvips.Image) -> tuple[int, int]:
    return letters.width, letters.height


def _rimmed(letters: pyvips.Image, rim: int) -> pyvips.Image:
    width, height = letters.width + 4 * rim, letters.height + 4 * rim
    white = letters.embed(2 * rim, 2 * rim, width, height)
    dark = white.gaussblur(rim).linear([2.0], [0.0], uchar=True)
    cover = (white > dark).ifthenelse(white, dark)
    return white.bandjoin([white, white, cover]).copy(interpretation="srgb").copy_memory()


def _within(mark: pyvips.Image, room: tuple[int, int]) -> pyvips.Image:
    return mark.thumbnail_image(room[0], height=room[1], size="down").copy_memory()
