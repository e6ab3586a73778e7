"""Files made to harm: each is the caller's error, and the child goes on."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Convert, Inspect, Scale, Variant
from aiserver.kit.imaging.pool import ImagingPool
from pictures import BLUE, RED, Save, close, quarters

pytestmark = pytest.mark.asyncio(loop_scope="module")


def encoded(kind: str, picture: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    (picture or quarters()).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", rows)


def gif(frames: int, side: int = 4) -> bytes:
    size = struct.pack("<HH", side, side)
    frame = b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + frame * frames + b"\x3b"


def tiff(tags: list[tuple[int, int, int]], *, following: int = 0) -> bytes:
    page = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        page += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", following)


def huge_strip(width: int, height: int) -> bytes:
    return tiff(
        [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 8),
            (262, 3, 1),
            (273, 4, 8),
            (277, 3, 1),
            (278, 4, height),
            (279, 4, 20),
        ]
    )


def sharing_a_strip(pages: int, side: int) -> bytes:
    """Pages that all show the same few packed bytes."""
    packed = zlib.compress(bytes(side * side), 9)
    made = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    tags = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1)]
    tags += [(278, side), (279, len(packed))]
    for page in range(pages):
        body = struct.pack("<H", len(tags))
        for tag, value in tags:
            body += struct.pack("<HHII", tag, 4, 1, value)
        after = len(made) + len(body) + 4
        made += body + struct.pack("<I", after if page < pages - 1 else 0)
    return made


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def many_webp_frames(count: int) -> bytes:
    head = chunk_le(b"VP8X", struct.pack("<I", 2) + b"\x03\0\0\x03\0\0")
    head += chunk_le(b"ANIM", bytes(6))
    still = encoded("webp", Image.new("RGB", (4, 4)))[12:]
    frame = chunk_le(b"ANMF", bytes(6) + b"\x03\0\0\x03\0\0\x0a\0\0\0" + still)
    body = b"WEBP" + head + frame * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk_le(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)


BOMBS: dict[str, tuple[bytes, str]] = {
    "50k x 50k png": (png(50_000, 50_000), "TooManyPixels"),
    "largest png": (png(2**31 - 1, 2**31 - 1), "DamagedImage"),
    "100k-frame gif": (gif(100_000), "TooManyFrames"),
    "large frames gif": (gif(20, 2000), "TooManyPixels"),
    "many-frame webp": (many_webp_frames(5000), "TooManyFrames"),
    "pages in a circle": (tiff([(256, 3, 1)], following=8), "TooManyFrames"),
    "pages that share a strip": (sharing_a_strip(900, 1000), "TooManyPixels"),
    "huge strip tiff": (huge_strip(60_000, 60_000), "TooManyPixels"),
    "wide tiff": (huge_strip(2**31 - 1, 1), "DamagedImage"),
    "50k x 50k bmp": (bmp(50_000, 50_000), "TooManyPixels"),
    "negative bmp": (bmp(-5, 5), "TooManyPixels"),
    "empty": (b"", "UnsupportedImage"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "UnsupportedImage"),
    "svg with a file": (
        b"<?xml version='1.0'?><svg><image href='file:///etc/passwd'/></svg>",
        "UnsupportedImage",
    ),
    "pdf": (b"%PDF-1.7\n", "UnsupportedImage"),
    "text": (b"not an image", "UnsupportedImage"),
    "vips file": (b"\xb6\xa6\xf2\x08" + bytes(200), "UnsupportedImage"),
    "magic only jpeg": (b"\xff\xd8\xff\xe0" + bytes(50), "DamagedImage"),
    "svg behind a gif's start": (b"GIF89a/*<svg onload=alert(1)>*/=1;", "DamagedImage"),
    "heic without a picture": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        "UnsupportedImage",
    ),
}


@pytest.mark.parametrize("name", list(BOMBS))
async def test_bomb_is_refused_before_it_is_decoded(
    pool: ImagingPool, save: Save, out: str, name: str
) -> None:
    data, code = BOMBS[name]
    source = save("upload", data)
    before = pool.pids
    codes: set[str] = set()
    for job in (
        Convert(source=source, result=out, format="png"),
        Variant(source=source, result=out, width=10),
    ):
        with pytest.raises(ImageRefused) as refused:
            await pool.run(job, timeout=10)
        codes.add(refused.value.code)
    assert codes == {code}
    assert not before or pool.pids == before
    assert not Path(out).exists()


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "tiff", "webp", "avif"])
async def test_truncated_file_is_refused(
    pool: ImagingPool, save: Save, out: str, kind: str
) -> None:
    data = encoded(kind, Image.effect_noise((120, 90), 70).convert("RGB"))
    for part in (0.1, 0.5, 0.9):
        source = save("cut", data[: int(len(data) * part)])
        for job in (
            Convert(source=source, result=out, format="png"),
            Variant(source=source, result=out, width=30, format="webp"),
        ):
            with pytest.raises(ImageRefused) as refused:
                await pool.run(job, timeout=10)
            assert refused.value.code == "DamagedImage"
            assert "damaged or cut off" in str(refused.value)
            assert not Path(out).exists()


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
async def test_compressed_metadata_bomb_does_no_harm(
    pool: ImagingPool, save: Save, out: str, kind: bytes
) -> None:
    packed = zlib.compress(bytes(300_000_000), 9)
    source = save("bomb.png", png(100, 100, chunk(kind, b"name\0\0" + packed)))
    with contextlib.suppress(ImageRefused):
        await pool.run(Variant(source=source, result=out, width=50), timeout=10)
    assert (await pool.run(Inspect(source=save("a.png", quarters())), timeout=10)).width == 80


async def test_strip_that_unpacks_to_more_than_its_page_does_no_harm(
    pool: ImagingPool, save: Save, out: str
) -> None:
    packed = zlib.compress(bytes(150_000_000), 1)
    sides = [(256, 4, 100), (257, 4, 100), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 122)]
    strip = tiff([*sides, (277, 3, 1), (278, 4, 100), (279, 4, len(packed))]) + packed
    source = save("bomb.tiff", strip)
    result = await pool.run(Variant(source=source, result=out, width=50), timeout=10)
    assert (result.width, result.height) == (50, 50)
    [pid] = pool.pids
    status = Path(f"/proc/{pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 200_000


async def test_error_that_quotes_the_file_spoils_no_other_job(
    pool: ImagingPool, save: Save, out: str
) -> None:
    strange = save("a.avif", encoded("avif").replace(b"av1C", b"av\xff\xfe"))
    cut = save("b.png", encoded("png")[:100])
    for source in (strange, cut, strange):
        with pytest.raises(ImageRefused) as refused:
            await pool.run(Convert(source=source, result=out, format="png"), timeout=10)
        assert refused.value.code == "DamagedImage"


async def test_profile_that_png_cannot_hold_is_left_out(
    pool: ImagingPool, save: Save, out: str
) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # How many tags it has.
    profile[128:132] = b"\xff" * 4
    source = save("a.jpg", quarters(), format="JPEG", icc_profile=bytes(profile))
    await pool.run(Convert(source=source, result=out, format="png"), timeout=10)
    with Image.open(out) as made:
        assert close(made.getpixel((2, 2)), RED)
        assert "icc_profile" not in made.info


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
async def test_broken_colour_profile_is_left_out(
    pool: ImagingPool, save: Save, out: str, mode: str
) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[300:] = bytes(len(profile) - 300)
    source = save("a.jpg", quarters().convert(mode), format="JPEG", icc_profile=bytes(profile))
    for job in (
        Scale(source=source, result=out, width=40, format="png"),
        Variant(source=source, result=out, width=40, format="png"),
        Convert(source=source, result=out, format="png"),
    ):
        await pool.run(job, timeout=10)
        with Image.open(out) as made:
            shown = made.convert("RGB")
            assert close(shown.getpixel((2, 2)), RED, 60)
        Path(out).unlink()


async def test_moving_avif_is_refused_by_name(pool: ImagingPool, save: Save, out: str) -> None:
    frames = [quarters(), quarters().rotate(90)]
    source = save("a.avif", frames[0], save_all=True, append_images=frames[1:], speed=10)
    with pytest.raises(ImageRefused, match="Animated AVIF images cannot be read here"):
        await pool.run(Convert(source=source, result=out, format="png"), timeout=10)


async def test_what_follows_a_picture_is_left_behind(
    pool: ImagingPool, save: Save, out: str
) -> None:
    script = b"<script>alert(1)</script>PK\x03\x04"
    source = save("both.html", encoded("jpeg") + script)
    await pool.run(Convert(source=source, result=out, format="jpg"), timeout=10)
    assert b"script" not in Path(out).read_bytes()


async def test_mislabelled_file_is_read_by_its_bytes(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = save("photo.jpg", Image.new("RGB", (9, 9), BLUE), format="PNG")
    await pool.run(Variant(source=source, result=out), timeout=10)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert close(picture.getpixel((4, 4)), BLUE)


async def test_odd_names_are_only_names(pool: ImagingPool, save: Save, out: str) -> None:
    for name in ("a[shrink=8].png", "-o.png", "b.png,c", "ünï\n.png"):
        source = save(name, quarters(), format="PNG")
        result = await pool.run(
            Convert(source=source, result=out + "[Q=1]", format="jpg"), timeout=10
        )
        assert (result.width, result.height) == (80, 60)
        Path(out + "[Q=1]").unlink()


async def test_only_plain_files_are_read(
    pool: ImagingPool, save: Save, out: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        with pytest.raises(ImageRefused, match="not a plain file"):
            await pool.run(Inspect(source=str(path)), timeout=10)


async def test_bounds_hold_exactly(tight: ImagingPool, save: Save) -> None:
    within = [
        Image.new("RGB", (100, 100)),
        Image.new("RGB", (10_000, 1)),
    ]
    for at, picture in enumerate(within):
        await tight.run(Inspect(source=save(f"{at}.png", picture)), timeout=10)
    for at, picture in enumerate((Image.new("RGB", (100, 101)), Image.new("RGB", (10_001, 1)))):
        with pytest.raises(ImageRefused, match=r"0\.01 million pixels"):
            await tight.run(Inspect(source=save(f"over{at}.png", picture)), timeout=10)


async def test_frames_count_in_the_pixel_bound(tight: ImagingPool, save: Save) -> None:
    frames = [Image.new("RGB", (50, 40), (at * 40, 0, 0)) for at in range(6)]
    for kind in ("gif", "webp", "tiff"):
        packed = {"save_all": True} | ({"compression": "tiff_lzw"} if kind == "tiff" else {})
        full = save(f"full.{kind}", frames[0], append_images=frames[1:5], **packed)
        assert (await tight.run(Inspect(source=full), timeout=10)).frames == 5
        more = save(f"more.{kind}", frames[0], append_images=frames[1:], **packed)
        with pytest.raises(ImageRefused, match="more than 5 frames"):
            await tight.run(Inspect(source=more), timeout=10)
        tall = [frame.resize((50, 41)) for frame in frames]
        over = save(f"over.{kind}", tall[0], append_images=tall[1:5], **packed)
        with pytest.raises(ImageRefused, match="50 x 41 x 5 frames"):
            await tight.run(Inspect(source=over), timeout=10)


async def test_file_size_bound_holds_exactly(tight: ImagingPool, save: Save) -> None:
    data = encoded("png")
    exact = save("exact.png", data + bytes(20_000 - len(data)))
    assert (await tight.run(Inspect(source=exact), timeout=10)).size == 20_000
    with pytest.raises(ImageRefused) as refused:
        await tight.run(
            Inspect(source=save("over.png", data + bytes(20_001 - len(data)))), timeout=10
        )
    assert refused.value.code == "FileTooLarge"


@pytest.mark.parametrize(("samples", "bits", "code"), [(5, 8, "UnsupportedImage"), (8, 16, None)])
async def test_more_channels_than_colours_have_are_refused(
    tight: ImagingPool, save: Save, samples: int, bits: int, code: str | None
) -> None:
    tags = [
        (256, 4, 100),
        (257, 4, 100),
        (258, 3, bits),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, samples),
        (278, 4, 100),
        (279, 4, 20),
    ]
    with pytest.raises(ImageRefused) as refused:
        await tight.run(Inspect(source=save("many.tiff", tiff(tags))), timeout=10)
    assert refused.value.code == (code or "TooManyPixels")


async def test_deep_pixels_count_in_the_bound(tight: ImagingPool, save: Save) -> None:
    deep = Image.new("F", (100, 100))
    await tight.run(Inspect(source=save("deep.tiff", deep, compression="tiff_lzw")), timeout=10)
