"""Variants through the gateway: their pixels, who gets which, and that each is made once."""

import asyncio
import io
import random
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image, ImageSequence

from aiserver.files.artifacts import Artifact
from aiserver.files.blobs import Blobs, LocalBlobs
from aiserver.files.signing import SignedUrls
from aiserver.files.variant_cache import Key
from aiserver.files.variant_options import Presets
from aiserver.files.variants import MOST_AT_ONCE, Variants
from aiserver.kit.clock import SystemClock
from aiserver.kit.imaging.errors import ImagingBusy, ImagingFailed
from aiserver.kit.imaging.jobs import Job, Result
from aiserver.kit.imaging.pool import ImagingPool
from aiserver.transforms.scratch import Scratch
from gateway import SECRET, Reply, TestGateway, running
from pictures import BLUE, GREEN, RED, WHITE, close, corners, quarters
from stored import HTML, SVG, kept, key_with_id, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated: bytes
) -> AsyncGenerator[TestGateway]:
    """One for all, so that the children start once."""
    async with running(tmp_path_factory.mktemp("variants") / "data", migrated) as opened:
        yield opened


class Watched:
    """The pool, its jobs counted; they wait while `gate` is closed, and fail with `error`."""

    def __init__(self, pool: ImagingPool) -> None:
        self._pool = pool
        self.limits = pool.limits
        self.jobs: list[Job] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    async def run(self, job: Job, *, timeout: float) -> Result:
        self.jobs.append(job)
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await self._pool.run(job, timeout=timeout)


class Vanished:
    """A scratch folder that somebody deletes as soon as it is there."""

    @asynccontextmanager
    async def folder(self) -> AsyncGenerator[Path]:
        yield Path("/nowhere")

    file = folder


def room(gateway: TestGateway) -> Variants:
    return next(each for each in gateway.app._rooms if isinstance(each, Variants))


@pytest.fixture
def watched(gateway: TestGateway, monkeypatch: pytest.MonkeyPatch) -> Watched:
    variants = room(gateway)
    pool = variants._imaging
    assert isinstance(pool, ImagingPool)
    watched = Watched(pool)
    monkeypatch.setattr(variants, "_imaging", watched)
    return watched


_shades = iter(range(1, 10_000))


def png(picture: Image.Image | None = None) -> bytes:
    """Never the same bytes twice, unless the picture is given."""
    if picture is None:
        picture = quarters()
        picture.putpixel((79, 59), (255, 255 - next(_shades) % 200, next(_shades) % 256))
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


def gif(frames: int = 3) -> bytes:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in (RED, GREEN, BLUE)[:frames]]
    written = io.BytesIO()
    pictures[0].save(written, "GIF", save_all=True, append_images=pictures[1:], duration=100)
    return written.getvalue()


async def get(gateway: TestGateway, options: str, file: Artifact | str, **more: Any) -> Reply:
    path = file if isinstance(file, str) else file.path
    return await gateway.call("GET", f"/variants/{options}/{path}", **more)


def shown(reply: Reply) -> Image.Image:
    assert reply.status == 200, reply.body
    return Image.open(io.BytesIO(reply.body))


def message(reply: Reply) -> str:
    return reply.problem()["message"]


@pytest.fixture
async def file(gateway: TestGateway) -> Artifact:
    return await kept(gateway, png())


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("width=40", (40, 30)),
        ("height=128", (171, 128)),
        ("width=51,height=52", (51, 52)),
        ("width=40,height=40,fit=contain", (40, 40)),
        ("width=40,height=40,fit=cover", (40, 40)),
        ("width=40,height=40,fit=inside", (40, 30)),
        ("width=400,fit=inside", (80, 60)),
        ("width=20,dpr=2", (40, 30)),
        ("width=30,rotate=90", (30, 40)),
        ("thumb", (160, 160)),
        ("small", (80, 60)),
    ],
)
async def test_picture_has_the_size_asked_for(
    gateway: TestGateway, file: Artifact, options: str, size: tuple[int, int]
) -> None:
    reply = await get(gateway, options, file)
    picture = shown(reply)
    assert (picture.format, picture.size) == ("WEBP", size)
    assert reply.headers["content-type"] == "image/webp"


