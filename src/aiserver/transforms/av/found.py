"""What a file turned out to hold."""

from fractions import Fraction

import msgspec


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """One video or audio stream.

    `width` and `height` are as displayed, after the rotation. `aspect` is a pixel's width over its
    height. `rate` is frames a second as "num/den". `end` is seconds after the start of the file.
    """

    index: int
    kind: str
    codec: str
    end: float | None = None
    width: int = 0
    height: int = 0
    rotation: int = 0
    aspect: str = "1/1"
    rate: str | None = None
    channels: int = 0
    sample_rate: int = 0

    def frames_a_second(self) -> Fraction | None:
        """None where the file does not say."""
        return _fraction(self.rate)

    def pixel_aspect(self) -> Fraction:
        """1 where the file does not say."""
        return _fraction(self.aspect) or Fraction(1)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One file: `container` is the demuxer's name, `brand` what the file calls itself.

    `duration` is in seconds; one that is not `exact` was estimated from the bit rate. `size` is in
    bytes. Cover pictures, subtitles and data are not tracks.
    """

    container: str
    brand: str = ""
    duration: float | None = None
    exact: bool = True
    size: int = 0
    tracks: tuple[Track, ...] = ()

    @property
    def videos(self) -> tuple[Track, ...]:
        return tuple(track for track in self.tracks if track.kind == "video")

    @property
    def audios(self) -> tuple[Track, ...]:
        return tuple(track for track in self.tracks if track.kind == "audio")


def lasting(found: Found, tracks: tuple[Track, ...]) -> float | None:
    """Seconds that these tracks of the file last; the file's own where one does not say."""
    ends = [track.end for track in tracks]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else found.duration


def _fraction(text: str | None) -> Fraction | None:
    try:
        value = Fraction(text or "0")
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None
