"""What a file is, told from its bytes: a name or a type that was sent proves nothing."""

import io

import pytest
from PIL import Image

from aiserver.files.names import ending_of, is_upload_path, upload_path
from aiserver.files.sniffing import UNKNOWN, sniff


@pytest.mark.parametrize(
    ("format", "content_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("WEBP", "image/webp"),
        ("AVIF", "image/avif"),
        ("ICO", "image/x-icon"),
    ],
)
def test_picture_is_told_from_its_bytes(format: str, content_type: str) -> None:
    written = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(written, format)
    assert sniff(written.getvalue()[:4096]).content_type == content_type


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video/quicktime"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "audio/mp4"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "image/avif"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "image/heic"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x82\x84webm", "video/webm"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x82\x88matroska", "video/x-matroska"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (b"RIFF\0\0\0\0ACON", "application/octet-stream"),
        (b"OggS\0\2" + bytes(22) + b"\x80theora", "video/ogg"),
        (b"OggS\0\2" + bytes(22) + b"OpusHead", "audio/ogg"),
        (b"ID3\4\0\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "audio/mpeg"),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\xff\xff\xff\xff", "application/octet-stream"),
        (b"fLaC\0\0", "audio/flac"),
        (b"\0\0\1\xba\x44", "video/mpeg"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c00"), "video/x-ms-asf"),
        (b"%PDF-1.7", "application/pdf"),
        (b"BM is how a text may begin.....", "text/plain"),
    ],
)
def test_container_is_told_from_its_bytes(head: bytes, content_type: str) -> None:
    assert sniff(head).content_type == content_type


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"<!DOCTYPE html><html>", "text/html"),
        (b"  \n<script>alert(1)</script>", "text/html"),
        (b"\xef\xbb\xbf<HTML>", "text/html"),
        (b"<!-- x --><svg xmlns='http://www.w3.org/2000/svg'>", "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<svg:svg xmlns:svg='x'>", "image/svg+xml"),
        (b"<?xml version='1.0'?><html xmlns='x'>", "text/html"),
        (b"<?xml version='1.0'?><rss>", "application/xml"),
        (b"<b", "text/plain"),
        ("Grüße\n".encode(), "text/plain"),
        ("Grüße".encode()[:-2], "text/plain"),
        (b'{"a": 1}', "text/plain"),
        (b"text\0and more", "application/octet-stream"),
        (b"\xff\xfe<\0h\0", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_markup_is_not_taken_for_text(head: bytes, content_type: str) -> None:
    assert sniff(head).content_type == content_type


@pytest.mark.parametrize(
    ("asked", "head", "ending"),
    [
        ("webp", b"RIFF\0\0\0\0WEBP", ".webp"),
        (".JPEG", b"\xff\xd8\xff\xe0", ".jpeg"),
        (None, b"\xff\xd8\xff\xe0", ".jpg"),
        ("png", b"<html><script>", ".html"),
        ("html", b"\x89PNG\r\n\x1a\n", ".png"),
        ("html", b"\0\1\2", ".bin"),
        ("svg", b"plain words", ".txt"),
        ("json", b'{"a": 1}', ".json"),
        ("NPY", b"\0\1\2", ".npy"),
        ("../../x", b"\0\1\2", ".bin"),
        ("", b"\0\1\2", ".bin"),
    ],
)
def test_extension_never_says_more_than_the_bytes(
    asked: str | None, head: bytes, ending: str
) -> None:
    assert ending_of(asked, sniff(head)) == ending


def test_nothing_sure_is_unknown() -> None:
    assert sniff(bytes(4096)) == UNKNOWN


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("té st.png", "pub/7/té st.png"),
        ("../../8/a.png", "pub/7/a.png"),
        ("..", None),
        (".htaccess", None),
        ("", None),
        (None, None),
    ],
)
def test_upload_stays_in_its_owners_folder(sent: str | None, path: str | None) -> None:
    assert upload_path("pub", key_id=7, name=sent) == path
    if path is not None:
        assert is_upload_path(path, kind="pub", key_id=7)
        assert not is_upload_path(path, kind="pub", key_id=8)