async def test_pixels_are_those_of_the_source(gateway: TestGateway, file: Artifact) -> None:
    for options, wanted in (
        ("width=40,format=png", (RED, GREEN, BLUE, WHITE)),
        ("width=40,format=png,rotate=180", (WHITE, BLUE, GREEN, RED)),
        ("width=20,height=30,fit=cover,gravity=west,format=png", (RED, RED, BLUE, BLUE)),
    ):
        found = corners(shown(await get(gateway, options, file)))
        assert all(close(one, other) for one, other in zip(found, wanted, strict=True)), options


async def test_quality_blur_and_gravity_are_applied(gateway: TestGateway) -> None:
    noise = random.Random(5).randbytes(200 * 150)
    picture = Image.frombytes("L", (200, 150), noise).convert("RGB")
    picture.paste(quarters(40, 40), (160, 110))
    file = await kept(gateway, png(picture))
    fine, coarse = [await get(gateway, f"width=100,format=jpg,quality={q}", file) for q in (95, 10)]
    assert len(coarse.body) * 2 < len(fine.body)
    blurred = shown(await get(gateway, "width=200,format=png,blur=20", file))
    low, high = blurred.convert("L").crop((0, 0, 100, 100)).getextrema()
    assert isinstance(low, int)
    assert isinstance(high, int)
    assert high - low < 60
    crop = "width=40,height=40,fit=cover,format=png"
    found = shown(await get(gateway, f"{crop},gravity=attention", file))
    assert found.size == (40, 40)


async def test_metadata_goes_unless_it_is_asked_for(gateway: TestGateway) -> None:
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    written = io.BytesIO()
    quarters().save(written, "JPEG", exif=exif)
    file = await kept(gateway, written.getvalue(), extension="jpg")
    assert not shown(await get(gateway, "width=64,format=jpg", file)).getexif()
    told = shown(await get(gateway, "width=64,format=jpg,strip=false", file)).getexif()
    assert told[0x013B] == "somebody"


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("image/avif,image/webp,*/*", "image/avif"),
        ("image/webp,*/*", "image/webp"),
        ("image/jpeg", "image/jpeg"),
        ("*/*", "image/webp"),
    ],
)
async def test_accept_header_decides_the_format(
    gateway: TestGateway, file: Artifact, accept: str, found: str
) -> None:
    reply = await get(gateway, "width=32", file, headers={"accept": accept})
    assert reply.headers["content-type"] == found
    assert Image.MIME[shown(reply).format or ""] == found
    assert reply.headers["vary"] == "Accept"
    named = await get(gateway, "width=32,format=gif", file, headers={"accept": accept})
    assert (named.headers["content-type"], "vary" in named.headers) == ("image/gif", False)


async def test_animation_stays_one(gateway: TestGateway) -> None:
    file = await kept(gateway, gif(), extension="gif")
    accept = {"accept": "image/avif,image/webp,*/*"}
    for options, kind in (("width=16", "WEBP"), ("width=16,format=gif", "GIF")):
        picture = shown(await get(gateway, options, file, headers=accept))
        assert (picture.format, picture.size) == (kind, (16, 12))
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        colours = [frame.getpixel((8, 6)) for frame in frames]
        assert all(close(*pair) for pair in zip(colours, (RED, GREEN, BLUE), strict=True))


async def test_headers_are_as_of_the_source(gateway: TestGateway, file: Artifact) -> None:
    reply = await get(gateway, "width=32", file)
    assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-disposition"] == 'inline; filename="cat.webp"'
    assert reply.headers["content-length"] == str(len(reply.body))
    tag = reply.headers["etag"]
    again = await get(gateway, "width=32", file, headers={"if-none-match": tag})
    assert (again.status, again.body, again.headers["vary"]) == (304, b"", "Accept")
    other = await get(gateway, "width=33", file)
    jpeg = await get(gateway, "width=32", file, headers={"accept": "image/jpeg"})
    assert len({tag, other.headers["etag"], jpeg.headers["etag"]}) == 3
    part = await get(gateway, "width=32", file, headers={"range": "bytes=2-5"})
    assert (part.status, part.body) == (206, reply.body[2:6])
    head = await gateway.call("HEAD", f"/variants/width=32/{file.path}")
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", tag)


