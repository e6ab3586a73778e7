"""Transforms as callers meet them: direct, preferred and queued, with the real engines."""

import asyncio
import io
import json
import re
import struct
import zlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aiserver.transforms.slots import CoreSlot
from clips import Clips
from fakes.painting import form
from fakes.receiver import Receiver
from gateway import SECRET, Reply, TestGateway, running
from pictures import quarters

PATIENCE = 30.0
MOVING = re.compile(rb'"progress":0\.(?!0[,}])')
Part = tuple[str, bytes]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
async def server(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    quick = {"SHUTDOWN_GRACE": "0s", "OUTBOUND_ALLOW": "127.0.0.1"}
    async with running(tmp_path / "data", migrated, **quick) as gateway:
        yield gateway


def picture(name: str = "cat.png", *, size: tuple[int, int] = (80, 60)) -> Part:
    written = io.BytesIO()
    quarters(*size).save(written, Path(name).suffix[1:])
    return name, written.getvalue()


def part(path: Path) -> Part:
    return path.name, path.read_bytes()


async def post(
    server: TestGateway,
    name: str,
    *,
    key: str = SECRET,
    headers: dict[str, str] | None = None,
    **parts: Any,
) -> Reply:
    body, kind = form(**parts)
    async with asyncio.timeout(PATIENCE):
        return await server.call(
            "POST", f"/api/{name}", body, key=key, headers={**kind, **(headers or {})}
        )


async def events(server: TestGateway, ref_id: str, *, key: str = SECRET) -> list[Any]:
    """All events of a job until it has ended."""
    async with asyncio.timeout(PATIENCE):
        return (await server.call("GET", f"/api/GetJobEvents?refId={ref_id}", key=key)).events()


async def status_of(server: TestGateway, ref_id: str, *, key: str = SECRET) -> Reply:
    return await server.call("GET", f"/api/GetArtifactGenerationStatus?RefId={ref_id}", key=key)


async def fetched(server: TestGateway, url: str) -> Reply:
    """By its address alone."""
    assert url.startswith(server.url)
    return await server.call("GET", url.removeprefix(server.url), key=None)


async def seen(server: TestGateway, url: str) -> Image.Image:
    reply = await fetched(server, url)
    assert reply.status == 200, reply.body
    return Image.open(io.BytesIO(reply.body))


async def running_transform(server: TestGateway, ref_id: str) -> None:
    """Until ffmpeg has told how far it is."""
    async with asyncio.timeout(PATIENCE):
        response = await server.open("GET", f"/api/GetJobEvents?refId={ref_id}")
        async with response:
            said = b""
            async for piece in response:
                said += piece
                if MOVING.search(said):
                    return
    raise AssertionError(said)


def scratch(server: TestGateway) -> list[Path]:
    return [path for path in (server.data / "scratch").glob("*/*") if path.is_dir()]


def block(server: TestGateway) -> list[CoreSlot]:
    """Takes every slot, so that jobs wait."""
    [room] = [room for room in server.app._rooms if "transform" in room.slots()]
    slots: Any = room.slots()["transform"]
    return [slots.reserve("", "") for _ in range(slots.left)]


async def test_all_call_styles_answer_alike(server: TestGateway) -> None:
    wish: dict[str, Any] = {"image": picture(), "outputFormat": "webp"}
    direct = await post(server, "ConvertImage", **wish)
    waited = await post(server, "ConvertImage", headers={"Prefer": "wait=30"}, **wish)
    later = await post(server, "ConvertImage", headers={"Prefer": "respond-async"}, **wish)
    queued = await post(server, "QueueConvertImage", refId="mine", **wish)
    assert [r.status for r in (direct, waited, later, queued)] == [200, 200, 202, 200]
    assert later.headers["location"].endswith(later.json()["refId"])
    answers = [direct.json(), waited.json()]
    for ref_id in (later.json()["refId"], "mine"):
        last = (await events(server, ref_id))[-2]
        answers += [last["result"], (await status_of(server, ref_id)).json()]
    for answer in answers:
        [result] = answer["results"]
        assert result["fileName"] == "cat.webp"
        assert answer["duration"].startswith("PT")
        assert (await seen(server, result["url"])).format == "WEBP"
    assert scratch(server) == []


async def test_queued_transform_is_acknowledged_as_the_contract_has_it(
    server: TestGateway,
) -> None:
    reply = await post(server, "QueueScaleImage", image=picture(), width="40", refId="r")
    said = reply.json()
    assert said.pop("jobId") > 0
    assert said.pop("jobState") in ("Queued", "Started")
    assert said.pop("status") in ("Queued", "Started")
    assert said == {"refId": "r", "statusUrl": "/api/GetArtifactGenerationStatus?RefId=r"}
    await events(server, "r")
    status = (await status_of(server, "r")).json()
    assert (status["jobState"], status["status"]) == ("Completed", "Completed")
    assert (await seen(server, status["results"][0]["url"])).size == (40, 30)


async def test_repeated_call_is_made_once(server: TestGateway) -> None:
    once = {"Idempotency-Key": "k"}
    wish: dict[str, Any] = {"image": picture(), "x": "1", "y": "2", "width": "10", "height": "20"}
    first = await post(server, "CropImage", headers=once, **wish)
    second = await post(server, "CropImage", headers=once, **wish)
    assert (first.status, second.status) == (200, 200)
    assert second.headers["idempotency-replayed"] == "true"
    assert await server.rows("SELECT count(*) FROM jobs") == [(1,)]
    assert (await seen(server, second.json()["results"][0]["url"])).size == (10, 20)


async def test_wait_that_ends_first_names_the_job(server: TestGateway) -> None:
    server.app._desk.deferred._wait = 0.05
    slots = block(server)
    reply = await post(server, "ConvertImage", image=picture(), outputFormat="gif")
    problem = reply.problem()
    assert (reply.status, problem["errorCode"]) == (504, "Timeout")
    ref_id = problem["meta"]["refId"]
    assert problem["meta"]["statusUrl"].endswith(ref_id)
    assert (await status_of(server, ref_id)).json()["jobState"] == "Queued"
    for slot in slots:
        slot.release()
    await events(server, ref_id)
    assert (await status_of(server, ref_id)).json()["jobState"] == "Completed"


async def test_caller_who_hangs_up_does_not_stop_the_job(server: TestGateway) -> None:
    slots = block(server)
    body, kind = form(image=picture(), outputFormat="jpg", refId="left")
    head = {**kind, "host": "x", "authorization": f"Bearer {SECRET}"}
    lines = [f"{name}: {value}" for name, value in head.items()]
    sent = "\r\n".join(["POST /api/ConvertImage HTTP/1.1", *lines, f"content-length: {len(body)}"])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"{sent}\r\n\r\n".encode() + body)
    await writer.drain()
    async with asyncio.timeout(PATIENCE):
        while not await server.rows("SELECT 1 FROM jobs WHERE ref_id = 'left'"):
            await asyncio.sleep(0.005)
    writer.close()
    await writer.wait_closed()
    assert not reader.at_eof() or not await reader.read()
    for slot in slots:
        slot.release()
    await events(server, "left")
    assert (await status_of(server, "left")).json()["jobState"] == "Completed"


