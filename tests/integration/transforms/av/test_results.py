"""Every transform by the real ffmpeg, its results read by another reader."""

import asyncio
from pathlib import Path

import pytest

from aiserver.transforms.av.requests import (
    AudioFormat,
    ConvertAudio,
    ConvertVideo,
    CropVideo,
    Position,
    ScaleVideo,
    TrimVideo,
    VideoFormat,
    WatermarkVideo,
)
from clips import FAST_H264, Clips, Transforming, first_sound, grey, pictures, seen

PATIENCE = 60.0
VIDEO_CODECS = {
    VideoFormat.MP4: ("h264", "aac"),
    VideoFormat.MOV: ("h264", "aac"),
    VideoFormat.WEBM: ("vp9", "opus"),
    VideoFormat.MKV: ("h264", "aac"),
    VideoFormat.AVI: ("mpeg4", "mp3"),
    VideoFormat.WMV: ("wmv2", "wmav2"),
    VideoFormat.MPEG: ("mpeg2video", "mp2"),
    VideoFormat.OGG: ("theora", "vorbis"),
}
AUDIO_CODECS = {
    AudioFormat.MP3: "mp3",
    AudioFormat.WAV: "pcm_s16le",
    AudioFormat.AAC: "aac",
    AudioFormat.FLAC: "flac",
    AudioFormat.OGG: "vorbis",
    AudioFormat.M4A: "aac",
    AudioFormat.WMA: "wmav2",
}


@pytest.mark.parametrize("into", list(VideoFormat))
async def test_video_keeps_every_track_in_every_format(
    clips: Clips, transformed: Transforming, into: VideoFormat
) -> None:
    made = await transformed(ConvertVideo(into=into), clips.two_tongued())
    video, audio = VIDEO_CODECS[into]
    found = seen(made.path)
    assert found.codecs == (video, audio, audio)
    assert found.sizes == ((160, 90),)
    assert found.seconds == pytest.approx(1.0, abs=0.15)
    assert made.path.suffix == f".{into.value}"


@pytest.mark.parametrize("into", list(AudioFormat))
async def test_audio_keeps_its_length_in_every_format(
    clips: Clips, transformed: Transforming, into: AudioFormat
) -> None:
    made = await transformed(ConvertAudio(into=into), clips.two_tongued())
    several = into in (AudioFormat.OGG, AudioFormat.M4A, AudioFormat.WMA)
    found = seen(made.path)
    assert found.codecs == (AUDIO_CODECS[into],) * (2 if several else 1)
    assert found.seconds == pytest.approx(1.0, abs=0.2)


async def test_crop_that_sticks_out_is_moved_inside(
    clips: Clips, transformed: Transforming
) -> None:
    clip = clips.moving("large.mp4", size="640x360", seconds=0.4)
    made = await transformed(CropVideo(x=100, y=100, width=500, height=300), clip)
    assert seen(made.path).sizes == ((500, 300),)


async def test_crop_shows_its_window(clips: Clips, transformed: Transforming) -> None:
    half = "color=black:s=80x90:r=25:d=0.2,pad=160:90:0:0:white"
    clip = clips.made("half.mp4", "-f", "lavfi", "-i", half, *FAST_H264)
    made = await transformed(CropVideo(x=70, y=0, width=20, height=90), clip)
    frame = next(pictures(made.path))
    assert grey(frame, 4, 45) < 60
    assert grey(frame, 15, 45) > 200


async def test_turned_video_is_cut_and_scaled_as_displayed(
    clips: Clips, transformed: Transforming
) -> None:
    made = await transformed(CropVideo(x=0, y=60, width=90, height=100), clips.turned())
    assert seen(made.path).sizes == ((90, 100),)
    made = await transformed(ScaleVideo(width=45), clips.turned())
    assert seen(made.path).sizes == ((44, 80),)


async def test_odd_frames_are_kept_where_the_codec_can(
    clips: Clips, transformed: Transforming
) -> None:
    made = await transformed(ConvertVideo(into=VideoFormat.WEBM), clips.odd())
    assert seen(made.path).sizes == ((161, 91),)
    made = await transformed(ConvertVideo(into=VideoFormat.MP4), clips.odd())
    assert seen(made.path).sizes == ((160, 90),)


async def test_silent_video_stays_silent(clips: Clips, transformed: Transforming) -> None:
    made = await transformed(ConvertVideo(into=VideoFormat.MKV), clips.silent())
    assert seen(made.path).kinds == ("video",)


async def test_cover_picture_is_no_video(clips: Clips, transformed: Transforming) -> None:
    picture = clips.made("cover.png", "-f", "lavfi", "-i", "color=red:s=40x20", "-frames:v", "1")
    song = clips.made(
        "song.mp3",
        *("-i", str(clips.plain()), "-i", str(picture), "-map", "0:a", "-map", "1:v"),
        *("-c:a", "libmp3lame", "-c:v", "copy", "-disposition:v", "attached_pic"),
    )
    made = await transformed(ConvertAudio(into=AudioFormat.M4A), song)
    assert seen(made.path).kinds == ("audio",)