async def test_public_upload_is_asked_for_anew(gateway: TestGateway) -> None:
    await upload(gateway, "pub", ("file", "a.png", png()))
    reply = await get(gateway, "width=32", "pub/0/a.png", key=None)
    assert reply.headers["cache-control"] == "public, no-cache"
    await upload(gateway, "pub", ("file", "a.png", png(Image.new("RGB", (9, 9), RED))))
    changed = await get(gateway, "width=32", "pub/0/a.png", key=None)
    assert shown(changed).size == (32, 32)


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ("colour=red", 400, "Invalid option"),
        ("fit=cover", 400, "width or height is required"),
        ("width=9000", 400, "Invalid option: width is a whole number from 1 to 8192."),
    ],
)
async def test_bad_options_are_told(
    gateway: TestGateway, file: Artifact, options: str, status: int, told: str
) -> None:
    reply = await get(gateway, options, file)
    assert reply.status == status
    assert message(reply).startswith(told)


async def test_missing_source_is_not_found(gateway: TestGateway) -> None:
    for path in ("2026/01/01/0/none.png", "../app.db", "%2e%2e/app.db", "a%00b", "pub/0/none"):
        reply = await get(gateway, "width=32", path)
        assert reply.status == 404, path
    reply = await gateway.call("GET", "/api/GetVariant?variant=width%3D32&path=../app.db")
    assert (reply.status, message(reply)) == (404, "Artifact not found")


@pytest.mark.parametrize(
    ("content", "extension"),
    [
        (b"plain words", "txt"),
        (HTML, "png"),
        (SVG, "svg"),
        (b"", "png"),
        (png(quarters())[:100], "png"),
        (png(quarters())[:40] + b"\xff" * 400, "png"),
        (b"\xff\xd8\xff" + b"\0" * 300, "jpg"),
        (b"GIF89a" + b"\xff" * 100, "gif"),
    ],
)
async def test_file_that_is_no_picture_is_the_callers_fault(
    gateway: TestGateway, content: bytes, extension: str
) -> None:
    file = await kept(gateway, content, extension=extension)
    reply = await get(gateway, "width=32", file)
    assert reply.status == 400, reply.body
    assert reply.headers["content-type"].startswith("application/json")


async def test_bomb_is_refused_by_its_header(gateway: TestGateway) -> None:
    whole = png(quarters())
    head = b"IHDR" + struct.pack(">II", 50_000, 50_000) + whole[24:29]
    bomb = whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:]
    reply = await get(gateway, "width=32", await kept(gateway, bomb))
    assert reply.status == 400
    assert "pixels" in message(reply)


async def test_result_beyond_the_pixel_limit_is_refused(
    gateway: TestGateway, file: Artifact
) -> None:
    reply = await get(gateway, "width=8192,height=8192", file)
    assert reply.status == 400
    assert "pixels" in message(reply)


