"""Transforms through the typed client for Python; what comes back is read by Pillow and PyAV."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from servicestack.clients import UploadFile

import service_stack
from clients import transform_dtos as dto
from clients.python_dtos import BackgroundJobState
from clips import FAST_H264, Clips, seen
from fakes.receiver import Receiver
from gateway import TestGateway, running
from object_stores import on_moto
from pictures import RED, WHITE, close, corners, quarters

PATIENCE = 60.0
BEGUN = (
    BackgroundJobState.QUEUED,
    BackgroundJobState.STARTED,
    BackgroundJobState.COMPLETED,
)
# Name of the part, and the file.
Parts = dict[str, Path]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "test image.jpg"
    quarters(400, 300).save(path, quality=95)
    return path


@pytest.fixture(scope="module")
def logo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "logo.png"
    Image.new("RGB", (40, 30), RED).save(path)
    return path


@pytest.fixture
async def server(
    tmp_path: Path, migrated: bytes, storage: dict[str, str]
) -> AsyncGenerator[TestGateway]:
    allowed = {"OUTBOUND_ALLOW": "127.0.0.1"}
    async with running(tmp_path / "data", migrated, **allowed, **storage) as gateway:
        yield gateway


def sound(clips: Clips, name: str) -> Path:
    return clips.made(name, "-f", "lavfi", "-i", "sine=440:d=1", "-ac", "2")


def video(clips: Clips, name: str, *words: str, seconds: float = 0.4) -> Path:
    codecs = words or (*FAST_H264, "-c:a", "aac")
    return clips.moving(name, *codecs, size="640x360", seconds=seconds)


async def ask(server: TestGateway, work: Callable[[Any], Any], *, key: str = "") -> Any:
    """With this key, or one of its own."""
    return await service_stack.ask(server, key or await server.key(), work, seconds=PATIENCE)


def posted(client: Any, request: Any, parts: Parts) -> Any:
    files = [UploadFile(n, p.name, None, p.open("rb")) for n, p in parts.items()]
    return client.post_files_with_request(request, files)


async def made(server: TestGateway, request: Any, folder: Path, **parts: Path) -> Path:
    """The file that a direct call makes, downloaded by its address alone."""
    answer = await ask(server, lambda client: posted(client, request, parts))
    [result] = answer.results
    assert result.url.startswith("http")
    assert answer.duration.total_seconds() > 0
    return await downloaded(result, folder)


async def downloaded(result: Any, folder: Path) -> Path:
    path = folder / result.file_name
    with await asyncio.to_thread(urllib.request.urlopen, result.url) as reply:
        path.write_bytes(reply.read())
    return path


async def refusal(server: TestGateway, request: Any, **parts: Path) -> str:
    """The message of a call that is answered with 400."""
    with pytest.raises(requests.HTTPError) as raised:
        await ask(server, lambda client: posted(client, request, parts))
    response = raised.value.response
    assert response is not None
    assert response.status_code == 400
    return response.json()["responseStatus"]["message"]


async def queued(server: TestGateway, request: Any, **parts: Path) -> Any:
    """The status of a queued call once it is done; both of its ids find it, then and before."""
    key = await server.key()
    job = await ask(server, lambda client: posted(client, request, parts), key=key)
    assert job.job_id
    assert job.ref_id
    assert job.job_state in BEGUN
    async with asyncio.timeout(PATIENCE):
        await server.call("GET", f"/api/GetJobEvents?refId={job.ref_id}", key=key)
    for named in ({"job_id": job.job_id}, {"ref_id": job.ref_id}):
        asked = dto.GetArtifactGenerationStatus(**named)
        status = await ask(server, lambda client, asked=asked: client.get(asked), key=key)
        assert (status.job_id, status.ref_id) == (job.job_id, job.ref_id)
        assert status.job_state == BackgroundJobState.COMPLETED
    return status


async def queued_and_made(server: TestGateway, request: Any, folder: Path, **parts: Path) -> Path:
    """The file that a queued call makes."""
    [result] = (await queued(server, request, **parts)).results
    return await downloaded(result, folder)


@pytest.mark.parametrize(
    ("into", "source"), [("mp3", "tone.wav"), ("wav", "tone.mp3"), ("flac", "tone.mp3")]
)
async def test_sound_is_converted_and_lasts_as_long(
    server: TestGateway, clips: Clips, tmp_path: Path, into: str, source: str
) -> None:
    audio = sound(clips, source)
    for request, make in (
        (dto.ConvertAudio(output_format=dto.AudioFormat(into)), made),
        (dto.QueueConvertAudio(output_format=dto.AudioFormat(into)), queued_and_made),
    ):
        result = await make(server, request, tmp_path, audio=audio)
        assert result.name == f"tone.{into}"
        assert abs(seen(result).seconds - seen(audio).seconds) < 0.2
        assert seen(result).kinds == ("audio",)


@on_moto
@pytest.mark.parametrize("into", ["png", "jpg"])
async def test_picture_is_converted(
    server: TestGateway, picture: Path, tmp_path: Path, into: str
) -> None:
    for request, make in (
        (dto.ConvertImage(output_format=dto.ImageOutputFormat(into)), made),
        (dto.QueueConvertImage(output_format=dto.ImageOutputFormat(into)), queued_and_made),
    ):
        result = await make(server, request, tmp_path, image=picture)
        assert result.name == f"test image.{into}"
        with Image.open(result) as found:
            assert found.format == {"png": "PNG", "jpg": "JPEG"}[into]
            assert found.size == (400, 300)
            assert all(map(close, corners(found), corners(quarters(400, 300))))  # type: ignore[arg-type]


async def test_picture_is_cropped_exactly(
    server: TestGateway, picture: Path, tmp_path: Path
) -> None:
    window: dict[str, Any] = {"x": 10, "y": 10, "width": 100, "height": 100}
    for request, make in (
        (dto.CropImage(**window), made),
        (dto.QueueCropImage(**window), queued_and_made),
    ):
        result = await make(server, request, tmp_path, image=picture)
        with Image.open(result) as found:
            assert found.size == (100, 100)
            assert close(found.convert("RGB").getpixel((50, 50)), RED)


async def test_picture_is_scaled_by_one_side(
    server: TestGateway, picture: Path, tmp_path: Path
) -> None:
    result = await made(server, dto.ScaleImage(width=200), tmp_path, image=picture)
    with Image.open(result) as found:
        assert found.size == (200, 150)


@on_moto
async def test_watermark_lies_where_it_should(
    server: TestGateway, picture: Path, logo: Path, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"position": dto.WatermarkPosition.BOTTOM_RIGHT, "opacity": 0.7}
    for request, make in (
        (dto.WatermarkImage(**where), made),
        (dto.QueueWatermarkImage(**where), queued_and_made),
    ):
        result = await make(server, request, tmp_path, image=picture, watermark=logo)
        with Image.open(result) as found:
            shown = found.convert("RGB")
            assert close(shown.getpixel((370, 275)), (255, 77, 77), by=20)
            assert close(shown.getpixel((300, 200)), WHITE)


async def test_video_is_converted(server: TestGateway, clips: Clips, tmp_path: Path) -> None:
    web = video(clips, "web.webm", "-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus")
    for request, make in (
        (dto.ConvertVideo(output_format=dto.ConvertVideoOutputFormat.MP4), made),
        (dto.QueueConvertVideo(output_format=dto.ConvertVideoOutputFormat.MP4), queued_and_made),
    ):
        result = await make(server, request, tmp_path, video=web)
        assert result.name == "web.mp4"
        found = seen(result)
        assert (found.kinds, found.sizes) == (("video", "audio"), ((640, 360),))
        assert found.codecs == ("h264", "aac")


async def test_window_that_sticks_out_of_a_video_is_moved_inside(
    server: TestGateway, clips: Clips, tmp_path: Path
) -> None:
    window: dict[str, Any] = {"x": 100, "y": 100, "width": 500, "height": 300}
    for request, make in (
        (dto.CropVideo(**window), made),
        (dto.QueueCropVideo(**window), queued_and_made),
    ):
        result = await make(server, request, tmp_path, video=video(clips, "crop.mp4"))
        assert seen(result).sizes == ((500, 300),)


@on_moto
async def test_video_is_trimmed(server: TestGateway, clips: Clips, tmp_path: Path) -> None:
    long = clips.moving("long.mp4", *FAST_H264, "-c:a", "aac", size="160x90", seconds=8.0)
    times: dict[str, Any] = {"start_time": "00:01", "end_time": "00:06"}
    for request, make in (
        (dto.TrimVideo(**times), made),
        (dto.QueueTrimVideo(**times), queued_and_made),
    ):
        result = await make(server, request, tmp_path, video=long)
        assert abs(seen(result).seconds - 5.0) < 0.1


async def test_what_cannot_be_is_refused_before_a_job_is_stored(
    server: TestGateway, picture: Path, clips: Clips
) -> None:
    away: dict[str, Any] = {"x": -10, "y": -10, "width": 10000, "height": 10000}
    clip = clips.plain()
    for queue in ("", "Queue"):

        def request(name: str, *, queue: str = queue, **members: Any) -> Any:
            return getattr(dto, queue + name)(**members)

        said = [
            await refusal(server, request("ConvertImage"), image=picture),
            await refusal(server, request("CropImage", **away), image=picture),
            await refusal(server, request("WatermarkImage"), image=picture),
            await refusal(server, request("TrimVideo", start_time="invalid"), video=clip),
            await refusal(
                server, request("TrimVideo", start_time="0:01", end_time="invalid"), video=clip
            ),
        ]
        for words, message in zip(
            (
                "No output format provided",
                "Invalid crop dimensions",
                "No watermark image file provided",
                "Invalid start time format",
                "Invalid end time format",
            ),
            said,
            strict=True,
        ):
            assert words in message
    assert await server.rows("SELECT count(*) FROM jobs") == [(0,)]


@on_moto
async def test_callback_of_a_queued_video_carries_its_ref_id(
    server: TestGateway, clips: Clips
) -> None:
    async with Receiver() as receiver:
        request = dto.QueueCropVideo(x=10, y=10, width=50, height=50, reply_to=receiver.url)
        status = await queued(server, request, video=clips.plain())
        await receiver.reach(1)
        [call] = receiver.received
    said = json.loads(call.body)
    assert (said["refId"], said["jobId"]) == (status.ref_id, status.job_id)
    assert said["outputs"][0]["fileName"] == "plain.mp4"


async def test_own_sink_of_callbacks_remembers_the_ref_id(
    server: TestGateway, picture: Path
) -> None:
    own = f"{server.url}/dummyreplyto"
    request = dto.QueueConvertImage(output_format=dto.ImageOutputFormat.PNG, reply_to=own)
    status = await queued(server, request, image=picture)
    async with asyncio.timeout(PATIENCE):
        while await server.rows("SELECT ref_id FROM sunk_callbacks") != [(status.ref_id,)]:
            await asyncio.sleep(0.005)
    await ask(server, lambda client: client.post(dto.HasDummyReplyTo(ref_id=status.ref_id)))
