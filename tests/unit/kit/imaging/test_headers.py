"""What is read of a file before any decoder sees it."""

import io
import struct

import pytest
from PIL import Image

from aiserver.kit.imaging.headers import count_frames, sniff


def written(kind: str, frames: int = 1) -> bytes:
    pictures = [Image.new("RGB", (8, 8), (at * 20, 0, 0)) for at in range(frames)]
    file = io.BytesIO()
    if frames > 1:
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
    else:
        pictures[0].save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "tiff", "webp", "avif"])
def test_format_is_told_by_the_bytes(kind: str) -> None:
    assert sniff(written(kind)[:64]) == {"jpeg": "jpg"}.get(kind, kind)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff\xd8",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg/>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"GIF90a",
        b"RIFF\0\0\0\0WAVE",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"\0\0\0\0ftyp",
        b"\x76\x2f\x31\x01",
        b"gimp xcf",
    ],
)
def test_other_bytes_are_no_picture(head: bytes) -> None:
    assert sniff(head) is None


def test_heic_is_told_from_avif() -> None:
    assert sniff(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "heic"
    assert sniff(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "avif"


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_frames_are_counted(kind: str, frames: int) -> None:
    assert count_frames(written(kind, frames), kind, most=100) == frames


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
def test_count_ends_past_the_bound(kind: str) -> None:
    data = written(kind, 9)
    assert count_frames(data, kind, most=9) == 9
    assert count_frames(data, kind, most=8) == 9
    assert count_frames(data, kind, most=3) == 4


def test_pages_in_a_circle_end_past_the_bound() -> None:
    page = struct.pack("<H", 1) + struct.pack("<HHII", 256, 3, 1, 8) + struct.pack("<I", 8)
    assert count_frames(b"II*\0" + struct.pack("<I", 8) + page, "tiff", most=50) == 51


def test_large_tiff_pages_are_counted() -> None:
    one = struct.pack("<Q", 0) + struct.pack("<Q", 32)
    data = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) + one + struct.pack("<QQ", 0, 0)
    assert count_frames(data, "tiff", most=50) == 2


@pytest.mark.parametrize("kind", ["gif", "webp", "tiff"])
def test_broken_structures_end_the_count(kind: str) -> None:
    data = written(kind, 3)
    for end in range(len(data)):
        assert 1 <= count_frames(data[:end], kind, most=10) <= 3


def test_still_formats_have_one_frame() -> None:
    assert count_frames(b"", "jpg", most=1) == 1
