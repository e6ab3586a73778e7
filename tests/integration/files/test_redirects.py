"""Downloads that an object store answers itself: to whom, of what, and for how long."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

import object_stores
from aiserver.kit.ids import random_hex
from aiserver.kit.upstream import Target, UpstreamPool
from gateway import Reply, TestGateway, running
from stored import HTML, PNG, SVG, kept, key_with_id, upload

Opened = Callable[..., AbstractAsyncContextManager[TestGateway]]


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.long)])
def on_s3(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    migrated: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> Opened:
    for name, value in object_stores.credentials().items():
        monkeypatch.setenv(name, value)
    url = object_stores.named(request.param).url(random_hex(8))

    def opened(**settings: str) -> AbstractAsyncContextManager[TestGateway]:
        return running(tmp_path / "data", migrated, STORAGE_URL=url, **settings)

    return opened


@pytest.fixture
async def gateway(on_s3: Opened) -> AsyncGenerator[TestGateway]:
    async with on_s3(STORAGE_REDIRECTS="true") as opened:
        yield opened


async def fetched(address: str) -> Reply:
    """What the store says to anybody."""
    pool = UpstreamPool()
    parts = urlsplit(address)
    target = Target.parse(f"{parts.scheme}://{parts.netloc}{parts.path}?{parts.query}")
    async with await pool.send(target, method=b"GET", headers=[], body=b"") as response:
        reply = Reply(response.status, response.headers, await response.read(1_000_000))
    await pool.aclose()
    return reply


async def test_picture_is_read_from_the_store_itself(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    await upload(gateway, "secure", ("file", "a b.png", PNG), key=key)
    result = f"/artifacts/{(await kept(gateway, key_id=key_id)).path}"
    for path, caching in (
        (result, "private, max-age=150"),
        (f"/uploads/secure/{key_id}/a%20b.png", "no-store"),
    ):
        reply = await gateway.call("GET", path, key=key)
        assert (reply.status, reply.body) == (307, b"")
        assert reply.headers["cache-control"] == caching
        there = await fetched(reply.headers["location"])
        assert (there.status, there.body) == (200, PNG)
        assert there.headers["content-type"] == "image/png"
        [seconds] = parse_qs(urlsplit(reply.headers["location"]).query)["X-Amz-Expires"]
        assert seconds == "300"


async def test_stranger_is_not_sent_to_the_store(gateway: TestGateway) -> None:
    path = f"/artifacts/{(await kept(gateway)).path}"
    for key in (None, await gateway.key()):
        reply = await gateway.call("GET", path, key=key)
        assert (reply.status, reply.headers.get("location")) == (404, None)
    url = await gateway.app.urls.signed(path.removeprefix("/artifacts/"))
    assert (await gateway.call("GET", url, key=None)).status == 307


@pytest.mark.parametrize(
    ("content", "query"),
    [(HTML, ""), (SVG, ""), (b"plain words", ""), (b'{"a": 1}', ""), (PNG, "?download=1")],
)
async def test_what_needs_headers_of_its_own_is_sent_here(
    gateway: TestGateway, content: bytes, query: str
) -> None:
    file = await kept(gateway, content, extension="")
    reply = await gateway.call("GET", f"/artifacts/{file.path}{query}")
    assert (reply.status, reply.body) == (200, content)
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_input_of_a_job_is_sent_here_whatever_it_claims_to_be(gateway: TestGateway) -> None:
    file = await kept(gateway, PNG, kind="upload")
    assert (await gateway.call("GET", f"/artifacts/{file.path}")).body == PNG


async def test_what_needs_no_bytes_is_answered_here(gateway: TestGateway) -> None:
    file = await kept(gateway)
    path = f"/artifacts/{file.path}"
    head = await gateway.call("HEAD", path)
    assert (head.status, head.headers["content-length"]) == (200, str(len(PNG)))
    known = {"if-none-match": f'"{file.sha256}"'}
    assert (await gateway.call("GET", path, headers=known)).status == 304


async def test_nobody_is_sent_on_unless_it_is_set(
    on_s3: Opened, tmp_path: Path, migrated: bytes
) -> None:
    async with on_s3() as gateway:
        path = f"/artifacts/{(await kept(gateway)).path}"
        assert (await gateway.call("GET", path)).body == PNG
    local = {"STORAGE_URL": "", "STORAGE_REDIRECTS": "true"}
    async with running(tmp_path / "local", migrated, **local) as gateway:
        path = f"/artifacts/{(await kept(gateway)).path}"
        assert (await gateway.call("GET", path)).body == PNG
