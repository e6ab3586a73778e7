"""The raw arguments of a task become the request that the task's own operation would make."""

import re
from enum import Enum
from typing import TypeVar

from aiserver.contract.errors import InvalidRequest
from aiserver.contract.spelling import fold
from aiserver.transforms.av import requests as av
from aiserver.transforms.av.containers import AUDIOS, VIDEOS, Container
from aiserver.transforms.operations import (
    ConvertImage,
    CropImage,
    ImageRequest,
    ScaleImage,
    WatermarkImage,
    WatermarkPosition,
)
from aiserver.transforms.task_operations import MediaTransformArgs
from aiserver.transforms.task_operations import MediaTransformTaskType as Kind

Task = ImageRequest | av.Request
Format = TypeVar("Format", av.VideoFormat, av.AudioFormat)
LATEST_SECONDS = 999_999
_SCALE = re.compile(r"\d{1,2}(\.\d{1,6})?", re.ASCII)
# Codecs whose encoder has another name.
_CODECS = {
    "libx264": "h264",
    "libvpx-vp9": "vp9",
    "libmp3lame": "mp3",
    "libopus": "opus",
}


def asked(args: MediaTransformArgs) -> Task:
    """Raises InvalidRequest for what cannot be carried out, whatever the file is."""
    match args.task_type or Kind.VIDEO_SCALE:
        case (
            Kind.IMAGE_SCALE | Kind.IMAGE_CONVERT | Kind.IMAGE_CROP | Kind.WATERMARK_IMAGE
        ) as kind:
            return _picture(kind, args)
        case (Kind.AUDIO_CONVERT | Kind.AUDIO_CUT) as kind:
            return _sound(kind, args)
        case kind:
            return _video(kind, args)


def _picture(kind: Kind, args: MediaTransformArgs) -> ImageRequest:
    into = args.image_output_format
    match kind:
        case Kind.IMAGE_SCALE:
            return ScaleImage(width=args.scale_width, height=args.scale_height, output_format=into)
        case Kind.IMAGE_CROP:
            x, y, width, height = _window(args)
            return CropImage(x=x, y=y, width=width, height=height, output_format=into)
        case Kind.WATERMARK_IMAGE:
            return WatermarkImage(
                position=_position(args) or WatermarkPosition.TOP_LEFT,
                watermark_scale=_scale(args, 1.0),
                output_format=into,
            )
        case _:
            if into is None:
                raise InvalidRequest(
                    "No output format provided: set imageOutputFormat", param="imageOutputFormat"
                )
            return ConvertImage(output_format=into)


def _sound(kind: Kind, args: MediaTransformArgs) -> av.AudioRequest:
    into = _format(args, av.AudioFormat, needed=kind is Kind.AUDIO_CONVERT)
    _check_codecs(args, into and AUDIOS[into])
    if kind is Kind.AUDIO_CONVERT and into is not None:
        return av.ConvertAudio(into=into)
    start, end = _times(args)
    return av.TrimAudio(start=start, end=end, into=into)


def _video(kind: Kind, args: MediaTransformArgs) -> av.VideoRequest:
    into = _format(args, av.VideoFormat, needed=kind is Kind.VIDEO_CONVERT)
    if into is None and kind is Kind.VIDEO_CROP:
        into = av.VideoFormat.MP4
    _check_codecs(args, into and VIDEOS[into])
    match kind:
        case Kind.VIDEO_CROP:
            x, y, width, height = _window(args)
            return av.CropVideo(x=x, y=y, width=width, height=height, into=into)
        case Kind.VIDEO_CUT:
            start, end = _times(args)
            return av.TrimVideo(start=start, end=end, into=into)
        case Kind.WATERMARK_VIDEO:
            position = av.Position((_position(args) or WatermarkPosition.BOTTOM_RIGHT).value)
            return av.WatermarkVideo(position=position, scale=_scale(args, 0.2), into=into)
        case Kind.VIDEO_CONVERT if into is not None:
            return av.ConvertVideo(into=into)
        case _:
            return av.ScaleVideo(width=args.scale_width, height=args.scale_height, into=into)


def _format(args: MediaTransformArgs, kind: type[Format], *, needed: bool) -> Format | None:
    if args.output_format is None and not needed:
        return None
    return av.format_named(kind, args.output_format and args.output_format.value)


def _window(args: MediaTransformArgs) -> tuple[int, int, int, int]:
    if args.crop_width is None or args.crop_height is None:
        raise InvalidRequest("Invalid crop dimensions: set cropWidth and cropHeight")
    return args.crop_x or 0, args.crop_y or 0, args.crop_width, args.crop_height


def _times(args: MediaTransformArgs) -> tuple[str, str | None]:
    start, end = args.cut_start or 0.0, args.cut_end
    if not 0 <= start <= LATEST_SECONDS:
        raise InvalidRequest(
            f"Invalid start time: cutStart is 0 to {LATEST_SECONDS} seconds", param="cutStart"
        )
    if end is None or end == -1:
        return f"{start:.6f}", None
    if not start < end <= LATEST_SECONDS:
        raise InvalidRequest(
            "Invalid end time: cutEnd is after cutStart, at most "
            f"{LATEST_SECONDS} seconds, or -1 for the end",
            param="cutEnd",
        )
    return f"{start:.6f}", f"{end:.6f}"


def _position(args: MediaTransformArgs) -> WatermarkPosition | None:
    if not args.watermark_position:
        return None
    for position in WatermarkPosition:
        if fold(position.value) == fold(args.watermark_position):
            return position
    raise InvalidRequest(
        f"Invalid watermark position: it is one of {_values(WatermarkPosition)}; an expression "
        "for ffmpeg is not taken",
        param="watermarkPosition",
    )


def _scale(args: MediaTransformArgs, usual: float) -> float:
    if not args.watermark_scale:
        return usual
    text = args.watermark_scale.strip()
    if not _SCALE.fullmatch(text) or not 0 < float(text) <= 10:
        raise InvalidRequest(
            "Invalid watermark scale: it is above 0 and at most 10, and multiplies the size of "
            "the watermark",
            param="watermarkScale",
        )
    return float(text)


def _check_codecs(args: MediaTransformArgs, into: Container | None) -> None:
    """A format is always written in the same codecs; other wishes must not be passed over."""
    video = into and into.video
    for name, wanted, written in (
        ("videoCodec", args.video_codec, video and video.arguments),
        ("audioCodec", args.audio_codec, into and into.audio.arguments),
    ):
        if not wanted:
            continue
        known = _names(written or ())
        if wanted.lower() not in known:
            raise InvalidRequest(_other_codec(name, into, known), param=name)
    if args.audio_bitrate or args.audio_sample_rate is not None:
        raise InvalidRequest(
            "audioBitrate and audioSampleRate cannot be chosen; leave them out",
            param="audioBitrate" if args.audio_bitrate else "audioSampleRate",
        )


def _names(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Of the codec, and of its encoder where that has another."""
    encoder = arguments[1:2]
    return (*(_CODECS[each] for each in encoder if each in _CODECS), *encoder)


def _other_codec(name: str, into: Container | None, known: tuple[str, ...]) -> str:
    if into is None:
        return f"{name} cannot be chosen without an outputFormat; leave it out"
    format_ = into.suffix[1:]
    if not known:
        return f"{name} cannot be chosen for {format_}; leave it out"
    return f"{format_} is written with {known[0]}; leave {name} out, or choose another format"


def _values(kind: type[Enum]) -> str:
    return ", ".join(str(member.value) for member in kind)