async def test_progress_is_told_while_ffmpeg_runs(server: TestGateway, clips: Clips) -> None:
    await post(
        server, "QueueConvertVideo", video=part(clips.long()), outputFormat="webm", refId="r"
    )
    await running_transform(server, "r")
    await server.call("POST", "/api/CancelJob", {"refId": "r"})
    told = [event for event in await events(server, "r") if event["jobState"] == "Started"]
    done = [event["progress"] for event in told if event.get("progress")]
    assert done == sorted(done)
    assert any(0 < progress < 1 for progress in done)
    assert any(event["status"] == "Transforming" for event in told)


async def test_cancelled_transform_leaves_nothing(server: TestGateway, clips: Clips) -> None:
    await post(
        server, "QueueConvertVideo", video=part(clips.long()), outputFormat="webm", refId="r"
    )
    await running_transform(server, "r")
    assert len(scratch(server)) == 1
    reply = await server.call("POST", "/api/CancelJob", {"refId": "r"})
    assert reply.status == 200
    assert (await events(server, "r"))[-1]["jobState"] == "Cancelled"
    async with asyncio.timeout(PATIENCE):
        while scratch(server):
            await asyncio.sleep(0.005)
    assert (await status_of(server, "r")).status == 409
    assert await server.rows("SELECT count(*) FROM files WHERE kind = 'artifact'") == [(0,)]


