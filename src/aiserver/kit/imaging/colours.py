"""Colours that every reader shows alike: sRGB or grey, from whatever a file has."""

import pyvips

from aiserver.kit.imaging.errors import ImageRefused

_UNREADABLE = "The image's colours cannot be read as RGB, CMYK or grey."
_PLAIN = ("srgb", "rgb", "b-w", "rgb16", "grey16")
_PROFILE = "icc-profile-data"
# The bands that colours have, without and with alpha.
_BANDS = {
    "srgb": (3, 4),
    "rgb": (3, 4),
    "rgb16": (3, 4),
    "scrgb": (3, 4),
    "lab": (3, 4),
    "labs": (3, 4),
    "xyz": (3, 4),
    "b-w": (1, 2),
    "grey16": (1, 2),
    "cmyk": (4, 5),
}


def refuse_unreadable(image: pyvips.Image) -> None:
    """Raises ImageRefused unless its bands are those of colours that every operation knows."""
    if image.bands not in _BANDS.get(str(image.interpretation), ()):
        raise ImageRefused(_UNREADABLE, code="UnsupportedImage")


def plain(image: pyvips.Image, *, keep_profile: bool) -> pyvips.Image:
    """RGB or grey; with `keep_profile` in the colour space that its own profile names."""
    if str(image.interpretation) in _PLAIN:
        if keep_profile or not has_profile(image):
            return image
        return _by_profile(image)
    return _by_profile(image) if has_profile(image) else _by_space(image)


def srgb(image: pyvips.Image) -> pyvips.Image:
    """Three bands of 8 bits in sRGB, and alpha if there was."""
    converted = eight_bits(plain(image, keep_profile=False))
    return converted if converted.bands >= 3 else _by_space(converted)


def eight_bits(image: pyvips.Image) -> pyvips.Image:
    """The same in 8 bits a channel; the image is plain."""
    if image.format == "uchar":
        return image
    space = "srgb" if image.bands >= 3 else "b-w"
    return image.colourspace(space).cast("uchar")


def has_profile(image: pyvips.Image) -> bool:
    """Whether its colours mean what a profile says; those of CMYK always do."""
    return bool(image.get_typeof(_PROFILE)) or image.interpretation == "cmyk"


def without_profile(image: pyvips.Image) -> pyvips.Image:
    """For an image in sRGB, which is what readers take one without a profile for."""
    bare = image.copy()
    if bare.get_typeof(_PROFILE):
        bare.remove(_PROFILE)
    return bare


def flat(image: pyvips.Image) -> pyvips.Image:
    """On white where it was transparent; the image has 8 bits."""
    return image.flatten(background=[255.0]) if image.hasalpha() else image


def _by_profile(image: pyvips.Image) -> pyvips.Image:
    fallback = "cmyk" if image.interpretation == "cmyk" else "srgb"
    try:
        converted = image.icc_transform("srgb", embedded=True, input_profile=fallback)
    except pyvips.Error:
        return _by_space(image)
    return without_profile(converted)


def _by_space(image: pyvips.Image) -> pyvips.Image:
    try:
        return image.colourspace("srgb")
    except pyvips.Error as error:
        raise ImageRefused(_UNREADABLE, code="UnsupportedImage") from error
