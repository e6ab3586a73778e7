"""A result that is not what was asked for is never handed out."""

import msgspec
import pytest

from aiserver.transforms.av.containers import VIDEOS
from aiserver.transforms.av.errors import MediaRefused, TransformFailed
from aiserver.transforms.av.found import Found, Track
from aiserver.transforms.av.parts import Expected
from aiserver.transforms.av.requests import VideoFormat
from aiserver.transforms.av.verify import verify

MP4 = VIDEOS[VideoFormat.MP4]
VIDEO = Track(index=0, kind="video", codec="h264", width=320, height=180)
SOUND = Track(index=1, kind="audio", codec="aac")
GOOD = Found(container="mov", duration=5.0, tracks=(VIDEO, SOUND))
EXPECTED = Expected(videos=((320, 180),), audios=1, least=4.9, most=5.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tracks": (VIDEO, SOUND, SOUND)},
        {"tracks": (VIDEO, VIDEO, SOUND)},
        {"tracks": (msgspec.structs.replace(VIDEO, width=318), SOUND)},
        {"container": "matroska"},
        {"duration": 5.2},
    ],
)
def test_wrong_result_is_the_servers_failure(wrong: dict[str, object]) -> None:
    found = msgspec.structs.replace(GOOD, **wrong)
    with pytest.raises(TransformFailed, match="wrong file"):
        verify(found, MP4, EXPECTED, reached=5.0)


@pytest.mark.parametrize("left", [(VIDEO,), (SOUND,), ()])
def test_track_that_is_missing_could_not_be_decoded(left: tuple[Track, ...]) -> None:
    with pytest.raises(MediaRefused, match="not all of the tracks"):
        verify(msgspec.structs.replace(GOOD, tracks=left), MP4, EXPECTED, reached=5.0)


def test_short_result_says_that_the_source_was_cut() -> None:
    found = msgspec.structs.replace(GOOD, duration=3.0)
    with pytest.raises(MediaRefused, match=r"cut short or damaged: only 3\.00"):
        verify(found, MP4, EXPECTED, reached=5.0)


def test_right_result_passes() -> None:
    verify(GOOD, MP4, EXPECTED, reached=0.0)


def test_untimed_result_is_held_to_what_was_written() -> None:
    found = msgspec.structs.replace(GOOD, duration=1.0, exact=False)
    verify(found, MP4, EXPECTED, reached=5.0)
    with pytest.raises(MediaRefused):
        verify(found, MP4, EXPECTED, reached=2.0)
