"""What a file is, told from its first bytes and never from its name."""

import codecs
import re
from typing import NamedTuple


class Sniffed(NamedTuple):
    """`extensions`: the first is its own; others are as true of these bytes."""

    content_type: str
    extensions: tuple[str, ...]


UNKNOWN = Sniffed("application/octet-stream", ("bin",))
_TEXT = Sniffed(
    "text/plain", ("txt", "md", "csv", "tsv", "json", "jsonl", "srt", "vtt", "ass", "log", "yaml")
)
_HTML = Sniffed("text/html", ("html", "htm"))
_SVG = Sniffed("image/svg+xml", ("svg",))
_XML = Sniffed("application/xml", ("xml",))
_MP4 = Sniffed("video/mp4", ("mp4", "m4v"))
_AVIF = Sniffed("image/avif", ("avif",))
_WAV = Sniffed("audio/wav", ("wav",))
_MP3 = Sniffed("audio/mpeg", ("mp3",))
_STARTS: tuple[tuple[bytes, Sniffed], ...] = (
    (b"\x89PNG\r\n\x1a\n", Sniffed("image/png", ("png", "apng"))),
    (b"\xff\xd8\xff", Sniffed("image/jpeg", ("jpg", "jpeg"))),
    (b"GIF87a", Sniffed("image/gif", ("gif",))),
    (b"GIF89a", Sniffed("image/gif", ("gif",))),
    (b"II*\0", Sniffed("image/tiff", ("tiff", "tif"))),
    (b"MM\0*", Sniffed("image/tiff", ("tiff", "tif"))),
    (b"II+\0", Sniffed("image/tiff", ("tiff", "tif"))),
    (b"MM\0+", Sniffed("image/tiff", ("tiff", "tif"))),
    (b"\0\0\1\0", Sniffed("image/x-icon", ("ico",))),
    (b"\xff\x0a", Sniffed("image/jxl", ("jxl",))),
    (b"\0\0\0\x0cJXL \r\n\x87\n", Sniffed("image/jxl", ("jxl",))),
    (b"fLaC", Sniffed("audio/flac", ("flac",))),
    (b"ID3", _MP3),
    (b"#!AMR", Sniffed("audio/amr", ("amr",))),
    (b"FLV\1", Sniffed("video/x-flv", ("flv",))),
    (b"\0\0\1\xba", Sniffed("video/mpeg", ("mpeg", "mpg"))),
    (b"\0\0\1\xb3", Sniffed("video/mpeg", ("mpeg", "mpg"))),
    (
        bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
        Sniffed("video/x-ms-asf", ("wmv", "wma", "asf")),
    ),
    (b"%PDF-", Sniffed("application/pdf", ("pdf",))),
    (b"PK\3\4", Sniffed("application/zip", ("zip", "docx", "xlsx", "pptx", "epub", "npz"))),
    (b"PK\5\6", Sniffed("application/zip", ("zip",))),
    (b"\x1f\x8b", Sniffed("application/gzip", ("gz", "tgz"))),
    (b"glTF", Sniffed("model/gltf-binary", ("glb",))),
    (b"GGUF", Sniffed("application/octet-stream", ("gguf",))),
)
# Of the box `ftyp`: the major brand, then what is played by it.
_BRANDS: tuple[tuple[bytes, Sniffed], ...] = (
    (b"avif", _AVIF),
    (b"avis", _AVIF),
    (b"hei", Sniffed("image/heic", ("heic", "heif"))),
    (b"mif1", Sniffed("image/heif", ("heif", "heic"))),
    (b"qt", Sniffed("video/quicktime", ("mov",))),
    (b"M4A", Sniffed("audio/mp4", ("m4a",))),
    (b"M4B", Sniffed("audio/mp4", ("m4b", "m4a"))),
    (b"3g", Sniffed("video/3gpp", ("3gp",))),
)
_RIFF = {
    b"WEBP": Sniffed("image/webp", ("webp",)),
    b"WAVE": _WAV,
    b"AVI ": Sniffed("video/x-msvideo", ("avi",)),
}
# Whoever shows these runs what is in them.
_MARKUP = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|script|iframe|style|title|table|div|a|p|br|h1|img|meta)"
    rb"[\s>/]|<!--",
    re.IGNORECASE,
)
_SVG_TAG = re.compile(rb"<(?:[a-z]+:)?svg[\s>]", re.IGNORECASE)
_KNOWN = frozenset(
    extension
    for sniffed in (
        *(each for _, each in _STARTS),
        *(each for _, each in _BRANDS),
        *_RIFF.values(),
        *(_HTML, _SVG, _XML, _MP4),
        Sniffed("", ("xhtml", "xht", "shtml", "mht", "mhtml", "js", "mjs", "css", "xsl", "swf")),
        Sniffed("", ("webm", "mkv", "mka", "ogg", "oga", "ogv", "opus", "aac", "bmp")),
    )
    for extension in sniffed.extensions
)


def sniff(head: bytes) -> Sniffed:
    """From the first kilobytes of a file; UNKNOWN where nothing is sure."""
    for start, sniffed in _STARTS:
        if head.startswith(start):
            return sniffed
    return _boxed(head) or _framed(head) or _written(head) or UNKNOWN


def is_told_by_bytes(extension: str) -> bool:
    """Whether a file of this extension would have been known, so that another one is not it."""
    return extension in _KNOWN


def _boxed(head: bytes) -> Sniffed | None:
    """Containers that tell their kind a few bytes on."""
    if head[:4] in (b"RIFF", b"RF64"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        brands = head[8 : min(int.from_bytes(head[:4]), 64)]
        if brands.startswith(b"mif1") and b"avif" in brands:
            return _AVIF
        return next((each for brand, each in _BRANDS if brands.startswith(brand)), _MP4)
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return Sniffed("video/quicktime", ("mov",))
    if head.startswith(b"\x1aE\xdf\xa3"):
        if b"webm" in head[:64]:
            return Sniffed("video/webm", ("webm",))
        return Sniffed("video/x-matroska", ("mkv", "mka"))
    if head.startswith(b"OggS"):
        if b"theora" in head[:512]:
            return Sniffed("video/ogg", ("ogv", "ogg"))
        return Sniffed("audio/ogg", ("ogg", "oga", "opus"))
    return None


def _framed(head: bytes) -> Sniffed | None:
    """Formats without a word of their own: told by two fields that must fit."""
    if head.startswith(b"BM") and len(head) > 18 and head[14:18] in _BMP_HEADERS:
        return Sniffed("image/bmp", ("bmp",))
    if len(head) > 3 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return Sniffed("audio/aac", ("aac",))
    if len(head) > 3 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] & 0xF0 != 0xF0:
        return _MP3
    return None


_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def _written(head: bytes) -> Sniffed | None:
    """Text, and what a browser would run of it."""
    if not head:
        return None
    bare = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if bare.startswith(b"<"):
        if _SVG_TAG.search(bare):
            return _SVG
        if bare[:5].lower() == b"<?xml":
            return _HTML if _MARKUP.search(bare) else _XML
        if _MARKUP.match(bare):
            return _HTML
    try:
        # A letter may be cut in two at the end.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    return None if any(c < " " and c not in "\t\n\r\f\x1b" for c in text) else _TEXT