async def test_size_that_changes_midway_is_held(clips: Clips, transformed: Transforming) -> None:
    parts = [clips.moving(f"part{w}.ts", size=f"{w}x90", seconds=0.4) for w in (160, 128)]
    joined = clips.folder / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    made = await transformed(ConvertVideo(into=VideoFormat.MP4), joined)
    assert {(frame.width, frame.height) for frame in pictures(made.path)} == {(160, 90)}
    assert seen(made.path).seconds == pytest.approx(0.8, abs=0.15)


async def test_trim_is_five_seconds(clips: Clips, transformed: Transforming) -> None:
    made = await transformed(TrimVideo(start="00:01", end="00:06"), clips.clock())
    assert seen(made.path).seconds == pytest.approx(5.0, abs=0.1)


# MP3 in AVI begins late by an encoder's delay, here that of two.
@pytest.mark.parametrize(
    ("suffix", "late"), [(".mp4", 0.03), (".mkv", 0.03), (".ts", 0.03), (".avi", 0.06)]
)
async def test_trim_is_exact_to_the_frame_and_in_sync(
    clips: Clips, transformed: Transforming, suffix: str, late: float
) -> None:
    clock = clips.clock()
    recoded = ("-c:v", "mpeg4", "-q:v", "1", "-c:a", "mp3")
    words = recoded if suffix == ".avi" else ("-c", "copy")
    clip = clips.made(f"clock{suffix}", "-i", str(clock), *words) if suffix != ".mp4" else clock
    made = await transformed(TrimVideo(start="0:01.4", end="3"), clip)
    frames = list(pictures(made.path))
    assert grey(frames[0], 32, 18) == pytest.approx(brightness_of(35), abs=1)
    assert len(frames) == pytest.approx(40, abs=1)
    assert first_sound(made.path) == pytest.approx(0.6, abs=late)


def brightness_of(number: int) -> float:
    """What a frame of the clock looks like."""
    return 16 + 1.5 * number


async def test_fast_trim_copies_from_a_keyframe(clips: Clips, transformed: Transforming) -> None:
    made = await transformed(TrimVideo(start="3", end="4", fast=True), clips.clock())
    frames = list(pictures(made.path))
    assert frames[0].key_frame
    assert grey(frames[0], 32, 18) == pytest.approx(brightness_of(50), abs=1)
    assert 1.0 <= seen(made.path).seconds <= 2.2


async def test_watermark_is_where_it_belongs_to_the_end(
    clips: Clips, transformed: Transforming
) -> None:
    clip = clips.made(
        "black.mp4", "-f", "lavfi", "-i", "color=black:s=160x90:r=25:d=0.6", *FAST_H264
    )
    mark = clips.made("mark.png", "-f", "lavfi", "-i", "color=white:s=100x50", "-frames:v", "1")
    made = await transformed(WatermarkVideo(position=Position.TOP_LEFT, opacity=0.5), clip, mark)
    frames = list(pictures(made.path))
    assert len(frames) == 15
    for frame in (frames[0], frames[-1]):
        assert 100 < grey(frame, 20, 15) < 160
        assert grey(frame, 4, 15) < 30
        assert grey(frame, 40, 15) < 30


async def test_progress_rises_while_ffmpeg_runs(clips: Clips, transformed: Transforming) -> None:
    percents: asyncio.Queue[int] = asyncio.Queue()
    request = ConvertVideo(into=VideoFormat.WEBM)
    work = asyncio.ensure_future(transformed(request, clips.long(), report=percents.put_nowait))
    async with asyncio.timeout(PATIENCE):
        told = [await percents.get() for _ in range(3)]
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert told == sorted(set(told))
    assert told[-1] < 100


async def test_progress_ends_with_all_of_it(clips: Clips, transformed: Transforming) -> None:
    percents: list[int] = []
    await transformed(ConvertVideo(into=VideoFormat.WEBM), clips.plain(), report=percents.append)
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


@pytest.mark.parametrize("name", ['-i "%d" file:x,y.mp4', "ünï cödé\n.mp4", "av.py"])
async def test_names_are_only_names(
    clips: Clips, transformed: Transforming, tmp_path: Path, name: str
) -> None:
    clip = tmp_path / name
    clip.write_bytes(clips.plain().read_bytes())
    made = await transformed(ConvertAudio(into=AudioFormat.WAV), clip)
    assert seen(made.path).kinds == ("audio",)


@pytest.mark.long
@pytest.mark.parametrize("into", list(VideoFormat))
@pytest.mark.parametrize("container", list(VideoFormat))
async def test_every_format_becomes_every_other(
    clips: Clips, transformed: Transforming, container: VideoFormat, into: VideoFormat
) -> None:
    first = await transformed(ConvertVideo(into=container), clips.two_tongued())
    source = first.path.rename(first.path.with_name("source"))
    for request in (
        ConvertVideo(into=into),
        CropVideo(x=11, y=7, width=101, height=51, into=into),
        ScaleVideo(height=45, into=into),
        WatermarkVideo(into=into),
    ):
        mark = clips.made("mark.png", "-f", "lavfi", "-i", "color=white:s=100x50", "-frames:v", "1")
        made = await transformed(request, source, mark)
        assert seen(made.path).codecs == (VIDEO_CODECS[into][0], *(VIDEO_CODECS[into][1],) * 2)
    for fast in (False, True):
        made = await transformed(TrimVideo(start="0.2", end="0.8", fast=fast), source)
        assert 0.5 <= seen(made.path).seconds <= (1.1 if fast else 0.75)
