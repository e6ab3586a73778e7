"""Requests and files become ffmpeg's arguments."""

from pathlib import Path

import msgspec
import pytest

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.errors import MediaRefused
from aiserver.transforms.av.found import Found, Track
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.parts import Plan, Source
from aiserver.transforms.av.plan import plan
from aiserver.transforms.av.requests import (
    AudioFormat,
    ConvertAudio,
    ConvertVideo,
    CropVideo,
    Position,
    Request,
    ScaleVideo,
    TrimVideo,
    VideoFormat,
    WatermarkVideo,
)

VIDEO = Track(index=0, kind="video", codec="h264", end=6.0, width=640, height=360, rate="25")
SOUND = Track(index=1, kind="audio", codec="aac", end=6.0, channels=2, sample_rate=44100)
SECOND = msgspec.structs.replace(SOUND, index=2)
CLIP = Found(container="mov", brand="isom", duration=6.0, size=1000, tracks=(VIDEO, SOUND, SECOND))
PICTURE = Found(
    container="png_pipe",
    size=10,
    tracks=(Track(index=0, kind="video", codec="png", width=200, height=100),),
)
LIMITS = Limits()


def planned(request: Request, found: Found = CLIP, limits: Limits = LIMITS) -> Plan:
    mark = Source(path=Path("/in/mark"), found=PICTURE)
    media = Source(path=Path("/in/clip"), found=found)
    return plan(request, media, Path("/out"), watermark=mark, limits=limits)


def with_video(**changes: object) -> Found:
    video = msgspec.structs.replace(VIDEO, **changes)
    return msgspec.structs.replace(CLIP, tracks=(video, SOUND))


def after(made: Plan, option: str) -> list[str]:
    words = made.arguments
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_files_are_only_named_behind_their_protocol() -> None:
    made = planned(WatermarkVideo())
    assert after(made, "-i") == ["file:/in/clip", "file:/in/mark"]
    assert made.arguments[-1] == "file:/out/result.mp4"
    assert after(made, "-protocol_whitelist") == ["file", "file"]
    assert after(made, "-format_whitelist") == ["mov", "png_pipe"]
    assert "-nostdin" in made.arguments


def test_inputs_are_opened_as_what_they_were_found_to_be() -> None:
    before_input = planned(ConvertVideo(into=VideoFormat.MKV)).arguments
    at = before_input.index("-i")
    assert before_input[at - 2 : at] == ("-f", "mov")


@pytest.mark.parametrize("into", list(VideoFormat))
def test_every_track_is_kept_once(into: VideoFormat) -> None:
    made = planned(ConvertVideo(into=into))
    assert after(made, "-map") == ["0:0", "0:1", "0:2"]
    assert (made.expected.videos, made.expected.audios) == (((640, 360),), 2)


@pytest.mark.parametrize(
    ("into", "kept"),
    [
        (AudioFormat.MP3, ["0:1"]),
        (AudioFormat.WAV, ["0:1"]),
        (AudioFormat.AAC, ["0:1"]),
        (AudioFormat.FLAC, ["0:1"]),
        (AudioFormat.OGG, ["0:1", "0:2"]),
        (AudioFormat.M4A, ["0:1", "0:2"]),
        (AudioFormat.WMA, ["0:1", "0:2"]),
    ],
)
def test_audio_tracks_are_kept_where_the_format_can(into: AudioFormat, kept: list[str]) -> None:
    made = planned(ConvertAudio(into=into))
    assert after(made, "-map") == kept
    assert made.expected.audios == len(kept)


@pytest.mark.parametrize(
    ("window", "filter_"),
    [
        ((100, 100, 500, 300), "crop=500:300:100:60:exact=1"),
        ((0, 0, 640, 360), None),
        ((639, 359, 10, 10), "crop=10:10:630:350:exact=1"),
        ((99999, 5, 10, 10), "crop=10:10:630:5:exact=1"),
        ((3, 3, 101, 51), "crop=100:50:3:3:exact=1"),
    ],
)
def test_window_that_sticks_out_is_moved_inside(
    window: tuple[int, int, int, int], filter_: str | None
) -> None:
    x, y, width, height = window
    (made,) = after(planned(CropVideo(x=x, y=y, width=width, height=height)), "-filter:v:0")
    assert made == ",".join(filter(None, ("scale=640:360", filter_)))


