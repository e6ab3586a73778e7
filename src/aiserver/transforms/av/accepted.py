"""Which containers and codecs are read: none that can name another file or host."""

MEDIA = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "asf", "mpeg"),
    *("mpegts", "ogg", "flv", "gif", "mp3", "wav", "w64", "aac", "flac", "aiff", "caf", "au"),
    *("amr", "ac3", "eac3", "wv"),
)
PICTURES = ("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif")

# Headers of these give no duration, or one guessed from the bit rate.
UNTIMED = frozenset(("mpeg", "mpegts", "mp3", "aac", "amr", "ac3", "eac3", "gif", "flv"))
# Without an index, a jump to a time may land behind it.
UNINDEXED = frozenset(("mpeg", "mpegts", "ogg", "flv", "gif"))

VIDEO_CODECS = frozenset(
    (
        *("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "h263"),
        *("msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "theora", "flv1"),
        *("vp6", "vp6f", "mjpeg", "gif", "png", "prores", "dnxhd", "dvvideo", "rawvideo"),
        *("ffv1", "huffyuv", "ffvhuff", "utvideo", "qtrle", "svq1", "svq3", "cinepak"),
    )
)
PICTURE_CODECS = frozenset(("png", "mjpeg", "webp", "bmp", "tiff", "gif"))
AUDIO_CODECS = frozenset(
    (
        *("aac", "mp1", "mp2", "mp3", "ac3", "eac3", "opus", "vorbis", "flac", "alac", "speex"),
        *("wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice", "amr_nb", "amr_wb", "wavpack"),
        *("adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_swf", "adpcm_yamaha", "gsm_ms"),
        *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le"),
        *("pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw"),
        *("pcm_mulaw", "pcm_bluray", "pcm_dvd", "dts", "nellymoser"),
    )
)
# Decoders whose name is not their codec's.
OTHER_DECODERS = frozenset(
    (
        *("libdav1d", "libaom-av1", "libvpx", "libvpx-vp9", "msmpeg4", "flv", "mp1float"),
        *("mp2float", "mp3float", "libopus", "libvorbis", "libspeex", "amrnb", "amrwb"),
        *("libopencore_amrnb", "libopencore_amrwb", "aac_fixed", "ac3_fixed", "dca"),
    )
)


def decoders() -> str:
    """All decoders that may run, as ffmpeg's whitelist."""
    return ",".join(sorted(VIDEO_CODECS | PICTURE_CODECS | AUDIO_CODECS | OTHER_DECODERS))


def refused_codec(kind: str, codec: str, *, picture: bool) -> bool:
    """Whether a track of this kind is in a codec that is not read."""
    if kind == "audio":
        return codec not in AUDIO_CODECS
    return codec not in (PICTURE_CODECS if picture else VIDEO_CODECS)
