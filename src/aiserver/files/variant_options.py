"""What a variant's address asks for: `width=512,fit=cover` and the like, read and bounded."""

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Literal, cast, get_args

import msgspec

from aiserver.contract.errors import Forbidden, InvalidRequest
from aiserver.kit.imaging.jobs import Fit, Format, Gravity

LONGEST_SIDE = 8192
LONGEST_TEXT = 300
# Texts whose meaning is remembered.
MOST_READ = 1000
# For callers without a key: powers of two and multiples of 64, up to this.
LONGEST_ON_GRID = 2048
_GRID_STEP = 64
_MOST_DPR = 4
_MOST_BLUR = 100
_WITH_QUALITY = ("jpg", "webp", "avif")
_NUMBER = re.compile(r"\d{1,5}(\.\d{1,3})?", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}

Turn = Literal[0, 90, 180, 270]
Wanted = Literal["auto", "jpg", "png", "gif", "webp", "avif"]
_FORMATS: dict[str, Wanted] = {"jpeg": "jpg", **{name: name for name in get_args(Wanted)}}

PRESETS = {
    "thumb": "width=160,height=160,fit=cover,gravity=attention",
    "small": "width=320,fit=inside",
    "medium": "width=800,fit=inside",
    "large": "width=1600,fit=inside",
}


class VariantOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sides in pixels of the result, `blur` a sigma of them; equal ones make the same picture."""

    width: int | None = None
    height: int | None = None
    fit: Fit = "fill"
    gravity: Gravity = "center"
    quality: int | None = None
    format: Wanted = "auto"
    blur: float = 0.0
    rotate: Turn = 0
    strip: bool = True

    def __str__(self) -> str:
        """As in an address; what is left out is as without it."""
        told = msgspec.structs.asdict(self).items()
        return ",".join(
            f"{name}={_shown(value)}" for name, value in told if value != getattr(_PLAIN, name)
        )

    def sized_alike(self, other: "VariantOptions") -> bool:
        """Whether nothing but the format tells them apart."""
        return msgspec.structs.replace(self, format=other.format) == other

    def as_format(self, found: Format) -> "VariantOptions":
        """With `auto` decided; a quality means nothing to formats that lose nothing."""
        quality = self.quality if found in _WITH_QUALITY else None
        return msgspec.structs.replace(self, format=found, quality=quality)


_PLAIN = VariantOptions()


class Presets:
    """Variants that have a name, `given` beside and instead of the shipped ones.

    Raises InvalidRequest for one that means nothing.
    """

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        texts = {**PRESETS, **(given or {})}
        bad = next((name for name in texts if not _NAME.fullmatch(name)), None)
        if bad is not None:
            raise InvalidRequest(f"{bad[:40]!r} cannot be a preset's name; take a-z, 0-9 and -.")
        self._options = {name: read(text, {}) for name, text in texts.items()}
        self._read = lru_cache(MOST_READ)(partial(read, presets=texts))
        self._allowed = lru_cache(MOST_READ)(self._is_allowed)

    def read(self, text: str) -> VariantOptions:
        """Raises InvalidRequest; what comes after a preset's name replaces what it says."""
        return self._read(text)

    def require_allowed(self, options: VariantOptions) -> None:
        """Raises Forbidden for what callers without a key may not ask for."""
        if not self._allowed(options):
            raise Forbidden(
                "Without an API key a variant's sides are powers of two or multiples of "
                f"{_GRID_STEP}, up to {LONGEST_ON_GRID}, without quality, blur and strip; or it is "
                f"a preset: {', '.join(self._options)}. Send a key for any other.",
                code="VariantNotAllowed",
                reason="variant_not_allowed",
            )

    def _is_allowed(self, options: VariantOptions) -> bool:
        if any(options.sized_alike(preset) for preset in self._options.values()):
            return True
        sides = [side for side in (options.width, options.height) if side is not None]
        plain = options.quality is None and not options.blur and options.strip
        return plain and all(map(on_grid, sides))