@pytest.mark.parametrize(("width", "height"), [(641, 10), (10, 361), (10000, 10000), (1, 1)])
def test_window_that_cannot_be_cut_is_refused(width: int, height: int) -> None:
    tiny = with_video(width=1, height=1) if width == 1 else CLIP
    with pytest.raises(InvalidRequest, match="Invalid crop dimensions"):
        planned(CropVideo(x=0, y=0, width=width, height=height), tiny)


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (ScaleVideo(width=320), (320, 180)),
        (ScaleVideo(height=180), (320, 180)),
        (ScaleVideo(width=101, height=51), (100, 50)),
        (ScaleVideo(width=101, height=51, into=VideoFormat.WEBM), (101, 51)),
        (ScaleVideo(width=1), (2, 2)),
        (ScaleVideo(width=1, into=VideoFormat.AVI), (1, 1)),
    ],
)
def test_scaling_keeps_the_ratio_and_what_the_codec_needs(
    request_: ScaleVideo, size: tuple[int, int]
) -> None:
    made = planned(request_)
    assert made.expected.videos == (size,)
    assert after(made, "-filter:v:0") == [f"scale={size[0]}:{size[1]},setsar=1"]


def test_scaling_follows_the_displayed_shape() -> None:
    made = planned(ScaleVideo(height=360), with_video(width=720, height=576, aspect="16/11"))
    assert made.expected.videos == ((654, 360),)


def test_side_that_grows_too_large_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Invalid scale dimensions"):
        planned(ScaleVideo(width=7680), with_video(width=100, height=100))


def test_frame_too_large_for_the_format_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="mpeg holds frames of up to 4095"):
        planned(ScaleVideo(width=4096, height=100, into=VideoFormat.MPEG))


@pytest.mark.parametrize(
    ("width", "height", "into", "size"),
    [
        (321, 181, VideoFormat.MP4, (320, 180)),
        (321, 181, VideoFormat.WEBM, (321, 181)),
        (1, 1, VideoFormat.MOV, (2, 2)),
    ],
)
def test_odd_frames_are_made_even_where_needed(
    width: int, height: int, into: VideoFormat, size: tuple[int, int]
) -> None:
    made = planned(ConvertVideo(into=into), with_video(width=width, height=height))
    assert made.expected.videos == (size,)


@pytest.mark.parametrize(
    ("rate", "into", "written"),
    [
        ("25", VideoFormat.MP4, None),
        ("1000", VideoFormat.MP4, "120/1"),
        ("15", VideoFormat.MPEG, "24000/1001"),
        ("30000/1001", VideoFormat.MPEG, "30000/1001"),
        ("100", VideoFormat.MPEG, "60/1"),
        ("1000000/33367", VideoFormat.AVI, "26733/892"),
        (None, VideoFormat.AVI, "25/1"),
        ("0/0", VideoFormat.WMV, "25/1"),
    ],
)
def test_frame_rates_are_what_the_container_can_hold(
    rate: str | None, into: VideoFormat, written: str | None
) -> None:
    made = after(planned(ConvertVideo(into=into), with_video(rate=rate)), "-r:v:0")
    assert made == ([] if written is None else [written])


