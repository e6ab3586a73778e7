"""Hostile and odd files over HTTP: the caller is told what is wrong, and nothing else is touched."""

import asyncio
import io
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clips import Clips
from fakes.painting import form
from gateway import SECRET, Reply, TestGateway, running
from pictures import quarters

PATIENCE = 30.0
Part = tuple[str, bytes]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
async def server(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    # Calls that broke off end before the server does.
    async with running(tmp_path / "data", migrated, SHUTDOWN_GRACE="5s") as gateway:
        yield gateway


async def post(server: TestGateway, name: str, **parts: Any) -> Reply:
    body, kind = form(**parts)
    async with asyncio.timeout(PATIENCE):
        return await server.call("POST", f"/api/{name}", body, headers=kind)


def written(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def part(path: Path) -> Part:
    return path.name, path.read_bytes()


async def result_of(server: TestGateway, reply: Reply) -> bytes:
    assert reply.status == 200, reply.body
    url = reply.json()["results"][0]["url"].removeprefix(server.url)
    return (await server.call("GET", url, key=None)).body


def leftovers(server: TestGateway) -> list[Path]:
    return [path for path in (server.data / "scratch").glob("*/*") if path.is_dir()]


def gif(frames: int) -> bytes:
    size = struct.pack("<HH", 4, 4)
    frame = b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + frame * frames + b"\x3b"


MOVING_AVIF = written(
    quarters(), "avif", save_all=True, append_images=[quarters().rotate(90)], speed=10
)


@pytest.mark.parametrize("operation", ["ConvertImage", "ScaleImage", "WatermarkImage"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gif(100_000), "more than 1000 frames"),
        (b"GIF89a/*<svg onload=alert(1)>*/=1;", "damaged or cut off"),
        (MOVING_AVIF, "Animated AVIF images cannot be read here"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC images cannot be read here"),
        (b"%PDF-1.7\n", "accepted format: JPEG"),
    ],
)
async def test_picture_that_is_none_is_refused(
    server: TestGateway, operation: str, content: bytes, words: str
) -> None:
    more = {"outputFormat": "png"} if operation != "ScaleImage" else {"width": "9"}
    reply = await post(server, operation, image=("a.png", content), text="Mine", **more)
    assert reply.status == 400, reply.body
    assert words in reply.problem()["message"]
    assert leftovers(server) == []


@pytest.mark.parametrize("into", ["jpg", "png", "gif", "bmp", "tiff", "webp", "avif"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 1)])
async def test_smallest_pictures_are_pictures(
    server: TestGateway, into: str, size: tuple[int, int]
) -> None:
    image = ("a.png", written(quarters(*size), "png"))
    mark = ("m.png", written(quarters(9, 9), "png"))
    window = {"x": "0", "y": "0", "width": "1", "height": "1"}
    asked: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
        ("ConvertImage", {}, size),
        ("CropImage", window, (1, 1)),
        ("ScaleImage", {"width": "5", "height": "3"}, (5, 3)),
        ("WatermarkImage", {"watermark": mark, "tiled": "true"}, size),
        ("WatermarkImage", {"text": "Mine"}, size),
    ]
    for operation, parts, wanted in asked:
        reply = await post(server, operation, image=image, outputFormat=into, **parts)
        with Image.open(io.BytesIO(await result_of(server, reply))) as made:
            assert made.size == wanted, operation


async def test_smallest_videos_are_videos(server: TestGateway, clips: Clips) -> None:
    words = ("-c:v", "png", "-c:a", "pcm_s16le")
    clip = part(clips.moving("small.mkv", *words, size="1x9", seconds=0.12))
    formats = ("mp4", "mov", "webm", "mkv", "avi", "wmv", "mpeg", "ogg")
    asked = (post(server, "ConvertVideo", video=clip, outputFormat=into) for into in formats)
    for reply in await asyncio.gather(*asked):
        assert reply.status == 200, reply.body
    assert leftovers(server) == []


