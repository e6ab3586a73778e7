"""A server killed in the middle of a transform: the next one makes it, and tidies up."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from acceptance.running import RunningServer
from aiserver.kit.upstream import Target, UpstreamPool
from clips import Clips, seen
from fakes.painting import form
from gateway import SECRET

PATIENCE = 40.0
SETTINGS = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json", "AUTH_SECRET": SECRET}


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return Clips(tmp_path)


async def call(
    url: str, method: str, *, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """What is answered with 200."""
    pool = UpstreamPool()
    sent = {"authorization": f"Bearer {SECRET}", **(headers or {})}
    try:
        async with (
            asyncio.timeout(PATIENCE),
            await pool.send(
                Target.parse(url),
                method=method.encode(),
                headers=[(name.encode(), value.encode()) for name, value in sent.items()],
                body=body,
            ) as response,
        ):
            content = await response.read(100_000_000)
            assert response.status == 200, content
            return content
    finally:
        await pool.aclose()


def parts_of(data: Path) -> list[Path]:
    """What lies in folders of jobs."""
    return [path for path in (data / "scratch").glob("*/*/*") if path.stat().st_size]


async def test_killed_server_leaves_its_transform_to_the_next_one(
    tmp_path: Path, clips: Clips
) -> None:
    data = tmp_path / "data"
    clip = clips.moving("a.mp4", size="480x270", seconds=3.0)
    body, headers = form(video=("a.mp4", clip.read_bytes()), outputFormat="webm", refId="r")
    first = RunningServer.start(data, SETTINGS)
    try:
        await call(f"{first.base_url}/api/QueueConvertVideo", "POST", body=body, headers=headers)
        async with asyncio.timeout(PATIENCE):
            while len(parts_of(data)) < 2:
                await asyncio.sleep(0.01)
        first.process.kill()
    finally:
        first.stop()
    [left] = (data / "scratch").glob("*/")
    second = RunningServer.start(data, SETTINGS)
    try:
        assert not left.exists()
        await call(f"{second.base_url}/api/GetJobEvents?refId=r", "GET")
        url = f"{second.base_url}/api/GetArtifactGenerationStatus?RefId=r"
        status: Any = json.loads(await call(url, "GET"))
        assert status["jobState"] == "Completed"
        made = tmp_path / "made.webm"
        made.write_bytes(await call(status["results"][0]["url"], "GET"))
    finally:
        second.stop()
    assert (seen(made).sizes, parts_of(data)) == (((480, 270),), [])
