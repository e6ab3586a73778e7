"""Every task of CreateMediaTransform through the typed client for Python, read by other readers."""

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
from clips import Clips, seen
from fakes.receiver import Receiver
from gateway import TestGateway, running
from pictures import quarters

PATIENCE = 60.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    clips = Clips(tmp_path_factory.mktemp("clips"))
    picture, logo = clips.folder / "picture.png", clips.folder / "logo.png"
    quarters(80, 60).save(picture)
    Image.new("RGB", (20, 15), "white").save(logo)
    sound = clips.made("tone.wav", "-f", "lavfi", "-i", "sine=440:d=1")
    return {"image": picture, "watermark": logo, "video": clips.plain(), "audio": sound}


@pytest.fixture
async def server(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, OUTBOUND_ALLOW="127.0.0.1") as gateway:
        yield gateway


async def ask(server: TestGateway, key: str, work: Callable[[Any], Any]) -> Any:
    return await service_stack.ask(server, key, work, seconds=PATIENCE)


async def created(
    server: TestGateway, key: str, request: dto.CreateMediaTransform, parts: dict[str, Path]
) -> Any:
    def post(client: Any) -> Any:
        sent = [UploadFile(n, p.name, None, p.open("rb")) for n, p in parts.items()]
        return client.post_files_with_request(request, sent)

    return await ask(server, key, post)


@pytest.mark.parametrize(
    ("kind", "args", "parts", "name"),
    [
        ("ImageScale", {"scale_width": 40}, ["image"], "picture.png"),
        ("ImageConvert", {"image_output_format": "jpg"}, ["image"], "picture.jpg"),
        ("ImageCrop", {"crop_width": 10, "crop_height": 10}, ["image"], "picture.png"),
        ("WatermarkImage", {}, ["image", "watermark"], "picture.png"),
        ("VideoScale", {"scale_height": 44}, ["video"], "plain.mp4"),
        ("VideoConvert", {"output_format": "mov"}, ["video"], "plain.mov"),
        ("VideoCrop", {"crop_width": 60, "crop_height": 44}, ["video"], "plain.mp4"),
        ("VideoCut", {"cut_start": 0.2, "cut_end": 0.6}, ["video"], "plain.mp4"),
        ("WatermarkVideo", {}, ["video", "watermark"], "plain.mp4"),
        ("AudioConvert", {"output_format": "mp3"}, ["audio"], "tone.mp3"),
        ("AudioCut", {"cut_start": 0.25, "cut_end": -1.0}, ["audio"], "tone.wav"),
    ],
)
async def test_every_task_is_queued_and_done(
    server: TestGateway,
    files: dict[str, Path],
    tmp_path: Path,
    kind: str,
    args: dict[str, Any],
    parts: list[str],
    name: str,
) -> None:
    key = await server.key()
    asked = dto.MediaTransformArgs(task_type=dto.MediaTransformTaskType(kind), **args)
    job = await created(
        server, key, dto.CreateMediaTransform(request=asked), {p: files[p] for p in parts}
    )
    async with asyncio.timeout(PATIENCE):
        await server.call("GET", f"/api/GetJobEvents?refId={job.ref_id}", key=key)
    status = await ask(
        server, key, lambda client: client.get(dto.GetArtifactGenerationStatus(job_id=job.id))
    )
    assert (status.ref_id, status.job_state) == (job.ref_id, BackgroundJobState.COMPLETED)
    [result] = status.results
    assert result.file_name == name
    path = tmp_path / name
    with await asyncio.to_thread(urllib.request.urlopen, result.url) as reply:
        path.write_bytes(reply.read())
    if parts[0] == "image":
        with Image.open(path) as found:
            wide = {"ImageScale": 40, "ImageCrop": 10}.get(kind, 80)
            assert found.width == wide
        return
    lasts = {"VideoCut": 0.4, "AudioCut": 0.75}.get(kind, 1.0)
    assert seen(path).seconds == pytest.approx(lasts, abs=0.1)
    assert seen(path).kinds == (("audio",) if parts == ["audio"] else ("video", "audio"))


async def test_state_comes_back_with_the_callback(
    server: TestGateway, files: dict[str, Path]
) -> None:
    asked = dto.MediaTransformArgs(task_type=dto.MediaTransformTaskType.IMAGE_SCALE, scale_width=40)
    async with Receiver() as receiver:
        request = dto.CreateMediaTransform(request=asked, state="s", reply_to=receiver.url)
        job = await created(server, await server.key(), request, {"image": files["image"]})
        await receiver.reach(1)
        [call] = receiver.received
    said = json.loads(call.body)
    assert (said["state"], said["refId"], said["jobId"]) == ("s", job.ref_id, job.id)
    assert said["outputs"][0]["fileName"] == "picture.png"


async def test_expression_for_ffmpeg_is_refused(
    server: TestGateway, files: dict[str, Path]
) -> None:
    asked = dto.MediaTransformArgs(
        task_type=dto.MediaTransformTaskType.WATERMARK_VIDEO,
        watermark_position="main_w-overlay_w-10:10",
    )
    parts = {name: files[name] for name in ("video", "watermark")}
    with pytest.raises(requests.HTTPError) as raised:
        await created(server, await server.key(), dto.CreateMediaTransform(request=asked), parts)
    response = raised.value.response
    assert response is not None
    assert response.status_code == 400
    message = response.json()["responseStatus"]["message"]
    assert "one of TopLeft, TopRight, BottomLeft, BottomRight, Center" in message
