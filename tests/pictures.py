"""Pictures made for tests, and how they are read again."""

from typing import Any, Protocol

from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


class Save(Protocol):
    """Writes a picture, or bytes, as a file of this name and says where."""

    def __call__(self, name: str, picture: Image.Image | bytes, **options: Any) -> str: ...


def quarters(width: int = 80, height: int = 60, mode: str = "RGB") -> Image.Image:
    """Red, green, blue and white, from the upper left in reading order."""
    picture = Image.new(mode, (width, height))
    for at, colour in enumerate((RED, GREEN, BLUE, WHITE)):
        left, top = (at % 2) * (width // 2), (at // 2) * (height // 2)
        picture.paste(colour, (left, top, left + width // 2, top + height // 2))
    return picture


def close(found: object, wanted: tuple[int, ...], by: int = 12) -> bool:
    assert isinstance(found, tuple)
    return len(found) >= len(wanted) and all(
        abs(one - other) <= by for one, other in zip(found, wanted, strict=False)
    )


def corners(picture: Image.Image) -> list[object]:
    """The colours in the middle of each quarter, in reading order."""
    shown = picture.convert("RGB")
    width, height = shown.size
    return [
        shown.getpixel((width * across // 4, height * down // 4))
        for down in (1, 3)
        for across in (1, 3)
    ]
