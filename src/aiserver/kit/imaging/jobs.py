"""What goes to a child and comes back: operations on files, their bounds, and their results."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Format = Literal["jpg", "png", "gif", "bmp", "tiff", "webp", "avif"]
Fit = Literal["contain", "cover", "fill", "inside"]
Gravity = Literal[
    "center",
    "north",
    "northeast",
    "east",
    "southeast",
    "south",
    "southwest",
    "west",
    "northwest",
    "attention",
]
Position = Literal["TopLeft", "TopRight", "BottomLeft", "BottomRight", "Center"]

CONTENT_TYPES: dict[str, str] = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "webp": "image/webp",
    "avif": "image/avif",
    "heic": "image/heic",
}

Quality = Annotated[int, Meta(ge=1, le=100)]
Side = Annotated[int, Meta(ge=1)]


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds of one child: what it may be given, make, and use of the machine."""

    max_pixels: int = 50_000_000
    max_frames: int = 1000
    source_bytes: int = 50 * 2**20
    result_bytes: int = 256 * 2**20
    memory_bytes: int = 3 * 2**30
    cpu_seconds: int = 60
    open_files: int = 64


class Inspect(Struct, tag=True, frozen=True, kw_only=True):
    """Say what the file `source` holds; nothing is decoded."""

    source: str


class Convert(Struct, tag=True, frozen=True, kw_only=True):
    """Write `source` as `format`; animations stay so in gif and webp, pages in tiff."""

    source: str
    result: str
    format: Format
    quality: Quality | None = None


class Crop(Struct, tag=True, frozen=True, kw_only=True):
    """Cut exactly this window out of every frame; without `format`, the source's is kept."""

    source: str
    result: str
    x: int
    y: int
    width: int
    height: int
    format: Format | None = None
    quality: Quality | None = None


class Scale(Struct, tag=True, frozen=True, kw_only=True):
    """To exactly this size; with one side given the other keeps the ratio."""

    source: str
    result: str
    width: int | None = None
    height: int | None = None
    format: Format | None = None
    quality: Quality | None = None


class Watermark(Struct, tag=True, frozen=True, kw_only=True):
    """Lay the picture in file `mark`, or else `text`, over every frame of `source`.

    `scale` multiplies the mark's own size; a text's is a twentieth of the shorter side. A mark
    that would not fit within the margins is made smaller. `margin` is in pixels, and the gap
    between marks where `tiled`.
    """

    source: str
    result: str
    mark: str | None = None
    text: Annotated[str, Meta(max_length=200)] | None = None
    position: Position = "BottomRight"
    scale: Annotated[float, Meta(gt=0, le=100)] = 1.0
    opacity: Annotated[float, Meta(ge=0, le=1)] = 0.5
    margin: Annotated[int, Meta(ge=0, le=10_000)] = 10
    tiled: bool = False
    format: Format | None = None
    quality: Quality | None = None


class Variant(Struct, tag=True, frozen=True, kw_only=True):
    """A copy for display, in sRGB and by default without metadata.

    `fit` matters with both sides: contain shows all and fills up the rest, cover crops at
    `gravity`, fill stretches, inside shows all and never enlarges. Sides are times `dpr`.
    `blur` is a sigma in pixels of the result, `rotate` clockwise and before sizing.
    """

    source: str
    result: str
    width: Side | None = None
    height: Side | None = None
    fit: Fit = "inside"
    gravity: Gravity = "center"
    dpr: Annotated[float, Meta(gt=0, le=4)] = 1.0
    rotate: Literal[0, 90, 180, 270] = 0
    blur: Annotated[float, Meta(ge=0, le=100)] = 0.0
    format: Format | None = None
    quality: Quality | None = None
    strip: bool = True


Job = Inspect | Convert | Crop | Scale | Watermark | Variant


class Result(Struct, frozen=True, kw_only=True):
    """A file that was written, or inspected: its format by its bytes, `size` in bytes.

    Width and height are as shown, which `orientation` (EXIF, 1 to 8) of the file has changed.
    """

    format: str
    size: int
    width: int
    height: int
    frames: int
    has_alpha: bool
    orientation: int = 1


class Ready(Struct, tag=True, frozen=True):
    """The child is up."""


class Done(Struct, tag=True, frozen=True, kw_only=True):
    result: Result
    resident: int


class Refused(Struct, tag=True, frozen=True, kw_only=True):
    """The caller's fault; `detail` is what the decoder said, for the log."""

    code: str
    message: str
    detail: str = ""
    resident: int


class Faulted(Struct, tag=True, frozen=True, kw_only=True):
    """Our fault; `message` is for the log."""

    message: str
    resident: int


class Full(Struct, tag=True, frozen=True, kw_only=True):
    """The disk has no room for the result."""

    resident: int


Reply = Ready | Done | Refused | Faulted | Full
