"""Copies for display: sized, turned, cropped, filled up and blurred."""

import pyvips

from aiserver.kit.imaging import colours
from aiserver.kit.imaging.frames import each_frame, first_frame
from aiserver.kit.imaging.jobs import Fit, Format, Gravity, Limits, Variant
from aiserver.kit.imaging.pictures import Picture, refuse_size
from aiserver.kit.imaging.writing import has_alpha

# Below this, a blur changes nothing that 8 bits can show.
_LEAST_BLUR = 0.2
_TURNS = {90: "d90", 180: "d180", 270: "d270"}


def variant(
    picture: Picture, job: Variant, *, kind: Format, frames: int, limits: Limits
) -> pyvips.Image:
    """The pixels of the variant. Raises ImageRefused."""
    across = job.rotate in (90, 270)
    width, height = (picture.height, picture.width) if across else (picture.width, picture.height)
    box = _times(job.width, job.dpr), _times(job.height, job.dpr)
    sized = _sized(width, height, *box, fit=job.fit)
    for sides in (sized, (box[0] or 1, box[1] or 1)):
        refuse_size(*sides, frames, limits)
    image = colours.eight_bits(
        picture.sized(*(reversed(sized) if across else sized), frames=frames)
    )
    if frames > 1 or job.rotate or job.gravity == "attention":
        image = image.copy_memory()
    if job.rotate:
        image = each_frame(image, lambda frame: frame.rot(_TURNS[job.rotate]))
    if box[0] and box[1]:
        image = _boxed(image, box[0], box[1], job, kind)
    if job.blur >= _LEAST_BLUR:
        image = each_frame(image, lambda frame: _blurred(frame, job.blur))
    return image


def by_ratio(
    width: int, height: int, to_width: int | None, to_height: int | None
) -> tuple[int, int]:
    """The wanted sides, the missing one by the ratio of `width` to `height`."""
    if to_width is None and to_height is None:
        return width, height
    return (
        to_width or max(1, round(width * (to_height or 0) / height)),
        to_height or max(1, round(height * (to_width or 0) / width)),
    )


def _times(side: int | None, dpr: float) -> int | None:
    return None if side is None else max(1, round(side * dpr))


def _sized(
    width: int, height: int, to_width: int | None, to_height: int | None, *, fit: Fit
) -> tuple[int, int]:
    """What the whole picture is sized to, before a part is cut out or space is added."""
    if not to_width or not to_height:
        sized = by_ratio(width, height, to_width, to_height)
        return min(sized, (width, height)) if fit == "inside" else sized
    ratios = to_width / width, to_height / height
    match fit:
        case "fill":
            return to_width, to_height
        case "cover":
            ratio = max(ratios)
            return max(to_width, round(width * ratio)), max(to_height, round(height * ratio))
        case "contain":
            ratio = min(ratios)
        case "inside":
            ratio = min(*ratios, 1.0)
    return (
        min(to_width, max(1, round(width * ratio))),
        min(to_height, max(1, round(height * ratio))),
    )


def _boxed(
    image: pyvips.Image, width: int, height: int, job: Variant, kind: Format
) -> pyvips.Image:
    if job.fit == "contain":
        return _filled_up(image, width, height, job.gravity, transparent=has_alpha(kind))
    if job.fit != "cover":
        return image
    if job.gravity == "attention":
        found = first_frame(image).smartcrop(width, height, interesting="attention")
        left, top = -found.xoffset, -found.yoffset
    else:
        left, top = _placed(image.width - width, image.get_page_height() - height, job.gravity)
    return each_frame(image, lambda frame: frame.crop(left, top, width, height))


def _filled_up(
    image: pyvips.Image, width: int, height: int, gravity: Gravity, *, transparent: bool
) -> pyvips.Image:
    colour = [255.0] * (image.bands - 1 if image.hasalpha() else image.bands)
    if transparent:
        image = image if image.hasalpha() else image.bandjoin(255)
        colour = [0.0] * image.bands
    elif image.hasalpha():
        image = colours.flat(image)
    left, top = _placed(width - image.width, height - image.get_page_height(), gravity)
    return each_frame(
        image,
        lambda frame: frame.embed(left, top, width, height, extend="background", background=colour),
    )


def _placed(room_across: int, room_down: int, gravity: Gravity) -> tuple[int, int]:
    left = 0 if "west" in gravity else room_across if "east" in gravity else room_across // 2
    top = 0 if "north" in gravity else room_down if "south" in gravity else room_down // 2
    return left, top


def _blurred(image: pyvips.Image, sigma: float) -> pyvips.Image:
    if not image.hasalpha():
        return image.gaussblur(sigma)
    return image.premultiply().gaussblur(sigma).unpremultiply().cast("uchar")
