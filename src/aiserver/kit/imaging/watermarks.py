"""Lays a picture or a text over every frame of another picture."""

import pyvips

from aiserver.kit.imaging import colours, texts
from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Limits, Position, Watermark
from aiserver.kit.imaging.pictures import opened


def marked(image: pyvips.Image, job: Watermark, limits: Limits) -> pyvips.Image:
    """The image in sRGB with its mark. Raises ImageRefused, for the mark's file too."""
    base = colours.srgb(image)
    width, height = base.width, base.get_page_height()
    mark = _faded(_mark(job, width, height, limits), job.opacity)
    if job.tiled:
        layer = _tiled(mark, width, height, job.margin)
    else:
        left, top = _corner(width - mark.width, height - mark.height, job.margin, job.position)
        layer = mark.embed(left, top, width, height)
    frames = base.height // height
    # Composing always gives alpha.
    result = base.composite2(layer.replicate(1, frames), "over")
    return result if base.hasalpha() else result.extract_band(0, n=3)


def _mark(job: Watermark, width: int, height: int, limits: Limits) -> pyvips.Image:
    """Four bands, no larger than fits."""
    room = max(1, width - 2 * job.margin), max(1, height - 2 * job.margin)
    if job.text:
        return texts.drawn(job.text, max(8.0, min(width, height) / 20) * job.scale, room)
    if not job.mark:
        raise ImageRefused("No watermark image file provided", code="NoWatermark")
    with opened(job.mark, limits) as picture:
        wanted = picture.width * job.scale, picture.height * job.scale
        ratio = min(1.0, room[0] / wanted[0], room[1] / wanted[1])
        mark = picture.sized(
            max(1, round(wanted[0] * ratio)), max(1, round(wanted[1] * ratio)), frames=1
        )
        mark = colours.srgb(mark)
        return (mark if mark.hasalpha() else mark.bandjoin(255)).copy_memory()


def _faded(mark: pyvips.Image, opacity: float) -> pyvips.Image:
    return mark.linear([1.0, 1.0, 1.0, opacity], [0.0] * 4, uchar=True)


def _tiled(mark: pyvips.Image, width: int, height: int, gap: int) -> pyvips.Image:
    cell = mark.embed(0, 0, mark.width + gap, mark.height + gap).copy_memory()
    return cell.replicate(-(-width // cell.width), -(-height // cell.height)).crop(
        0, 0, width, height
    )


def _corner(room_across: int, room_down: int, margin: int, position: Position) -> tuple[int, int]:
    """Where the mark begins; a margin that there is no room for shrinks."""
    if position == "Center":
        return room_across // 2, room_down // 2
    across, down = min(margin, room_across // 2), min(margin, room_down // 2)
    return (
        across if "Left" in position else room_across - across,
        down if "Top" in position else room_down - down,
    )
