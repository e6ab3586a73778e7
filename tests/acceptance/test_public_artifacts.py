"""A key whose results are public: for everybody, until an administrator takes it back."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from fakes.painting import form
from fakes.receiver import Receiver
from gateway import Reply, TestGateway, running
from pictures import quarters
from stored import kept, key_with_id

PATIENCE = 20.0
PUBLIC, PRIVATE = (f"{whose}, max-age=31536000, immutable" for whose in ("public", "private"))


@pytest.fixture
async def gateway(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, OUTBOUND_ALLOW="127.0.0.1") as opened:
        yield opened


async def converted(gateway: TestGateway, key: str, name: str = "ConvertImage", **more: str) -> Any:
    written = io.BytesIO()
    quarters().save(written, "png")
    body, headers = form(image=("cat.png", written.getvalue()), outputFormat="webp", **more)
    async with asyncio.timeout(PATIENCE):
        reply = await gateway.call("POST", f"/api/{name}", body, key=key, headers=headers)
    assert reply.status == 200, reply.body
    return reply.json()


async def read(gateway: TestGateway, url: str) -> Reply:
    """By anybody."""
    return await gateway.call("GET", url.removeprefix(gateway.url), key=None)


async def publish(gateway: TestGateway, key_id: int, *features: str) -> None:
    body = {"id": key_id, "features": list(features)}
    reply = await gateway.call("PATCH", "/api/AdminUpdateApiKey", body)
    assert reply.status == 200, reply.body


async def test_results_of_a_public_key_are_for_everybody(gateway: TestGateway) -> None:
    key, _ = await key_with_id(gateway, features=["PublicArtifacts"])
    [result] = (await converted(gateway, key))["results"]
    assert "?" not in result["url"]
    path = result["url"].removeprefix(f"{gateway.url}/artifacts/")
    for at in (result["url"], f"/variants/width=64/{path}", f"/files/{path}"):
        reply = await read(gateway, at)
        assert (reply.status, reply.headers["cache-control"]) == (200, PUBLIC), at
    await converted(gateway, key, "QueueConvertImage", refId="r")
    for status in ("GetJobEvents?refId=r", "GetArtifactGenerationStatus?RefId=r"):
        told = await gateway.call("GET", f"/api/{status}", key=key)
        assert f"{gateway.url}/artifacts/2".encode() in told.body
        assert b"signature=" not in told.body
    listed = await gateway.call("GET", "/api/QueryFiles?kind=artifact", key=key)
    assert {"?" in row["url"] for row in listed.json()["results"]} == {False}


async def test_callbacks_of_a_public_key_name_lasting_addresses(gateway: TestGateway) -> None:
    urls: dict[bool, str] = {}
    async with Receiver() as receiver:
        for public in (True, False):
            key = await gateway.key(features=["PublicArtifacts"] if public else [])
            await converted(gateway, key, "QueueConvertImage", replyTo=receiver.url)
            await receiver.reach(len(urls) + 1)
            [output] = json.loads(receiver.received[-1].body)["outputs"]
            urls[public] = output["url"]
    assert {public: "signature=" in url for public, url in urls.items()} == {
        True: False,
        False: True,
    }


async def test_public_key_opens_its_results_alone(gateway: TestGateway) -> None:
    _, key_id = await key_with_id(gateway, features=["PublicArtifacts"])
    _, other_id = await key_with_id(gateway, features=["Other", "publicartifacts"])
    found = {
        (owner, kind): (await read(gateway, f"/artifacts/{file.path}")).status
        for owner in (key_id, other_id, 0)
        for kind in ("artifact", "upload")
        for file in [await kept(gateway, f"{owner} {kind}".encode(), key_id=owner, kind=kind)]
    }
    assert found.pop((key_id, "artifact")) == 200
    assert set(found.values()) == {404}
    private = await kept(gateway, b"mine", key_id=other_id)
    reply = await gateway.call("GET", f"/artifacts/{private.path}")
    assert reply.headers["cache-control"] == PRIVATE


async def test_disabled_key_goes_on_being_public_and_a_deleted_one_does_not(
    gateway: TestGateway,
) -> None:
    _, key_id = await key_with_id(gateway, features=["PublicArtifacts"])
    file = await kept(gateway, key_id=key_id)
    body = {"id": key_id, "cancelledDate": "2020-01-01T00:00:00Z"}
    await gateway.call("PATCH", "/api/AdminUpdateApiKey", body)
    assert (await read(gateway, f"/artifacts/{file.path}")).status == 200
    await gateway.call("DELETE", f"/api/AdminDeleteApiKey?id={key_id}")
    assert (await read(gateway, f"/artifacts/{file.path}")).status == 404


async def test_key_that_publishes_no_more_closes_in_every_process(
    gateway: TestGateway, migrated: bytes
) -> None:
    _, key_id = await key_with_id(gateway)
    file = await kept(gateway, key_id=key_id)
    async with running(gateway.data, migrated) as second:
        for features, status in ((["PublicArtifacts"], 200), ([], 404)):
            await publish(gateway, key_id, *features)
            assert (await read(gateway, f"/artifacts/{file.path}")).status == status
            async with asyncio.timeout(PATIENCE):
                while (await read(second, f"/artifacts/{file.path}")).status != status:
                    await asyncio.sleep(0.01)
    cleared = {"id": key_id, "reset": ["features"]}
    await publish(gateway, key_id, "PublicArtifacts")
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", cleared)).status == 200
    assert (await read(gateway, f"/artifacts/{file.path}")).status == 404
