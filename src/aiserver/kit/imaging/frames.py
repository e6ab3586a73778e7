"""Frames, which libvips keeps one below another in a single image."""

from collections.abc import Callable

import pyvips


def each_frame(image: pyvips.Image, change: Callable[[pyvips.Image], pyvips.Image]) -> pyvips.Image:
    """The image with every frame changed alike; delays and loops stay."""
    height = image.get_page_height()
    count = image.height // height
    if count == 1:
        return change(image)
    pages = [change(image.crop(0, at * height, image.width, height)) for at in range(count)]
    joined = pyvips.Image.arrayjoin(pages, across=1).copy()
    joined.set_type(pyvips.GValue.gint_type, "page-height", pages[0].height)
    return joined


def first_frame(image: pyvips.Image) -> pyvips.Image:
    return image.crop(0, 0, image.width, image.get_page_height())