def on_grid(side: int) -> bool:
    """Whether anybody who may read a picture may have this side of it, in pixels."""
    return side <= LONGEST_ON_GRID and (side % _GRID_STEP == 0 or side & (side - 1) == 0)


def read(text: str, presets: Mapping[str, str]) -> VariantOptions:
    """What a comma list of `name=value` asks for. Raises InvalidRequest."""
    if len(text) > LONGEST_TEXT:
        raise InvalidRequest(f"Variant options have at most {LONGEST_TEXT} letters.")
    values: dict[str, object] = {}
    first, _, rest = text.partition(",")
    if first.strip().lower() in presets:
        values = _values(presets[first.strip().lower()])
        values |= _values(rest) if rest else {}
    else:
        values = _values(text)
    return _settled(values)


def _values(text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in text.split(","):
        if not item.strip():
            continue
        name, equals, value = (part.strip().lower() for part in item.partition("="))
        reader = _READERS.get(name)
        if reader is None or not equals:
            raise InvalidRequest(
                f"Invalid option {item.strip()[:40]!r}. Options are name=value, with these names: "
                f"{', '.join(_READERS)}.",
                param="variant",
            )
        if name in found:
            raise InvalidRequest(f"The option {name} is given twice.", param="variant")
        found[name] = reader(name, value)
    return found


def _settled(values: dict[str, object]) -> VariantOptions:
    """Different words for one picture become the same."""
    dpr = cast("float", values.pop("dpr", 1.0))
    width, height = (_times(values.get(side), dpr, side) for side in ("width", "height"))
    if width is None and height is None:
        raise InvalidRequest("width or height is required", param="variant")
    settled = {**values, "width": width, "height": height}
    if not (width and height) and values.get("fit") != "inside":
        settled["fit"] = "fill"
    crops, fills = settled.get("fit") == "cover", settled.get("fit") == "contain"
    if not (crops or fills) or (fills and values.get("gravity") == "attention"):
        settled["gravity"] = "center"
    return msgspec.convert(settled, VariantOptions)


def _times(side: object, dpr: float, name: str) -> int | None:
    if side is None:
        return None
    pixels = max(1, math.floor(cast("int", side) * dpr + 0.5))
    if pixels > LONGEST_SIDE:
        raise InvalidRequest(f"{name} times dpr is at most {LONGEST_SIDE}.", param="variant")
    return pixels


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read_whole(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 6):
            raise _refused(name, f"a whole number from {least} to {most}")
        if not least <= int(value) <= most:
            raise _refused(name, f"a whole number from {least} to {most}")
        return int(value)

    return read_whole


def _number(least: float, most: float) -> Callable[[str, str], float]:
    def read_number(name: str, value: str) -> float:
        if not _NUMBER.fullmatch(value) or not least <= float(value) <= most:
            raise _refused(name, f"a number from {least:g} to {most:g}")
        return float(value)

    return read_number


def _one_of(choices: Mapping[str, object]) -> Callable[[str, str], object]:
    def read_one(name: str, value: str) -> object:
        if value not in choices:
            raise _refused(name, f"one of {', '.join(choices)}")
        return choices[value]

    return read_one


def _refused(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid option: {name} is {wanted}.", param="variant")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


_READERS: dict[str, Callable[[str, str], object]] = {
    "width": _whole(1, LONGEST_SIDE),
    "height": _whole(1, LONGEST_SIDE),
    "fit": _one_of({name: name for name in get_args(Fit)}),
    "gravity": _one_of({name: name for name in get_args(Gravity)}),
    "dpr": _number(0.1, _MOST_DPR),
    "quality": _whole(1, 100),
    "format": _one_of(_FORMATS),
    "blur": _number(0, _MOST_BLUR),
    "rotate": _one_of({str(turn): turn for turn in get_args(Turn)}),
    "strip": _one_of(_SWITCH),
}