async def test_result_is_for_its_owner_or_by_a_signed_address(server: TestGateway) -> None:
    owner, stranger = await server.key(), await server.key()
    await post(
        server, "QueueConvertImage", key=owner, image=picture(), outputFormat="jpg", refId="r"
    )
    await events(server, "r", key=owner)
    assert (await status_of(server, "r", key=stranger)).status == 404
    url = (await status_of(server, "r", key=owner)).json()["results"][0]["url"]
    bare = url.removeprefix(server.url).partition("?")[0]
    assert (await seen(server, url)).format == "JPEG"
    assert (await server.call("GET", bare, key=owner)).status == 200
    assert (await server.call("GET", bare, key=stranger)).status == 404
    assert (await server.call("GET", bare, key=None)).status == 404


async def test_addresses_begin_with_the_public_one(tmp_path: Path, migrated: bytes) -> None:
    settings = {"PUBLIC_URL": "https://ai.example/gate", "OUTBOUND_ALLOW": "127.0.0.1"}
    async with running(tmp_path / "data", migrated, **settings) as server, Receiver() as receiver:
        wish: dict[str, Any] = {"image": picture(), "outputFormat": "png"}
        direct = await post(server, "ConvertImage", **wish)
        await post(server, "QueueConvertImage", replyTo=receiver.url, refId="r", **wish)
        await receiver.reach(1)
        [call] = receiver.received
    said = json.loads(call.body)
    assert said["refId"] == "r"
    for [result] in (direct.json()["results"], said["outputs"]):
        assert result["url"].startswith("https://ai.example/gate/artifacts/2")
        assert "signature=" in result["url"]


async def test_public_results_have_lasting_addresses(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, PUBLIC_ARTIFACTS="true") as server:
        reply = await post(server, "ConvertImage", image=picture(), outputFormat="bmp")
        url = reply.json()["results"][0]["url"]
        assert "?" not in url
        assert (await seen(server, url)).format == "BMP"


async def test_strange_host_is_in_no_address(server: TestGateway) -> None:
    await post(server, "QueueConvertImage", image=picture(), outputFormat="jpg", refId="r")
    await events(server, "r")
    head = [
        "GET /api/GetArtifactGenerationStatus?RefId=r HTTP/1.1",
        "Host: evil.example/x?",
        f"Authorization: Bearer {SECRET}",
        "Connection: close",
    ]
    said = await server.raw("\r\n".join([*head, "", ""]).encode())
    assert b"200" in said.partition(b"\r\n")[0]
    assert b'"url":"/artifacts/' in said
    assert b"evil" not in said