@pytest.mark.parametrize(
    ("operation", "parts", "words"),
    [
        ("CropVideo", {"x": "-1", "width": "9", "height": "9"}, "Invalid crop dimensions"),
        ("CropVideo", {"width": "161", "height": "9"}, "is larger than the video's 160x90"),
        ("CropVideo", {"width": "0", "height": "9"}, "Invalid crop dimensions"),
        ("TrimVideo", {"startTime": "0:05", "endTime": "0:01"}, "must be after the start time"),
        ("TrimVideo", {"startTime": "0:01", "endTime": "0:01"}, "must be after the start time"),
        ("TrimVideo", {"startTime": "9"}, "Invalid start time: this video lasts 1.0"),
        ("TrimVideo", {"startTime": "-1"}, "Invalid start time format"),
        ("ScaleVideo", {"width": "7681"}, "width is 1 to 7680"),
        ("ConvertVideo", {"outputFormat": "exe"}, "'Output Format'"),
        ("WatermarkVideo", {"watermark": ("m.png", b"<svg/>")}, "cannot be read as a picture"),
        ("WatermarkVideo", {"watermark": ("m.png", b"")}, "watermark file is empty"),
    ],
)
async def test_video_wish_that_cannot_be_met_is_refused(
    server: TestGateway, clips: Clips, operation: str, parts: dict[str, Any], words: str
) -> None:
    reply = await post(server, operation, video=part(clips.plain()), **parts)
    assert reply.status == 400, reply.body
    assert words in reply.problem()["message"]


async def test_window_that_sticks_out_of_a_picture_is_refused(server: TestGateway) -> None:
    image = ("a.png", written(quarters(80, 60), "png"))
    for x, width in ((0, 81), (80, 1), (1, 80), (2**31 - 1, 2**31 - 1)):
        window = {"x": str(x), "y": "0", "width": str(width), "height": "1"}
        reply = await post(server, "CropImage", image=image, **window)
        assert "Invalid crop dimensions" in reply.problem()["message"]
    window = {"x": "79", "y": "59", "width": "1", "height": "1"}
    assert (await post(server, "CropImage", image=image, **window)).status == 200


async def test_what_hides_behind_a_video_is_left_behind(server: TestGateway, clips: Clips) -> None:
    name, content = part(clips.plain())
    both = (name, content + b"<script>alert(1)</script>PK\x05\x06" + bytes(18))
    for operation, more in (
        ("ConvertVideo", {"outputFormat": "mkv"}),
        ("TrimVideo", {"startTime": "0", "fast": "true"}),
    ):
        made = await result_of(server, await post(server, operation, video=both, **more))
        assert b"<script>" not in made


