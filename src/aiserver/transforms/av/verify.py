"""Holds a result against what was asked for: a wrong one is never handed out."""

from aiserver.transforms.av.containers import Container
from aiserver.transforms.av.errors import MediaRefused, TransformFailed
from aiserver.transforms.av.found import Found
from aiserver.transforms.av.parts import Expected


def verify(found: Found, container: Container, expected: Expected, *, reached: float) -> None:
    """Raises TransformFailed for wrong tracks, MediaRefused where the source was damaged.

    `reached`: the seconds that ffmpeg says it wrote, for a file that does not say so itself.
    """
    if len(found.videos) < len(expected.videos) or len(found.audios) < expected.audios:
        raise MediaRefused(
            "This file is damaged: not all of the tracks that it says it holds can be decoded"
        )
    problem = _wrong_tracks(found, container, expected)
    if problem is not None:
        raise TransformFailed(
            "The transform made a wrong file, which was thrown away", detail=problem
        )
    lasts = found.duration if found.exact and found.duration is not None else reached
    if expected.least is not None and lasts < expected.least:
        raise MediaRefused(
            f"This file is cut short or damaged: only {lasts:.2f} seconds of it could be "
            f"read, not {expected.least:.2f} or more"
        )
    if expected.most is not None and lasts > expected.most:
        raise TransformFailed(
            "The transform made a wrong file, which was thrown away",
            detail=f"it lasts {lasts} seconds, not {expected.most} at most",
        )


def _wrong_tracks(found: Found, container: Container, expected: Expected) -> str | None:
    if found.container != container.reads_as:
        return f"it reads as {found.container}, not {container.reads_as}"
    sizes = tuple((video.width, video.height) for video in found.videos)
    if sizes != expected.videos:
        return f"its videos are {sizes}, not {expected.videos}"
    if len(found.audios) != expected.audios:
        return f"it has {len(found.audios)} audio tracks, not {expected.audios}"
    return None
