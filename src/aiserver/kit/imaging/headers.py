"""What a file's first bytes and its structure say, read without a decoder."""

import struct
from mmap import mmap

HEAD_BYTES = 64

_STARTS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def sniff(head: bytes) -> str | None:
    """The format that the first bytes announce, as in `jobs.CONTENT_TYPES`; none of ours: None."""
    for start, name in _STARTS:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return _sniff_heif(head)


def _sniff_heif(head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return "heic" if any(brand in _HEIC_BRANDS for brand in brands) else None


def count_frames(data: mmap | bytes, kind: str, *, most: int) -> int:
    """Frames or pages, counted to `most` + 1 at most; a broken structure ends the count."""
    counters = {"gif": _gif_frames, "webp": _webp_frames, "tiff": _tiff_pages}
    counter = counters.get(kind)
    if counter is None:
        return 1
    try:
        return max(1, counter(data, most))
    except (IndexError, struct.error):
        return 1


def _gif_frames(data: mmap | bytes, most: int) -> int:
    at = 13 + _gif_palette(data[10])
    frames = 0
    end = len(data)
    while at < end and frames <= most:
        block = data[at]
        if block == 0x2C:
            frames += 1
            if at + 9 >= end:
                break
            at = _gif_past_data(data, at + 11 + _gif_palette(data[at + 9]))
        elif block == 0x21:
            at = _gif_past_data(data, at + 2)
        elif block == 0x3B:
            break
        else:
            # What decoders do with stray bytes between blocks: look on.
            at += 1
    return frames


def _gif_palette(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_past_data(data: mmap | bytes, at: int) -> int:
    end = len(data)
    while at < end and (size := data[at]):
        at += size + 1
    return at + 1


def _webp_frames(data: mmap | bytes, most: int) -> int:
    at, frames = 12, 0
    while at + 8 <= len(data) and frames <= most:
        if data[at : at + 4] == b"ANMF":
            frames += 1
        (size,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + size + (size & 1)
    return frames


def _tiff_pages(data: mmap | bytes, most: int) -> int:
    order = "<" if data[:2] == b"II" else ">"
    (magic,) = struct.unpack_from(order + "H", data, 2)
    big = magic == 43
    pointer, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (at,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    pages = 0
    while at and pages <= most:
        if at >= len(data):
            break
        pages += 1
        (entries,) = struct.unpack_from(order + count, data, at)
        after = at + struct.calcsize(count) + entries * entry
        if after >= len(data):
            break
        (at,) = struct.unpack_from(order + pointer, data, after)
    return pages
