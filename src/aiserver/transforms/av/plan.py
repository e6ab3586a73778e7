"""What is asked of a file and what the file holds become the arguments of one ffmpeg command."""

from pathlib import Path

import msgspec

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av import accepted, frames, parts
from aiserver.transforms.av.containers import (
    AUDIOS,
    VIDEOS,
    Container,
    VideoCodec,
    audio_format_of,
    format_of,
)
from aiserver.transforms.av.errors import MediaRefused
from aiserver.transforms.av.found import Found, Track, lasting
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.parts import Plan, Source
from aiserver.transforms.av.requests import (
    AudioRequest,
    ConvertAudio,
    ConvertVideo,
    CropVideo,
    Request,
    ScaleVideo,
    TrimAudio,
    TrimVideo,
    VideoFormat,
    VideoRequest,
    WatermarkVideo,
    check,
)
from aiserver.transforms.av.times import end_seconds, start_seconds

# A cut is exact to a frame of the video or a packet of the audio, whichever is longer.
SLACK = 0.1
# Headers of sound files are this far off without anything being wrong.
LOOSE_SECONDS = 0.5
LOOSE_SHARE = 0.01


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a file that is kept, in seconds: `cut` None is to the end, wherever that is.

    `length` is how long it will play, None where nobody can say. `to_end`: as far as the file goes.
    """

    start: float = 0.0
    cut: float | None = None
    length: float | None = None
    to_end: bool = True


def plan(
    request: Request,
    media: Source,
    folder: Path,
    *,
    watermark: Source | None = None,
    limits: Limits,
) -> Plan:
    """The command that answers the request with a file in the folder.

    Raises InvalidRequest for a request that this file cannot meet, MediaRefused for such a file.
    """
    check(request)
    check_media(media.found, limits)
    match request:
        case ConvertAudio() | TrimAudio():
            return _audio(request, media, folder, limits)
        case TrimVideo() if request.fast and media.found.container not in accepted.UNINDEXED:
            return _fast_trim(request, media, folder, limits)
        case _:
            return _video(request, media, folder, watermark, limits)


def check_media(found: Found, limits: Limits, *, picture: bool = False) -> None:
    """Raises MediaRefused for a file that is not read, or beyond the limits."""
    if len(found.tracks) > limits.tracks:
        raise MediaRefused(f"This file has more than {limits.tracks} tracks")
    for track in found.tracks:
        if accepted.refused_codec(track.kind, track.codec, picture=picture):
            raise MediaRefused(
                f"This file's {track.kind} is coded as {track.codec or 'something unknown'}, "
                "which is not accepted; send H.264, VP9, AV1, AAC, MP3, Opus or another usual codec"
            )
    for video in found.videos:
        frames.check_frame(video, limits)
    if found.duration is not None and found.duration > limits.duration:
        raise MediaRefused(
            f"This file lasts {found.duration:.0f} seconds; at most {limits.duration:.0f} are "
            "accepted"
        )


def _audio(request: AudioRequest, media: Source, folder: Path, limits: Limits) -> Plan:
    container = AUDIOS[request.into or audio_format_of(media.found)]
    audios = media.found.audios
    if not audios:
        raise MediaRefused("This file has no audio; send one that has an audio track")
    kept = audios if container.several_audios else audios[:1]
    span = _span(request, media.found, kept)
    return parts.finish(
        before=parts.opening(media, limits),
        middle=(
            *parts.exact_time(span.start, span.cut),
            *("-vn", *parts.audio(kept, container)),
        ),
        container=container,
        folder=folder,
        expected=parts.Expected(
            audios=len(kept),
            least=_least(media.found, span),
            most=None if span.cut is None else span.cut + LOOSE_SECONDS,
        ),
        length=span.length,
    )


def _video(
    request: VideoRequest, media: Source, folder: Path, watermark: Source | None, limits: Limits
) -> Plan:
    kept = _kept(media.found)
    container = VIDEOS[_format(request, media.found)]
    codec = _codec(container)
    span = _span(request, media.found, kept)
    steps, size = _steps(request, kept, codec)
    if max(size) > codec.side:
        raise InvalidRequest(
            f"{container.suffix[1:]} holds frames of up to {codec.side} pixels a side, and this "
            f"one would be {size[0]}x{size[1]}; choose another format or a smaller size"
        )
    before = parts.opening(media, limits, at=span.start)
    if isinstance(request, WatermarkVideo):
        if watermark is None:
            raise MediaRefused("No watermark image file provided")
        picture = _picture(watermark, limits)
        before = (*before, *parts.opening(watermark, limits))
        overlay = frames.mark(request, picture, size)
        shown = parts.overlay(kept[0], picture, steps, overlay, request.opacity)
    else:
        shown = parts.first_video(kept[0], steps)
    others = tuple(track for track in kept[1:] if track.kind == "video")
    audios = media.found.audios
    middle = (
        *parts.window_of_time(media, span.start, span.cut),
        *shown,
        *parts.other_videos(others, codec),
        *codec.arguments,
        *parts.rates((kept[0], *others), codec, limits),
        *parts.audio(audios, container),
    )
    sizes = (size, *(frames.encodable(track.width, track.height, codec) for track in others))
    frame = 1 / float(kept[0].frames_a_second() or frames.COMMON_RATE)
    expected = parts.Expected(
        videos=sizes,
        audios=len(audios),
        least=_least(media.found, span, frame),
        most=None if span.cut is None else span.cut + max(SLACK, 1.5 * frame),
    )
    return parts.finish(
        before=before,
        middle=middle,
        container=container,
        folder=folder,
        expected=expected,
        length=span.length,
    )


def _fast_trim(request: TrimVideo, media: Source, folder: Path, limits: Limits) -> Plan:
    kept = _kept(media.found)
    span = _span(request, media.found, kept)
    container = VIDEOS[format_of(media.found) or VideoFormat.MKV]
    mapped = [word for track in kept for word in ("-map", f"0:{track.index}")]
    at = ("-ss", parts.seconds(span.start)) if span.start else ()
    length = () if span.cut is None else ("-t", parts.seconds(span.cut))
    expected = parts.Expected(
        videos=tuple((video.width, video.height) for video in media.found.videos),
        audios=len(media.found.audios),
        least=_least(media.found, span),
        most=None if span.cut is None else span.start + span.cut + LOOSE_SECONDS,
    )
    return parts.finish(
        before=(*at, *parts.opening(media, limits)),
        middle=(*length, *mapped, "-c", "copy", "-avoid_negative_ts", "make_zero"),
        container=container,
        folder=folder,
        expected=expected,
        length=span.length,
    )


def _kept(found: Found) -> tuple[Track, ...]:
    if not found.videos:
        raise MediaRefused("This file has no video; send one that has a video track")
    return (*found.videos, *found.audios)


def _format(request: VideoRequest, found: Found) -> VideoFormat:
    return request.into or format_of(found) or VideoFormat.MP4


def _codec(container: Container) -> VideoCodec:
    if container.video is None:
        raise InvalidRequest(f"Invalid output format: {container.suffix[1:]} holds no video")
    return container.video


def _steps(
    request: VideoRequest, kept: tuple[Track, ...], codec: VideoCodec
) -> tuple[tuple[str, ...], tuple[int, int]]:
    video = kept[0]
    match request:
        case CropVideo():
            width, height, x, y = frames.window(request, video, codec)
            return parts.cropped(video, (width, height), (x, y)), (width, height)
        case ScaleVideo():
            size = frames.scaled(request, video, codec)
            return (f"scale={size[0]}:{size[1]}", "setsar=1"), size
        case ConvertVideo() | TrimVideo() | WatermarkVideo():
            size = frames.encodable(video.width, video.height, codec)
            return parts.cropped(video, size, (0, 0)), size


def _span(request: Request, found: Found, kept: tuple[Track, ...]) -> Span:
    whole = lasting(found, kept)
    if not isinstance(request, TrimVideo | TrimAudio):
        return Span(length=whole)
    what = "video" if isinstance(request, TrimVideo) else "sound"
    start, end = start_seconds(request.start), end_seconds(request.end)
    cut = None if end is None else end - start
    if whole is None or not found.exact:
        return Span(start=start, cut=cut, length=cut)
    if start >= whole:
        raise InvalidRequest(
            f"Invalid start time: this {what} lasts {whole:.3f} seconds", param="startTime"
        )
    last = whole if end is None else min(end, whole)
    return Span(start=start, cut=cut, length=last - start, to_end=last > whole - LOOSE_SECONDS)


def _least(found: Found, span: Span, frame: float = 0.0) -> float | None:
    if not found.exact or span.length is None:
        return None
    loose = LOOSE_SECONDS + LOOSE_SHARE * span.length if span.to_end else 0.0
    return span.length - max(SLACK, 1.5 * frame) - loose


def _picture(watermark: Source, limits: Limits) -> Track:
    check_media(watermark.found, limits, picture=True)
    if not watermark.found.videos:
        raise MediaRefused("The watermark is not a picture; send a PNG, JPEG, WebP, GIF or BMP")
    return watermark.found.videos[0]
