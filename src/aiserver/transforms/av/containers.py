"""The formats that are written: each container's muxer, its codecs and what these can hold."""

import msgspec

from aiserver.transforms.av.found import Found
from aiserver.transforms.av.requests import AudioFormat, VideoFormat

# What MPEG-2 allows, as ffmpeg writes them.
MPEG_RATES = ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60")


class VideoCodec(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder; `even`: both sides must be. `side` bounds a frame's, `rates` what it may run at.

    `steady`: the container wants frames at a fixed rate.
    """

    arguments: tuple[str, ...]
    even: bool = False
    least: int = 1
    side: int = 8192
    steady: bool = False
    rates: tuple[str, ...] = ()


class AudioCodec(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder, the channels it takes at most, and its sample rates where they matter."""

    arguments: tuple[str, ...]
    channels: int = 8
    named_layouts: bool = False
    sample_rates: tuple[int, ...] = ()


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of file; `reads_as` is the demuxer that its files are read with.

    `several_audios`: it holds more than one audio track.
    """

    muxer: tuple[str, ...]
    suffix: str
    media_type: str
    reads_as: str
    audio: AudioCodec
    video: VideoCodec | None = None
    several_audios: bool = True


_H264 = VideoCodec(
    arguments=("-c:v", "libx264", "-preset", "veryfast", "-crf", "21", "-pix_fmt", "yuv420p"),
    even=True,
    least=2,
)
_VP9 = VideoCodec(
    arguments=(
        *("-c:v", "libvpx-vp9", "-crf", "32", "-b:v", "0", "-deadline", "good", "-cpu-used", "5"),
        *("-row-mt", "1", "-pix_fmt", "yuv420p"),
    )
)
_MPEG4 = VideoCodec(
    arguments=("-c:v", "mpeg4", "-q:v", "3", "-pix_fmt", "yuv420p"), side=8191, steady=True
)
_WMV = VideoCodec(
    arguments=("-c:v", "wmv2", "-q:v", "3", "-pix_fmt", "yuv420p"),
    even=True,
    least=2,
    side=8190,
    steady=True,
)
_MPEG2 = VideoCodec(
    arguments=("-c:v", "mpeg2video", "-q:v", "3", "-pix_fmt", "yuv420p"),
    side=4095,
    steady=True,
    rates=MPEG_RATES,
)
_THEORA = VideoCodec(
    arguments=("-c:v", "libtheora", "-q:v", "8", "-pix_fmt", "yuv420p"), steady=True
)

_AAC = AudioCodec(arguments=("-c:a", "aac", "-b:a", "160k"), named_layouts=True)
# A header of ADTS has no code for the eight channels that we write.
_ADTS = AudioCodec(arguments=_AAC.arguments, channels=6, named_layouts=True)
_OPUS = AudioCodec(arguments=("-c:a", "libopus", "-b:a", "128k"), named_layouts=True)
_VORBIS = AudioCodec(arguments=("-c:a", "libvorbis", "-q:a", "5"), named_layouts=True)
_MP3 = AudioCodec(arguments=("-c:a", "libmp3lame", "-q:a", "2"), channels=2)
_MP3_STEADY = AudioCodec(
    arguments=("-c:a", "libmp3lame", "-b:a", "192k"), channels=2, sample_rates=(44100, 48000)
)
_MP2 = AudioCodec(
    arguments=("-c:a", "mp2", "-b:a", "192k"), channels=2, sample_rates=(44100, 48000)
)
_WMA = AudioCodec(
    arguments=("-c:a", "wmav2", "-b:a", "160k"), channels=2, sample_rates=(44100, 48000)
)
_FLAC = AudioCodec(arguments=("-c:a", "flac"), named_layouts=True)
_PCM = AudioCodec(arguments=("-c:a", "pcm_s16le"))

VIDEOS = {
    VideoFormat.MP4: Container(
        muxer=("-movflags", "+faststart", "-f", "mp4"),
        suffix=".mp4",
        media_type="video/mp4",
        reads_as="mov",
        video=_H264,
        audio=_AAC,
    ),
    VideoFormat.MOV: Container(
        muxer=("-movflags", "+faststart", "-f", "mov"),
        suffix=".mov",
        media_type="video/quicktime",
        reads_as="mov",
        video=_H264,
        audio=_AAC,
    ),
    VideoFormat.WEBM: Container(
        muxer=("-f", "webm"),
        suffix=".webm",
        media_type="video/webm",
        reads_as="matroska",
        video=_VP9,
        audio=_OPUS,
    ),
    VideoFormat.MKV: Container(
        muxer=("-f", "matroska"),
        suffix=".mkv",
        media_type="video/x-matroska",
        reads_as="matroska",
        video=_H264,
        audio=_AAC,
    ),
    VideoFormat.AVI: Container(
        muxer=("-f", "avi"),
        suffix=".avi",
        media_type="video/x-msvideo",
        reads_as="avi",
        video=_MPEG4,
        audio=_MP3_STEADY,
    ),
    VideoFormat.WMV: Container(
        muxer=("-f", "asf"),
        suffix=".wmv",
        media_type="video/x-ms-wmv",
        reads_as="asf",
        video=_WMV,
        audio=_WMA,
    ),
    VideoFormat.MPEG: Container(
        muxer=("-f", "vob"),
        suffix=".mpeg",
        media_type="video/mpeg",
        reads_as="mpeg",
        video=_MPEG2,
        audio=_MP2,
    ),
    VideoFormat.OGG: Container(
        muxer=("-f", "ogg"),
        suffix=".ogg",
        media_type="video/ogg",
        reads_as="ogg",
        video=_THEORA,
        audio=_VORBIS,
    ),
}

AUDIOS = {
    AudioFormat.MP3: Container(
        muxer=("-f", "mp3"),
        suffix=".mp3",
        media_type="audio/mpeg",
        reads_as="mp3",
        audio=_MP3,
        several_audios=False,
    ),
    AudioFormat.WAV: Container(
        muxer=("-rf64", "auto", "-f", "wav"),
        suffix=".wav",
        media_type="audio/wav",
        reads_as="wav",
        audio=_PCM,
        several_audios=False,
    ),
    AudioFormat.AAC: Container(
        muxer=("-f", "adts"),
        suffix=".aac",
        media_type="audio/aac",
        reads_as="aac",
        audio=_ADTS,
        several_audios=False,
    ),
    AudioFormat.FLAC: Container(
        muxer=("-f", "flac"),
        suffix=".flac",
        media_type="audio/flac",
        reads_as="flac",
        audio=_FLAC,
        several_audios=False,
    ),
    AudioFormat.OGG: Container(
        muxer=("-f", "ogg"),
        suffix=".ogg",
        media_type="audio/ogg",
        reads_as="ogg",
        audio=_VORBIS,
    ),
    AudioFormat.M4A: Container(
        muxer=("-movflags", "+faststart", "-f", "ipod"),
        suffix=".m4a",
        media_type="audio/mp4",
        reads_as="mov",
        audio=_AAC,
    ),
    AudioFormat.WMA: Container(
        muxer=("-f", "asf"),
        suffix=".wma",
        media_type="audio/x-ms-wma",
        reads_as="asf",
        audio=_WMA,
    ),
}

_OWN = {
    "avi": VideoFormat.AVI,
    "asf": VideoFormat.WMV,
    "mpeg": VideoFormat.MPEG,
    "ogg": VideoFormat.OGG,
}
_OWN_AUDIO = {
    **{"mp3": AudioFormat.MP3, "aac": AudioFormat.AAC, "ogg": AudioFormat.OGG},
    **{"flac": AudioFormat.FLAC, "wv": AudioFormat.FLAC, "asf": AudioFormat.WMA},
    **dict.fromkeys(("wav", "w64", "aiff", "caf", "au"), AudioFormat.WAV),
}
_WEBM_CODECS = frozenset(("vp8", "vp9", "av1", "opus", "vorbis"))


def format_of(found: Found) -> VideoFormat | None:
    """The format that a file is in; None for one that is only read."""
    if found.container == "mov":
        return VideoFormat.MOV if found.brand == "qt" else VideoFormat.MP4
    if found.container == "matroska":
        web = all(track.codec in _WEBM_CODECS for track in found.tracks)
        return VideoFormat.WEBM if web else VideoFormat.MKV
    return _OWN.get(found.container)


def audio_format_of(found: Found) -> AudioFormat:
    """The format that a file's audio is written in again, its own where we write that."""
    return _OWN_AUDIO.get(found.container, AudioFormat.M4A)