def test_more_channels_than_a_codec_takes_are_mixed_down() -> None:
    wide = msgspec.structs.replace(SOUND, channels=6, sample_rate=96000)
    found = msgspec.structs.replace(CLIP, tracks=(wide,))
    assert after(planned(ConvertAudio(into=AudioFormat.MP3), found), "-ac:a:0") == ["2"]
    assert after(planned(ConvertAudio(into=AudioFormat.WMA), found), "-ar:a:0") == ["48000"]
    layouts = after(planned(ConvertAudio(into=AudioFormat.M4A), found), "-filter:a:0")
    assert layouts[0].startswith("aformat=channel_layouts=mono|stereo")


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (Position.TOP_LEFT, "10:10"),
        (Position.TOP_RIGHT, "590:10"),
        (Position.BOTTOM_LEFT, "10:330"),
        (Position.BOTTOM_RIGHT, "590:330"),
        (Position.CENTER, "300:170"),
    ],
)
def test_watermark_lies_where_it_was_asked(position: Position, place: str) -> None:
    (graph,) = after(planned(WatermarkVideo(position=position, opacity=0.5)), "-filter_complex")
    assert "scale=40:20,colorchannelmixer=aa=0.5000[mark]" in graph
    assert f"overlay={place}:" in graph


def test_watermark_larger_than_the_frame_is_made_to_fit() -> None:
    (graph,) = after(planned(WatermarkVideo(scale=10)), "-filter_complex")
    assert "scale=620:310," in graph


def test_trim_jumps_only_where_the_file_has_an_index() -> None:
    request = TrimVideo(start="0:01", end="0:05")
    words = planned(request).arguments
    assert words.index("-ss") < words.index("-i")
    words = planned(request, msgspec.structs.replace(CLIP, container="mpegts")).arguments
    assert words.index("-ss") > words.index("-i")
    assert after(planned(request), "-t") == ["4.000000"]


def test_trim_to_a_time_behind_the_end_goes_to_the_end() -> None:
    made = planned(TrimVideo(start="0:01", end="1:00"))
    assert made.length == 5.0
    assert made.expected.least is not None
    assert 4.0 < made.expected.least < 5.0


def test_start_behind_the_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"Invalid start time: this video lasts 6\.000"):
        planned(TrimVideo(start="0:06"))


def test_fast_trim_copies_every_track() -> None:
    made = planned(TrimVideo(start="0:01", end="0:03", fast=True))
    assert after(made, "-c") == ["copy"]
    assert after(made, "-map") == ["0:0", "0:1", "0:2"]


def test_fast_trim_without_an_index_is_an_exact_one() -> None:
    found = msgspec.structs.replace(CLIP, container="mpeg")
    assert "copy" not in planned(TrimVideo(start="1", fast=True), found).arguments


@pytest.mark.parametrize(
    ("container", "brand", "suffix"),
    [
        ("mov", "isom", ".mp4"),
        ("mov", "qt", ".mov"),
        ("matroska", "", ".mkv"),
        ("asf", "", ".wmv"),
        ("mpegts", "", ".mp4"),
        ("gif", "", ".mp4"),
    ],
)
def test_result_keeps_the_container_of_its_source(container: str, brand: str, suffix: str) -> None:
    found = msgspec.structs.replace(CLIP, container=container, brand=brand)
    assert planned(TrimVideo(start="0"), found).container.suffix == suffix


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (msgspec.structs.replace(CLIP, tracks=(SOUND,)), "has no video"),
        (msgspec.structs.replace(CLIP, duration=14401.0), "at most 14400"),
        (msgspec.structs.replace(CLIP, tracks=(VIDEO,) * 33), "more than 32 tracks"),
        (with_video(codec="mss2"), "coded as mss2"),
        (with_video(codec=""), "something unknown"),
        (with_video(width=8193), "at most 8192 pixels"),
        (with_video(width=8192, height=8192), "33177600 in all"),
        (with_video(width=0), "damaged"),
    ],
)
def test_files_beyond_the_limits_are_refused(found: Found, message: str) -> None:
    with pytest.raises(MediaRefused, match=message):
        planned(ConvertVideo(into=VideoFormat.MP4), found)


def test_file_at_the_limits_passes() -> None:
    found = with_video(width=7680, height=4320)
    planned(ConvertVideo(into=VideoFormat.MP4), msgspec.structs.replace(found, duration=14400.0))


def test_sound_of_a_silent_video_is_refused() -> None:
    with pytest.raises(MediaRefused, match="no audio"):
        planned(ConvertAudio(into=AudioFormat.MP3), msgspec.structs.replace(CLIP, tracks=(VIDEO,)))