async def test_name_of_an_upload_is_never_a_path(server: TestGateway) -> None:
    _, content = picture()
    for name in ("../../etc/passwd.png", "..\\..\\x.png", "/abs/cat.png", "a\u202egnp.png", ".png"):
        reply = await post(server, "ConvertImage", image=(name, content), outputFormat="jpg")
        [result] = reply.json()["results"]
        assert result["fileName"] in ("passwd.jpg", "x.jpg", "cat.jpg", "agnp.jpg", "png.jpg")
        assert (await fetched(server, result["url"])).status == 200


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header says that it has this many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PNG = picture()[1]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"
HLS = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("ConvertImage", {"outputFormat": "png"}, "No image file provided"),
        ("ConvertVideo", {"outputFormat": "mp4"}, "No video file provided"),
        ("ConvertAudio", {"outputFormat": "mp3"}, "No audio file provided"),
        ("ConvertImage", {"image": ("a.png", b""), "outputFormat": "png"}, "file is empty"),
        ("ConvertImage", {"image": ("a.png", PNG), "outputFormat": "exe"}, "'Output Format'"),
        ("ConvertImage", {"image": ("a.png", bomb(50_000)), "outputFormat": "png"}, "pixels"),
        ("ConvertImage", {"image": ("a.svg", SVG), "outputFormat": "png"}, "no image"),
        ("ConvertImage", {"image": ("a.png", PNG[:100]), "outputFormat": "jpg"}, "damaged"),
        ("CropImage", {"image": ("a.png", PNG), "x": "-1", "width": "5", "height": "5"}, "crop"),
        ("CropImage", {"image": ("a.png", PNG), "width": "500", "height": "5"}, "crop"),
        ("ScaleImage", {"image": ("a.png", PNG)}, "Invalid scale dimensions"),
        ("ScaleImage", {"image": ("a.png", PNG), "width": "0"}, "Invalid scale dimensions"),
        ("ScaleImage", {"image": ("a.png", PNG), "width": "2000000000"}, "pixels"),
        ("ConvertVideo", {"video": ("a.mp4", PNG)}, ""),
        ("ConvertVideo", {"video": ("a.mp4", CONCAT)}, ""),
        ("ConvertVideo", {"video": ("a.mp4", HLS)}, ""),
        ("ScaleVideo", {"video": ("a.mp4", b"x")}, "Invalid scale dimensions"),
        ("TrimVideo", {"video": ("a.mp4", b"x"), "startTime": "0:05", "endTime": "0:01"}, "after"),
        ("CropVideo", {"video": ("a.mp4", b"x"), "x": "-4", "width": "9", "height": "9"}, "crop"),
        ("WatermarkVideo", {"video": ("a.mp4", b"x")}, "No watermark image file provided"),
        ("ConvertAudio", {"audio": ("a.mp3", b"ID3 not really"), "outputFormat": "wav"}, ""),
    ],
)
async def test_bad_input_is_the_callers_fault(
    server: TestGateway, name: str, parts: dict[str, Any], words: str
) -> None:
    reply = await post(server, name, **parts)
    problem = reply.problem()
    assert reply.status == 400, reply.body
    assert words.lower() in problem["message"].lower()
    assert "/" + str(server.data).strip("/") not in reply.body.decode()
    assert "passwd" not in reply.body.decode()
    assert scratch(server) == []


async def test_text_can_be_the_watermark(server: TestGateway) -> None:
    reply = await post(
        server, "WatermarkImage", image=picture(size=(400, 300)), text="Mine", opacity="1"
    )
    assert reply.status == 200, reply.body
    made = (await seen(server, reply.json()["results"][0]["url"])).convert("RGB")
    assert made.size == (400, 300)
    assert made.tobytes() != quarters(400, 300).tobytes()


async def test_files_of_one_key_only_are_in_its_list(server: TestGateway) -> None:
    owner, stranger = await server.key(), await server.key()
    await post(server, "ConvertImage", key=owner, image=picture(), outputFormat="jpg")
    [file] = (await server.call("GET", "/api/QueryFiles?kind=artifact", key=owner)).json()[
        "results"
    ]
    assert (file["operation"], file["width"], file["height"]) == ("ConvertImage", 80, 60)
    assert file["jobId"] > 0
    theirs = await server.call("GET", "/api/QueryFiles?kind=artifact", key=stranger)
    assert theirs.json()["results"] == []


async def test_signed_address_outlives_a_restart(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated) as first:
        reply = await post(first, "ConvertImage", image=picture(), outputFormat="avif")
        url = reply.json()["results"][0]["url"].removeprefix(first.url)
    async with running(tmp_path / "data", migrated) as second:
        assert (await second.call("GET", url, key=None)).headers["content-type"] == "image/avif"


async def test_fast_trim_copies_what_is_there(server: TestGateway, clips: Clips) -> None:
    clip = part(clips.moving("keys.mp4", seconds=4.0))
    reply = await post(server, "TrimVideo", video=clip, startTime="0", endTime="1.5", fast="true")
    assert reply.status == 200, reply.body
    assert reply.json()["results"][0]["fileName"] == "keys.mp4"
