"""The format of a variant that leaves it open: what the caller's Accept header takes."""

from aiserver.kit.imaging.jobs import Format

# A header of any length is not worth reading to its end.
_MOST_TYPES = 64
# The best first; of a source with several frames only webp keeps them.
_BY_SIZE: tuple[tuple[str, Format], ...] = (
    ("image/avif", "avif"),
    ("image/webp", "webp"),
    ("image/jpeg", "jpg"),
)
_FOR_FRAMES = (_BY_SIZE[1], _BY_SIZE[0], _BY_SIZE[2])
_ANIMATED = ("image/gif", "image/webp", "image/avif")


def format_for(accept: str, *, source: str) -> Format:
    """webp unless the header names a better one, or leaves webp out; `source` is a media type."""
    taken = _taken(accept)
    for media_type, found in _FOR_FRAMES if source in _ANIMATED else _BY_SIZE:
        if taken.get(media_type, 0.0) > 0:
            return found
        any_image = taken.get("image/*", taken.get("*/*", 0.0)) > 0
        if found == "webp" and any_image and media_type not in taken:
            return found
    return "webp"


def _taken(accept: str) -> dict[str, float]:
    """How much each media type is liked, 0 to 1."""
    found: dict[str, float] = {}
    for item in accept.split(",", _MOST_TYPES)[:_MOST_TYPES]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            found[name] = float(quality)
        except ValueError:
            found[name] = 0.0
    return found