def with_subtitles(text: bytes) -> bytes:
    """An AVI whose text track holds a whole subtitle file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)

    def strh(kind: bytes, codec: bytes) -> bytes:
        head = struct.pack("<4s4sIHHIIIIIIIIHHHH", kind, codec, 0, 0, 0, 0, 1, 25, 0, 1, *[0] * 7)
        return chunk(b"strh", head)

    picture = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 24, 0, 768, 0, 0, 0, 0)
    video = chunk(b"LIST", b"strl" + strh(b"vids", b"DIB ") + chunk(b"strf", picture))
    texts = chunk(b"LIST", b"strl" + strh(b"txts", bytes(4)) + chunk(b"strf", b""))
    avih = chunk(b"avih", struct.pack("<14I", 40_000, 0, 0, 0, 1, 0, 2, 0, 16, 16, 0, 0, 0, 0))
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, 2) + b"x\0" + struct.pack("<HI", 4, len(text)) + text
    movi = b"movi" + chunk(b"01tx", gab2) + chunk(b"00db", bytes(768))
    body = b"AVI " + chunk(b"LIST", b"hdrl" + avih + video + texts) + chunk(b"LIST", movi)
    return chunk(b"RIFF", body)


async def test_playlist_in_subtitles_is_not_followed(
    server: TestGateway, clips: Clips, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    host = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{host}/a.ts\n#EXT-X-ENDLIST\n"
    for content in (
        with_subtitles(playlist.encode()),
        b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + playlist.encode(),
        clips.plain().read_bytes() + playlist.encode(),
        playlist.encode() + clips.plain().read_bytes(),
    ):
        for operation, field in (("ConvertVideo", "video"), ("ConvertAudio", "audio")):
            reply = await post(server, operation, **{field: ("a.avi", content)})
            assert reply.status in (200, 400), reply.body
    assert not asked.is_set()
    listener.close()
    await listener.wait_closed()


async def test_upload_that_breaks_off_leaves_nothing(server: TestGateway) -> None:
    noise = Image.effect_noise((1200, 1200), 90)
    body, kind = form(image=("a.bmp", written(noise, "bmp")), outputFormat="png")
    head = {**kind, "host": "x", "authorization": f"Bearer {SECRET}"}
    lines = [f"{name}: {value}" for name, value in head.items()]
    sent = "\r\n".join(["POST /api/ConvertImage HTTP/1.1", *lines, f"content-length: {len(body)}"])
    before = {path for path in server.data.rglob("*") if path.is_dir()}
    for share in (0.01, 0.5, 0.999):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"{sent}\r\n\r\n".encode() + body[: int(len(body) * share)])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    reply = await post(server, "ConvertImage", image=("a.png", written(quarters(), "png")))
    assert "No output format provided" in reply.problem()["message"]
    assert await server.rows("SELECT count(*) FROM jobs") == [(0,)]
    assert await server.rows("SELECT count(*) FROM files") == [(0,)]
    assert {path for path in server.data.rglob("*") if path.is_dir()} == before


ON_A_FULL_DISK = """
import asyncio, sys
from pathlib import Path
from aiserver.kit.imaging.jobs import Convert
from aiserver.kit.imaging.pool import ImagingPool
from aiserver.transforms import images

async def main():
    pool = ImagingPool(children=1)
    await pool.start()
    for kind in ("jpg", "png", "gif", "bmp", "tiff", "webp", "avif"):
        job = Convert(source=sys.argv[1], result=sys.argv[2] + "/result", format=kind, quality=100)
        try:
            await images.made(pool, job)
        except Exception as error:
            print(kind, type(error).__name__, error.status, error.error_reason, error.message)
    print(list(Path(sys.argv[2]).iterdir()), len(pool.pids))
    await pool.stop()

asyncio.run(main())
"""
IN_A_SMALL_ONE = 'mount -t tmpfs -o size=32k tmpfs "$3" && exec "$1" -c "$CODE" "$2" "$3"'


def own_mounts() -> bool:
    """Whether a process may mount a disk that nobody else sees."""
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not own_mounts(), reason="needs a disk of its own, which not all systems lend")
async def test_full_disk_is_said_for_pictures_too(tmp_path: Path) -> None:
    source = tmp_path / "noise.bmp"
    Image.effect_noise((300, 300), 90).save(source)
    (tmp_path / "small").mkdir()
    words = ("unshare", "-Urm", "sh", "-c", IN_A_SMALL_ONE, "sh")
    process = await asyncio.create_subprocess_exec(
        *(*words, sys.executable, str(source), str(tmp_path / "small")),
        stdout=subprocess.PIPE,
        env={**os.environ, "CODE": ON_A_FULL_DISK},
    )
    async with asyncio.timeout(PATIENCE):
        *refusals, last = (await process.communicate())[0].decode().splitlines()
    said = [line for line in refusals if "StorageUnavailable 503 storage_full" in line]
    assert len(said) == 7, refusals
    assert all("disk is full" in line for line in said)
    assert last == "[] 1"
