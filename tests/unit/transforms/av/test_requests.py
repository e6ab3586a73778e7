"""What is wrong with a request whatever the file is."""

import math

import pytest

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.containers import AUDIOS, VIDEOS
from aiserver.transforms.av.requests import (
    AudioFormat,
    CropVideo,
    Request,
    ScaleVideo,
    TrimVideo,
    VideoFormat,
    WatermarkVideo,
    check,
    format_named,
)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CropVideo(x=-10, y=0, width=5, height=5), "Invalid crop dimensions"),
        (CropVideo(x=0, y=-1, width=5, height=5), "Invalid crop dimensions"),
        (CropVideo(x=0, y=0, width=0, height=5), "Invalid crop dimensions"),
        (CropVideo(x=0, y=0, width=5, height=-5), "Invalid crop dimensions"),
        (ScaleVideo(), "Invalid scale dimensions"),
        (ScaleVideo(width=0), "Invalid scale dimensions"),
        (ScaleVideo(height=0), "Invalid scale dimensions"),
        (ScaleVideo(width=7681), "Invalid scale dimensions"),
        (ScaleVideo(width=10, height=4321), "Invalid scale dimensions"),
        (TrimVideo(start="invalid"), "Invalid start time format"),
        (TrimVideo(start="0:01", end="invalid"), "Invalid end time format"),
        (TrimVideo(start="0:05", end="0:05"), "Invalid end time"),
        (TrimVideo(start="0:05", end="0:01"), "Invalid end time"),
        (WatermarkVideo(opacity=1.1), "Invalid watermark opacity"),
        (WatermarkVideo(opacity=math.nan), "Invalid watermark opacity"),
        (WatermarkVideo(scale=0), "Invalid watermark scale"),
        (WatermarkVideo(scale=math.inf), "Invalid watermark scale"),
        (WatermarkVideo(margin=-1), "Invalid watermark margin"),
    ],
)
def test_impossible_requests_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(request_)


@pytest.mark.parametrize(
    "request_",
    [
        CropVideo(x=0, y=0, width=1, height=1),
        ScaleVideo(width=1),
        ScaleVideo(width=7680, height=4320),
        TrimVideo(start="0", end="-1"),
        WatermarkVideo(opacity=0, scale=10),
    ],
)
def test_requests_at_the_bounds_pass(request_: Request) -> None:
    check(request_)


def test_formats_are_known_by_name_in_any_case() -> None:
    assert format_named(VideoFormat, "MKV") is VideoFormat.MKV
    assert format_named(AudioFormat, "m4a") is AudioFormat.M4A


@pytest.mark.parametrize("name", [None, ""])
def test_missing_format_is_said(name: str | None) -> None:
    with pytest.raises(InvalidRequest, match="No output format provided"):
        format_named(VideoFormat, name)


def test_unknown_format_is_answered_with_the_known() -> None:
    with pytest.raises(InvalidRequest, match="Invalid output format: 'exe' is not one of mp3, wav"):
        format_named(AudioFormat, "exe")


def test_every_format_can_be_written() -> None:
    assert set(VIDEOS) == set(VideoFormat)
    assert set(AUDIOS) == set(AudioFormat)
    assert all(f".{kind.value}" == made.suffix for kind, made in VIDEOS.items())
    assert all(f".{kind.value}" == made.suffix for kind, made in AUDIOS.items())
