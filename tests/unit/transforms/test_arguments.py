"""Raw arguments become the request of the task's own operation, or say what is wrong with them."""

from typing import Any

import msgspec
import pytest

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.arguments import Task, asked
from aiserver.transforms.av import requests as av
from aiserver.transforms.operations import (
    ConvertImage,
    CropImage,
    ImageOutputFormat,
    ScaleImage,
    WatermarkImage,
    WatermarkPosition,
)
from aiserver.transforms.task_operations import MediaTransformArgs
from aiserver.transforms.tasks import part_of

WINDOW = {"cropX": 1, "cropY": 2, "cropWidth": 3, "cropHeight": 4}


def task(kind: str | None = None, **members: Any) -> Task:
    named = {"taskType": kind} if kind else {}
    return asked(msgspec.convert({**named, **members}, MediaTransformArgs))


def test_task_without_a_type_scales_a_video() -> None:
    assert task(scaleWidth=320) == av.ScaleVideo(width=320)


@pytest.mark.parametrize(
    ("kind", "members", "made", "part"),
    [
        ("ImageScale", {"scaleHeight": 5}, ScaleImage(height=5), "image"),
        (
            "ImageScale",
            {"scaleWidth": 5, "imageOutputFormat": "png"},
            ScaleImage(width=5, output_format=ImageOutputFormat.PNG),
            "image",
        ),
        (
            "ImageConvert",
            {"imageOutputFormat": "webp"},
            ConvertImage(output_format=ImageOutputFormat.WEBP),
            "image",
        ),
        ("ImageCrop", WINDOW, CropImage(x=1, y=2, width=3, height=4), "image"),
        ("WatermarkImage", {}, WatermarkImage(), "image"),
        (
            "WatermarkImage",
            {"watermarkPosition": "bottom_right", "watermarkScale": " 0.25 "},
            WatermarkImage(position=WatermarkPosition.BOTTOM_RIGHT, watermark_scale=0.25),
            "image",
        ),
        (
            "VideoScale",
            {"scaleWidth": 8, "scaleHeight": 6, "outputFormat": "mkv"},
            av.ScaleVideo(width=8, height=6, into=av.VideoFormat.MKV),
            "video",
        ),
        (
            "VideoConvert",
            {"outputFormat": "webm", "videoCodec": "libvpx-vp9", "audioCodec": "Opus"},
            av.ConvertVideo(into=av.VideoFormat.WEBM),
            "video",
        ),
        ("VideoCrop", WINDOW, av.CropVideo(x=1, y=2, width=3, height=4), "video"),
        ("VideoCut", {"cutEnd": -1}, av.TrimVideo(start="0.000000"), "video"),
        (
            "VideoCut",
            {"cutStart": 1.1, "cutEnd": 2, "outputFormat": "mov", "videoCodec": "h264"},
            av.TrimVideo(start="1.100000", end="2.000000", into=av.VideoFormat.MOV),
            "video",
        ),
        ("WatermarkVideo", {}, av.WatermarkVideo(), "video"),
        (
            "WatermarkVideo",
            {"watermarkPosition": "Center", "watermarkScale": "10"},
            av.WatermarkVideo(position=av.Position.CENTER, scale=10.0),
            "video",
        ),
        (
            "AudioConvert",
            {"outputFormat": "mp3", "audioCodec": "libmp3lame"},
            av.ConvertAudio(into=av.AudioFormat.MP3),
            "audio",
        ),
        ("AudioCut", {"cutStart": 999_998.5}, av.TrimAudio(start="999998.500000"), "audio"),
        (
            "AudioCut",
            {"cutStart": 0.5, "cutEnd": 999_999, "outputFormat": "wav"},
            av.TrimAudio(start="0.500000", end="999999.000000", into=av.AudioFormat.WAV),
            "audio",
        ),
    ],
)
def test_task_makes_the_request_of_its_operation(
    kind: str, members: dict[str, Any], made: Task, part: str
) -> None:
    assert task(kind, **members) == made
    assert part_of(made) == part


@pytest.mark.parametrize(
    ("kind", "members", "words"),
    [
        ("ImageConvert", {"outputFormat": "gif"}, "set imageOutputFormat"),
        ("ImageCrop", {"cropX": 1}, "set cropWidth and cropHeight"),
        ("VideoCrop", {"cropWidth": 1}, "set cropWidth and cropHeight"),
        ("VideoConvert", {}, "No output format provided"),
        ("VideoConvert", {"outputFormat": "gif"}, "'gif' is not one of mp4, "),
        ("VideoScale", {"scaleWidth": 2, "outputFormat": "mp3"}, "'mp3' is not one of mp4, "),
        ("AudioConvert", {}, "No output format provided"),
        ("AudioConvert", {"outputFormat": "mp4"}, "'mp4' is not one of mp3, "),
        ("VideoCut", {"cutStart": 5, "cutEnd": 5}, "cutEnd is after cutStart"),
        ("AudioCut", {"cutStart": 5, "cutEnd": 4.9}, "cutEnd is after cutStart"),
        ("AudioCut", {"cutEnd": 0}, "cutEnd is after cutStart"),
        ("AudioCut", {"cutEnd": -2}, "or -1 for the end"),
        ("AudioCut", {"cutEnd": 999_999.5}, "at most 999999 seconds"),
        ("AudioCut", {"cutEnd": float("nan")}, "cutEnd is after cutStart"),
        ("AudioCut", {"cutStart": -0.1}, "cutStart is 0 to 999999"),
        ("AudioCut", {"cutStart": float("nan")}, "cutStart is 0 to 999999"),
        ("AudioCut", {"cutStart": float("inf")}, "cutStart is 0 to 999999"),
        (
            "WatermarkVideo",
            {"watermarkPosition": "main_w-overlay_w-10:10"},
            "one of TopLeft, TopRight, BottomLeft, BottomRight, Center",
        ),
        ("WatermarkImage", {"watermarkScale": "0"}, "Invalid watermark scale"),
        ("WatermarkImage", {"watermarkScale": "10.1"}, "Invalid watermark scale"),
        ("WatermarkVideo", {"watermarkScale": "nan"}, "Invalid watermark scale"),
        ("WatermarkVideo", {"watermarkScale": "iw*0.2:-1"}, "Invalid watermark scale"),
        ("VideoConvert", {"outputFormat": "mp4", "videoCodec": "hevc"}, "written with h264"),
        ("VideoConvert", {"outputFormat": "mp4", "audioCodec": "copy"}, "written with aac"),
        ("VideoScale", {"videoCodec": "h264"}, "without an outputFormat"),
        ("AudioConvert", {"outputFormat": "mp3", "videoCodec": "h264"}, "chosen for mp3"),
        ("AudioCut", {"audioBitrate": "320k"}, "audioBitrate and audioSampleRate"),
        ("VideoScale", {"audioSampleRate": 8000}, "audioBitrate and audioSampleRate"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(
    kind: str, members: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        task(kind, **members)


def test_arguments_of_other_tasks_say_nothing() -> None:
    args = {"cropX": -5, "cutEnd": 0, "watermarkPosition": "0:0", "audioCodec": "x"}
    assert task("ImageScale", scaleWidth=4, **args) == ScaleImage(width=4)
