"""The one operation for every task: it only queues, and its job is a job like any other."""

import asyncio
import io
import json
import wave
from array import array
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from clips import Clips, grey, pictures, seen
from fakes.painting import form
from fakes.receiver import Receiver
from gateway import SECRET, Reply, TestGateway, running
from pictures import RED, WHITE, close, quarters

PATIENCE = 30.0
# The name of the file, and its bytes.
Part = tuple[str, bytes]
# How such callers send theirs.
EXPRESSION = "main_w-overlay_w-10:main_h-overlay_h-10"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
async def server(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    quick = {"SHUTDOWN_GRACE": "0s", "OUTBOUND_ALLOW": "127.0.0.1"}
    async with running(tmp_path / "data", migrated, **quick) as gateway:
        yield gateway


def picture(*, size: tuple[int, int] = (80, 60)) -> Part:
    written = io.BytesIO()
    quarters(*size).save(written, "png")
    return "cat.png", written.getvalue()


def logo() -> Part:
    written = io.BytesIO()
    Image.new("RGB", (20, 15), WHITE).save(written, "png")
    return "logo.png", written.getvalue()


def counting() -> Part:
    """A second of sound whose samples are their own numbers."""
    written = io.BytesIO()
    with wave.open(written, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(array("h", range(16_000)).tobytes())
    return "count.wav", written.getvalue()


def part(path: Path) -> Part:
    return path.name, path.read_bytes()


async def create(
    server: TestGateway,
    args: dict[str, Any] | None,
    *,
    key: str = SECRET,
    headers: dict[str, str] | None = None,
    wishes: dict[str, str] | None = None,
    **files: Part,
) -> Reply:
    parts: dict[str, Any] = {**(wishes or {}), **files}
    if args is not None:
        parts["request"] = json.dumps(args)
    body, kind = form(**parts)
    async with asyncio.timeout(PATIENCE):
        return await server.call(
            "POST",
            "/api/CreateMediaTransform",
            body,
            key=key,
            headers={**kind, **(headers or {})},
        )


async def outcome(server: TestGateway, ref_id: str, *, key: str = SECRET) -> Reply:
    """The status of a job once it has ended, which its events tell."""
    async with asyncio.timeout(PATIENCE):
        await server.call("GET", f"/api/GetJobEvents?refId={ref_id}", key=key)
    path = f"/api/GetArtifactGenerationStatus?RefId={ref_id}"
    return await server.call("GET", path, key=key)


async def made(server: TestGateway, folder: Path, args: dict[str, Any], **files: Any) -> Path:
    """The file that a task makes, fetched by its address alone."""
    reply = await create(server, args, **files)
    assert reply.status == 200, reply.body
    ids = reply.json()
    assert ids.keys() == {"id", "refId"}
    status = (await outcome(server, ids["refId"])).json()
    assert (status["jobId"], status["jobState"]) == (ids["id"], "Completed"), status
    [result] = status["results"]
    path = folder / result["fileName"]
    url = result["url"].removeprefix(server.url)
    path.write_bytes((await server.call("GET", url, key=None)).body)
    return path


async def test_pictures_are_changed_as_the_task_says(server: TestGateway, tmp_path: Path) -> None:
    wide = await made(
        server, tmp_path, {"taskType": "ImageScale", "scaleWidth": 40}, image=picture()
    )
    with Image.open(wide) as found:
        assert (wide.name, found.format, found.size) == ("cat.png", "PNG", (40, 30))
    args: dict[str, Any] = {"taskType": "ImageConvert", "imageOutputFormat": "Webp"}
    with Image.open(await made(server, tmp_path, args, image=picture())) as found:
        assert (found.format, found.size) == ("WEBP", (80, 60))
    args = {"taskType": "ImageCrop", "cropX": 2, "cropY": 3, "cropWidth": 10, "cropHeight": 20}
    with Image.open(await made(server, tmp_path, args, image=picture())) as found:
        assert found.size == (10, 20)
        assert close(found.convert("RGB").getpixel((5, 5)), RED)


async def test_watermark_lies_on_a_picture(server: TestGateway, tmp_path: Path) -> None:
    args = {"taskType": "WatermarkImage", "watermarkPosition": "TopLeft", "watermarkScale": "2"}
    path = await made(server, tmp_path, args, image=picture(size=(200, 150)), watermark=logo())
    with Image.open(path) as found:
        shown = found.convert("RGB")
        # Half of white over red, from the margin on, twice as large as it was.
        assert close(shown.getpixel((45, 35)), (255, 128, 128))
        assert close(shown.getpixel((55, 35)), RED)
        assert close(shown.getpixel((5, 5)), RED)


async def test_task_without_a_type_scales_a_video(
    server: TestGateway, clips: Clips, tmp_path: Path
) -> None:
    path = await made(server, tmp_path, {"scaleWidth": 80}, video=part(clips.plain()))
    found = seen(path)
    assert (path.name, found.sizes) == ("plain.mp4", ((80, 44),))
    assert found.kinds == ("video", "audio")


async def test_videos_are_changed_as_the_task_says(
    server: TestGateway, clips: Clips, tmp_path: Path
) -> None:
    clip = part(clips.plain())
    args: dict[str, Any] = {"taskType": "VideoConvert", "outputFormat": "MKV"}
    path = await made(server, tmp_path, args, video=clip)
    assert (path.name, seen(path).codecs) == ("plain.mkv", ("h264", "aac"))
    args = {"taskType": "VideoCrop", "cropX": 150, "cropWidth": 100, "cropHeight": 50}
    assert seen(await made(server, tmp_path, args, video=clip)).sizes == ((100, 50),)
    args = {"taskType": 7, "cutStart": 1.4, "cutEnd": 3}
    frames = list(pictures(await made(server, tmp_path, args, video=part(clips.clock()))))
    assert grey(frames[0], 32, 18) == pytest.approx(16 + 1.5 * 35, abs=1)
    assert len(frames) == pytest.approx(40, abs=1)


async def test_watermark_lies_on_a_video(server: TestGateway, clips: Clips, tmp_path: Path) -> None:
    black = clips.made(
        "black.mp4", "-f", "lavfi", "-i", "color=black:s=160x90:r=25:d=0.2", "-preset", "ultrafast"
    )
    args = {"taskType": "WatermarkVideo", "watermarkPosition": "topLeft", "watermarkScale": "1"}
    path = await made(server, tmp_path, args, video=part(black), watermark=logo())
    frame = next(pictures(path))
    assert grey(frame, 20, 15) > 200
    assert grey(frame, 50, 15) < 40


async def test_sounds_are_changed_as_the_task_says(server: TestGateway, tmp_path: Path) -> None:
    args: dict[str, Any] = {"taskType": "AudioConvert", "outputFormat": "flac"}
    path = await made(server, tmp_path, args, audio=counting())
    assert (path.name, seen(path).codecs) == ("count.flac", ("flac",))
    args = {"taskType": "AudioCut", "cutStart": 0.25, "cutEnd": 0.75}
    path = await made(server, tmp_path, args, audio=counting())
    with av.open(str(path)) as sound:
        numbers = [n for frame in sound.decode(audio=0) for n in frame.to_ndarray()[0].tolist()]
    assert numbers == list(range(4000, 12_000))


async def test_members_come_as_json_too(server: TestGateway) -> None:
    said = {"request": {"taskType": "AudioCut", "cutStart": 1}, "refId": "r"}
    reply = await server.call("POST", "/api/CreateMediaTransform", said)
    assert (reply.status, reply.problem()["message"]) == (400, "No audio file provided")
    assert await server.rows("SELECT count(*) FROM jobs") == [(0,)]


async def test_prefer_does_not_matter(server: TestGateway) -> None:
    args = {"taskType": "ImageScale", "scaleWidth": 40}
    for prefer in ("wait=30", "respond-async"):
        reply = await create(server, args, headers={"Prefer": prefer}, image=picture())
        assert (reply.status, reply.json().keys()) == (200, {"id", "refId"})
        assert "location" not in reply.headers
        assert (await outcome(server, reply.json()["refId"])).json()["jobState"] == "Completed"


async def test_repeated_call_is_queued_once(server: TestGateway) -> None:
    args = {"taskType": "ImageScale", "scaleWidth": 40}
    once = {"Idempotency-Key": "k"}
    first, second = [await create(server, args, headers=once, image=picture()) for _ in range(2)]
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    other = await create(server, {**args, "scaleWidth": 41}, headers=once, image=picture())
    assert other.status == 409
    assert await server.rows("SELECT count(*), min(operation) FROM jobs") == [
        (1, "CreateMediaTransform")
    ]


async def test_callback_carries_the_state_and_the_file(server: TestGateway) -> None:
    args = {"taskType": "ImageConvert", "imageOutputFormat": "jpg"}
    async with Receiver() as receiver:
        wishes = {"replyTo": receiver.url, "state": "s 1", "refId": "mine", "provider": "any"}
        reply = await create(server, args, wishes=wishes, image=picture())
        assert reply.json()["refId"] == "mine"
        await receiver.reach(1)
        [call] = receiver.received
    said = json.loads(call.body)
    assert (said["state"], said["refId"], said["jobId"]) == ("s 1", "mine", reply.json()["id"])
    assert said["outputs"][0]["fileName"] == "cat.jpg"


async def test_job_is_its_owners_and_a_scope_of_its_own(server: TestGateway) -> None:
    args = {"taskType": "ImageScale", "scaleWidth": 40}
    owner = await server.key(restrictTo=["CreateMediaTransform", "GetArtifactGenerationStatus"])
    reply = await create(server, args, key=owner, image=picture())
    ref_id = reply.json()["refId"]
    path = f"/api/GetArtifactGenerationStatus?RefId={ref_id}"
    assert (await server.call("GET", path, key=owner)).status == 200
    assert (await server.call("GET", path, key=await server.key())).status == 404
    other = await server.key(restrictTo=["ScaleImage", "QueueScaleImage"])
    assert (await create(server, args, key=other, image=picture())).status == 403


async def test_cancelled_job_says_so(server: TestGateway, clips: Clips) -> None:
    args = {"taskType": "VideoConvert", "outputFormat": "webm"}
    reply = await create(server, args, video=part(clips.long()))
    ref_id = reply.json()["refId"]
    assert (await server.call("POST", "/api/CancelJob", {"refId": ref_id})).status == 200
    assert (await outcome(server, ref_id)).status == 409


async def test_history_names_the_operation(server: TestGateway) -> None:
    args = {"taskType": "ImageScale", "scaleWidth": 40}
    reply = await create(server, args, image=picture())
    await outcome(server, reply.json()["refId"])
    files = (await server.call("GET", "/api/QueryFiles?kind=artifact")).json()["results"]
    assert [file["operation"] for file in files] == ["CreateMediaTransform"]
    async with asyncio.timeout(PATIENCE):
        told: list[Any] = []
        while len(told) < 2:
            server.app.history.wake()
            logs = (await server.call("GET", "/api/RequestLogs?take=200")).json()["results"]
            told = [e for e in logs if e["operationName"] == "CreateMediaTransform"]
    assert {(entry["httpMethod"], entry["pathInfo"]) for entry in told} == {
        ("POST", "/api/CreateMediaTransform"),
        ("JOB", "/api/CreateMediaTransform"),
    }


CUT = {"taskType": "AudioCut", "cutStart": 2}


@pytest.mark.parametrize(
    ("args", "files", "words"),
    [
        (None, ["image"], "'Request' must not be empty"),
        ({"taskType": "Explode"}, ["image"], "'Request' is not valid"),
        ({}, ["image"], "No video file provided"),
        ({"taskType": "ImageScale", "scaleWidth": 4}, ["video", "watermark"], "No image file"),
        (CUT, ["video"], "No audio file provided"),
        ({"taskType": "WatermarkImage"}, ["image"], "No watermark image file provided"),
        ({"taskType": "WatermarkVideo"}, ["video"], "No watermark image file provided"),
        ({"taskType": "ImageScale"}, ["image"], "Invalid scale dimensions"),
        ({}, ["video"], "Invalid scale dimensions"),
        ({"scaleWidth": 0}, ["video"], "Invalid scale dimensions"),
        ({"taskType": "ImageCrop"}, ["image"], "Invalid crop dimensions"),
        (
            {"taskType": "ImageCrop", "cropX": -1, "cropWidth": 4, "cropHeight": 4},
            ["image"],
            "Invalid crop dimensions",
        ),
        ({**CUT, "cutEnd": 1}, ["audio"], "cutEnd is after cutStart"),
        (
            {"taskType": "WatermarkVideo", "watermarkPosition": EXPRESSION},
            ["video", "watermark"],
            "one of TopLeft, TopRight, BottomLeft, BottomRight, Center",
        ),
    ],
)
async def test_what_cannot_be_is_refused_before_a_job_is_stored(
    server: TestGateway, args: dict[str, Any] | None, files: list[str], words: str
) -> None:
    parts: Any = dict.fromkeys(files, picture())
    reply = await create(server, args, **parts)
    assert (reply.status, await server.rows("SELECT count(*) FROM jobs")) == (400, [(0,)])
    assert words in reply.problem()["message"]


async def test_empty_file_is_refused_where_it_counts(server: TestGateway) -> None:
    args = {"taskType": "ImageScale", "scaleWidth": 4}
    reply = await create(server, args, image=("a.png", b""))
    assert (reply.status, reply.problem()["message"]) == (400, "The image file is empty")
    # A form sends the inputs that nobody filled, too.
    reply = await create(server, args, image=picture(), video=("", b""))
    assert reply.status == 200


async def test_bad_file_is_told_by_the_status(server: TestGateway) -> None:
    reply = await create(server, CUT, audio=counting())
    status = await outcome(server, reply.json()["refId"])
    assert status.status == 422
    assert "this sound lasts 1.000 seconds" in status.problem()["message"]
