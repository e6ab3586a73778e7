"""Cuts of sounds by the real ffmpeg, sample by sample as another reader finds them."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.errors import MediaRefused
from aiserver.transforms.av.requests import AudioFormat, TrimAudio, TrimVideo, VideoFormat
from clips import Clips, Transforming, seen

RATE = 44_100
# A tone that rises: no two moments of it are alike.
RISING = f"aevalsrc=0.5*sin(2*PI*(200*t+150*t*t)):d=4:s={RATE}"
# The tone of a file that tells nothing of its encoder's delay comes so many samples late.
CODECS: dict[str, tuple[tuple[str, ...], int]] = {
    "wav": ((), 0),
    "flac": ((), 0),
    "mp3": (("-q:a", "2"), 0),
    "m4a": (("-c:a", "aac"), 0),
    "ogg": (("-c:a", "libvorbis", "-q:a", "5"), 0),
    "aac": ((), 1024),
}


def samples(path: Path) -> NDArray[np.float64]:
    """The first channel of a file's first sound, -1 to 1."""
    resampler = av.AudioResampler(format="fltp")
    with av.open(str(path)) as container:
        frames = [each for f in container.decode(audio=0) for each in resampler.resample(f)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float64)


def rising(clips: Clips, ending: str) -> Path:
    words = CODECS[ending][0]
    return clips.made(f"rising.{ending}", "-f", "lavfi", "-i", RISING, *words)


def offset(found: NDArray[np.float64], whole: NDArray[np.float64], start: int) -> int:
    """How many samples after `start` in the whole the found ones begin."""
    first, count = 1000, 8000
    piece = found[first : first + count]
    near = range(-1500, 1501)
    at = start + first
    far = [np.abs(whole[at + shift : at + shift + count] - piece).mean() for shift in near]
    return near[int(np.argmin(far))]


@pytest.mark.parametrize("ending", list(CODECS))
async def test_cut_is_exact_to_the_sample(
    clips: Clips, transformed: Transforming, ending: str
) -> None:
    made = await transformed(
        TrimAudio(start="1.1", end="0:02.35", into=AudioFormat.WAV), rising(clips, ending)
    )
    found, whole = samples(made.path), samples(rising(clips, "wav"))
    assert len(found) == round(1.25 * RATE)
    assert offset(found, whole, round(1.1 * RATE)) == -CODECS[ending][1]


async def test_cut_of_a_lossless_sound_is_its_very_samples(
    clips: Clips, transformed: Transforming
) -> None:
    whole = samples(rising(clips, "flac"))
    made = await transformed(TrimAudio(start="0.5", end="0.75"), rising(clips, "flac"))
    assert made.suffix == ".flac"
    assert np.array_equal(samples(made.path), whole[22_050:33_075])


async def test_cut_without_an_end_goes_to_it(clips: Clips, transformed: Transforming) -> None:
    whole = samples(rising(clips, "wav"))
    for end in (None, "-1", "60"):
        made = await transformed(TrimAudio(start="3.5", end=end), rising(clips, "wav"))
        assert np.array_equal(samples(made.path), whole[round(3.5 * RATE) :])


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp3", "mp3"), ("m4a", "aac"), ("ogg", "vorbis"), ("aac", "aac"), ("wav", "pcm_s16le")],
)
async def test_cut_sound_keeps_its_format(
    clips: Clips, transformed: Transforming, ending: str, codec: str
) -> None:
    made = await transformed(TrimAudio(start="1", end="2"), rising(clips, ending))
    found = seen(made.path)
    assert (made.suffix, found.codecs) == (f".{ending}", (codec,))
    assert found.seconds == pytest.approx(1.0, abs=0.07)


async def test_cut_of_a_videos_sound_keeps_every_track(
    clips: Clips, transformed: Transforming
) -> None:
    made = await transformed(TrimAudio(start="0.2", end="0.7"), clips.two_tongued())
    assert (made.suffix, seen(made.path).codecs) == (".m4a", ("aac", "aac"))


async def test_cut_that_cannot_be_is_refused(clips: Clips, transformed: Transforming) -> None:
    with pytest.raises(InvalidRequest, match=r"this sound lasts 4\.000 seconds"):
        await transformed(TrimAudio(start="4"), rising(clips, "wav"))
    with pytest.raises(MediaRefused, match="has no audio"):
        await transformed(TrimAudio(start="0"), clips.silent())
    with pytest.raises(InvalidRequest, match="after the start"):
        await transformed(TrimAudio(start="2", end="1"), rising(clips, "wav"))


async def test_trimmed_video_may_change_its_format(clips: Clips, transformed: Transforming) -> None:
    made = await transformed(TrimVideo(start="0.2", end="0.6", into=VideoFormat.MKV), clips.plain())
    found = seen(made.path)
    assert (made.suffix, found.codecs) == (".mkv", ("h264", "aac"))
    assert found.seconds == pytest.approx(0.4, abs=0.1)
    with pytest.raises(InvalidRequest, match="keeps the format"):
        await transformed(TrimVideo(start="0", fast=True, into=VideoFormat.MKV), clips.plain())