async def test_second_call_decodes_nothing(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    replies = [
        await get(gateway, options, file)
        for options in (
            "width=40,height=30",
            "height=30,width=40,fit=fill",
            "width=20,height=15,dpr=2",
        )
    ]
    assert len(watched.jobs) == 1
    assert len({reply.body for reply in replies}) == 1


async def test_same_bytes_of_another_key_are_made_once(
    gateway: TestGateway, watched: Watched
) -> None:
    content = png()
    for _ in range(2):
        key, key_id = await key_with_id(gateway)
        file = await kept(gateway, content, key_id=key_id)
        assert (await get(gateway, "width=40", file, key=key)).status == 200
    assert len(watched.jobs) == 1


async def test_hundred_calls_at_once_decode_once(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    replies = await asyncio.gather(*(get(gateway, "width=48", file) for _ in range(100)))
    assert {(reply.status, len(reply.body)) for reply in replies} == {(200, len(replies[0].body))}
    assert len(watched.jobs) == 1


async def test_first_caller_that_leaves_fails_nobody(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    watched.gate.clear()
    key, options = Key(file.sha256, "left", "webp"), Presets().read("width=48")
    first, second = [
        asyncio.create_task(room(gateway)._made(key, file, options, "webp")) for _ in range(2)
    ]
    async with asyncio.timeout(10):
        await watched.begun.wait()
    first.cancel()
    watched.gate.set()
    assert (await second).size > 0
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(watched.jobs) == 1


async def test_failure_is_not_kept(gateway: TestGateway, file: Artifact, watched: Watched) -> None:
    watched.error = ImagingFailed()
    assert (await get(gateway, "width=48", file)).status == 500
    watched.error = None
    assert (await get(gateway, "width=48", file)).status == 200


async def test_broken_scratch_disk_is_not_the_callers_fault(
    gateway: TestGateway, file: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(broken: Any) -> bool:
        monkeypatch.setattr(room(gateway), "_scratch", broken)
        reply = await get(gateway, "width=48", file)
        return (reply.status, reply.headers["retry-after"]) == (503, "2")

    assert await refused(Scratch(tmp_path / "nowhere"))
    # As of a picture in an object store, which is copied first.
    monkeypatch.setattr(LocalBlobs, "file", Blobs.file)
    assert await refused(Scratch(tmp_path / "nowhere"))
    assert await refused(Vanished())


async def test_busy_pool_says_when_to_come_back(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    watched.error = ImagingBusy(retry_after=3)
    reply = await get(gateway, "width=48", file)
    assert (reply.status, reply.headers["retry-after"]) == (429, "3")


async def test_variants_under_way_are_bounded(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    watched.gate.clear()
    making = [
        asyncio.create_task(get(gateway, f"width={side + 1}", file)) for side in range(MOST_AT_ONCE)
    ]
    async with asyncio.timeout(10):
        while len(watched.jobs) < MOST_AT_ONCE:
            watched.begun.clear()
            await watched.begun.wait()
    reply = await get(gateway, "width=100", file)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    watched.error = ImagingFailed()
    watched.gate.set()
    await asyncio.gather(*making)


async def test_variant_goes_with_its_source(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    assert (await get(gateway, "width=48", file)).status == 200
    folder = gateway.data / "variants"
    assert list(folder.rglob(f"{file.sha256}-*"))
    reply = await gateway.call("DELETE", f"/files/artifacts/{file.path}")
    assert reply.status == 200, reply.body
    assert (await get(gateway, "width=48", file)).status == 404
    assert not list(folder.rglob(f"{file.sha256}-*"))


async def test_source_deleted_meanwhile_leaves_no_variant(
    gateway: TestGateway, file: Artifact, watched: Watched
) -> None:
    watched.gate.clear()
    asking = asyncio.create_task(get(gateway, "width=48", file))
    async with asyncio.timeout(10):
        await watched.begun.wait()
    await gateway.call("DELETE", f"/files/artifacts/{file.path}")
    watched.gate.set()
    await asking
    assert not list((gateway.data / "variants").rglob(f"{file.sha256}-*"))


async def test_others_variants_are_not_there(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, png(), key_id=key_id)
    other, _ = await key_with_id(gateway)
    # Once before it is made, once after.
    for _ in range(2):
        for stranger in (other, None):
            reply = await get(gateway, "width=64", file, key=stranger)
            assert (reply.status, message(reply)) == (404, "Artifact not found")
        assert (await get(gateway, "width=64", file, key=key)).status == 200
    assert (await get(gateway, "width=64", file, key=SECRET)).status == 200
    assert (await get(gateway, "width=64", file, key="ak-" + "f" * 32)).status == 401


async def test_signature_of_the_source_opens_grid_and_presets(
    gateway: TestGateway, file: Artifact
) -> None:
    query = await gateway.app.urls.query(file.path)
    for options in ("width=512", "width=512,height=448", "thumb", "medium,format=jpg"):
        reply = await get(gateway, options, f"{file.path}{query}", key=None)
        assert reply.status == 200, options
    free = await get(gateway, "width=500", f"{file.path}{query}", key=None)
    assert free.status == 403
    assert "multiples of 64, up to 2048" in message(free)
    assert (await get(gateway, "width=500", f"{file.path}{query}")).status == 200


async def test_signature_that_does_not_fit_opens_nothing(
    gateway: TestGateway, file: Artifact
) -> None:
    expired = SignedUrls(gateway.app._data.engine.tables, SystemClock(), ttl=-1)
    late = await get(gateway, "width=64", file.path + await expired.query(file.path), key=None)
    assert (late.status, late.problem()["errorCode"]) == (403, "LinkExpired")
    other = await gateway.app.urls.query(file.path + "x")
    assert (await get(gateway, "width=64", file.path + other, key=None)).status == 404


async def test_operator_sets_presets_and_cap(tmp_path: Path, migrated: bytes) -> None:
    folder = tmp_path / "data"
    (folder / "overrides").mkdir(parents=True)
    (folder / "overrides" / "variants.json").write_text('{"card": "width=33,height=11"}')
    async with running(folder, migrated, VARIANT_CACHE="0", PUBLIC_ARTIFACTS="true") as gateway:
        file = await kept(gateway, png())
        reply = await get(gateway, "card", file, key=None)
        assert shown(reply).size == (33, 11)
        assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert not [each for each in (folder / "variants").rglob("*") if each.is_file()]
        assert (await get(gateway, "card", file, key=None)).body == reply.body
