"""Small media files of every kind that is taken, and ways to spoil them; the same seed, the same bytes."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageCms

from clips import Clips
from pictures import quarters

WEB, H264 = ("-c:v", "libvpx-vp9"), ("-c:v", "libx264", "-preset", "ultrafast")
# What each clip is coded with, small enough that ffmpeg's own start takes most of the time.
VIDEOS: dict[str, tuple[str, ...]] = {
    "mp4": (*H264, "-pix_fmt", "yuv420p", "-c:a", "aac"),
    "mov": ("-c:v", "mpeg4", "-c:a", "pcm_s16le"),
    "mkv": (*H264, "-pix_fmt", "yuv420p", "-c:a", "flac"),
    "webm": (*WEB, "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
    "avi": ("-c:v", "mpeg4", "-c:a", "libmp3lame"),
    "wmv": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "mpeg": ("-c:v", "mpeg2video", "-c:a", "mp2", "-f", "vob"),
    "ts": ("-c:v", "mpeg2video", "-c:a", "mp2"),
    "ogg": ("-c:v", "libtheora", "-c:a", "libvorbis"),
    "flv": ("-c:v", "flv1", "-ar", "44100", "-c:a", "libmp3lame"),
}
AUDIOS: dict[str, tuple[str, ...]] = {
    "mp3": ("-c:a", "libmp3lame"),
    "wav": ("-c:a", "pcm_s16le"),
    "aac": ("-c:a", "aac"),
    "flac": ("-c:a", "flac"),
    "oga": ("-c:a", "libvorbis"),
    "m4a": ("-c:a", "aac"),
    "wma": ("-c:a", "wmav2"),
}


class Medium(NamedTuple):
    """A sound file: what it is called in the table, its ending and its bytes."""

    name: str
    ending: str
    data: bytes


class Corpus(NamedTuple):
    """Files by what they hold."""

    pictures: list[Medium]
    videos: list[Medium]
    audios: list[Medium]


def corpus(clips: Clips) -> Corpus:
    """A few of everything: pictures 48 x 36, clips of a third of a second."""
    videos, audios = [], []
    for ending, words in VIDEOS.items():
        path = clips.moving(f"v.{ending}", *words, size="64x36", seconds=0.32)
        videos.append(Medium(ending, ending, path.read_bytes()))
    for ending, words in AUDIOS.items():
        sound = ("-f", "lavfi", "-i", "sine=440:d=0.3", *words)
        audios.append(Medium(ending, ending, clips.made(f"a.{ending}", *sound).read_bytes()))
    return Corpus(_pictures(), videos, audios)


def _pictures() -> list[Medium]:
    made: list[Medium] = []

    def add(name: str, ending: str, picture: Image.Image, **options: Any) -> None:
        file = io.BytesIO()
        kind = {"jpg": "jpeg"}.get(ending, ending)
        picture.save(file, kind, **options)
        made.append(Medium(name, ending, file.getvalue()))

    plain = quarters(48, 36)
    clear = plain.copy()
    clear.putalpha(Image.linear_gradient("L").resize(plain.size))
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a picture"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    moving = {
        "save_all": True,
        "append_images": [plain.rotate(90 * turn) for turn in (1, 2)],
    }
    add("jpg", "jpg", plain)
    add("jpg progressive", "jpg", plain, progressive=True, subsampling=2)
    add("jpg grey", "jpg", plain.convert("L"))
    add("jpg cmyk", "jpg", plain.convert("CMYK"))
    add("jpg turned", "jpg", plain, exif=turned, icc_profile=profile)
    add("png", "png", plain, icc_profile=profile)
    add("png alpha", "png", clear, exif=turned)
    add("png palette", "png", plain.quantize(8), transparency=0)
    add("png bits", "png", plain.convert("1"))
    add(
        "png 16-bit",
        "png",
        plain.convert("L").convert("I").point(lambda v: v * 257).convert("I;16"),
    )
    made.append(Medium("png 16-bit", "png", _deep_png(24, 18)))
    add("gif", "gif", plain.quantize(16))
    add("gif animated", "gif", plain, loop=0, duration=40, **moving)
    add("bmp", "bmp", plain)
    add("bmp palette", "bmp", plain.quantize(16))
    add("tiff", "tiff", plain)
    add("tiff packed", "tiff", plain, compression="tiff_lzw")
    add("tiff packed", "tiff", plain, compression="jpeg")
    add("tiff packed", "tiff", plain.convert("1"), compression="group4")
    add("tiff pages", "tiff", plain, compression="tiff_adobe_deflate", **moving)
    add("tiff cmyk", "tiff", plain.convert("CMYK"))
    add("tiff 16-bit", "tiff", plain.convert("I;16"))
    add("tiff 16-bit", "tiff", plain.convert("F"))
    add("tiff big", "tiff", clear, big_tiff=True)
    add("webp", "webp", plain, quality=60)
    add("webp lossless", "webp", clear, lossless=True, exif=turned)
    add("webp animated", "webp", plain, duration=40, **moving)
    add("avif", "avif", plain, speed=10, exif=turned)
    add("avif animated", "avif", plain, speed=10, **moving)
    return made


def _deep_png(width: int, height: int) -> bytes:
    """16 bits in each of four channels, which Pillow does not write."""
    row = b"\0" + bytes(range(256)) * (width * 8 // 256 + 1)
    rows = zlib.compress(b"".join(row[: 1 + width * 8] for _ in range(height)))
    head = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    parts = (_chunk(b"IHDR", head), _chunk(b"IDAT", rows), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _place(rng: random.Random, length: int) -> int:
    """Anywhere, though most of the time where headers are."""
    return rng.randrange(max(1, min(length, rng.choice((32, 128, 1024, length, length)))))


def _flipped(rng: random.Random, data: bytearray, _: bytes) -> None:
    for _each in range(rng.choice((1, 1, 2, 4, 16, 64))):
        data[_place(rng, len(data))] ^= 1 << rng.randrange(8)


def _extreme(rng: random.Random, data: bytearray, _: bytes) -> None:
    """A field of a header at the end of what it can hold."""
    width = rng.choice((1, 2, 4, 4, 8))
    most = 1 << 8 * width
    value = rng.choice((0, 1, 2, most - 1, most - 2, most // 2, most // 2 - 1, most // 4, 65_535))
    at = _place(rng, len(data))
    order = rng.choice(("little", "big"))
    data[at : at + width] = (value % most).to_bytes(width, order)


def _cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.choice((rng.randrange(64), rng.randrange(len(data)), len(data) - 1)) :]


def _piece(rng: random.Random, data: bytearray) -> slice:
    at = _place(rng, len(data))
    return slice(at, at + rng.choice((1, 2, 4, 16, 188, 512, rng.randrange(1, len(data) + 1))))


def _lost(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[_piece(rng, data)]


def _doubled(rng: random.Random, data: bytearray, _: bytes) -> None:
    piece = data[_piece(rng, data)]
    at = _place(rng, len(data))
    data[at:at] = piece * rng.choice((1, 1, 2, 40))


def _zeroed(rng: random.Random, data: bytearray, _: bytes) -> None:
    place = _piece(rng, data)
    data[place] = bytes(len(data[place]))


def _spliced(rng: random.Random, data: bytearray, other: bytes) -> None:
    """The start of one and the end of another."""
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _followed(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Two files, or a file and a program, in one."""
    tail = rng.choice((other, b"<script>alert(1)</script>", b"PK\x05\x06" + bytes(18), bytes(data)))
    data += tail
    if rng.random() < 0.3:
        data[:0] = rng.choice((b"\0" * 16, b"\xef\xbb\xbf", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)))


SPOILERS: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    *(_flipped, _flipped, _flipped, _extreme, _extreme, _extreme),
    *(_cut, _lost, _doubled, _zeroed, _spliced, _followed),
)


def spoilt(rng: random.Random, medium: Medium, others: Sequence[Medium]) -> bytes:
    """The file after one to three changes; a PNG's check sums are put right half of the time."""
    data = bytearray(medium.data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            rng.choice(SPOILERS)(rng, data, rng.choice(others).data)
    if medium.ending == "png" and rng.random() < 0.5:
        return _sealed(bytes(data))
    return bytes(data)


def _sealed(data: bytes) -> bytes:
    """With every chunk's check sum as it should be, so that what is in it is looked at."""
    sealed, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        struct.pack_into(">I", sealed, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(sealed)
