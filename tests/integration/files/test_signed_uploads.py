"""Signed addresses for uploads: one file each, in bounds, and nothing lost by what is refused."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiserver.files.upload_urls import UploadUrl, UploadUrls
from aiserver.kit.clock import SystemClock
from aiserver.kit.tables import Tables
from gateway import SECRET, Reply, TestGateway, running
from stored import HTML, PNG, kept, key_with_id, upload

MB = 1024 * 1024


async def given(gateway: TestGateway, *, key: str = SECRET, **members: Any) -> Any:
    """The answer with an address; `url` without scheme and host."""
    body = {"name": "a b.png", **members}
    reply = await gateway.call("POST", "/api/CreateUploadUrl", body, key=key)
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert answer["url"].startswith(gateway.url)
    return {**answer, "url": answer["url"].removeprefix(gateway.url)}


async def sent(
    gateway: TestGateway, url: str, content: bytes = PNG, *, kind: str = "image/png"
) -> Reply:
    return await gateway.call("PUT", url, content, key=None, headers={"content-type": kind})


async def in_chunks(gateway: TestGateway, url: str, content: bytes) -> bytes:
    """The answer to a body of unknown length."""
    head = (
        f"PUT {url} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    return await gateway.raw(head.encode() + body)


@pytest.mark.parametrize("location", ["pub", "secure"])
async def test_anybody_sends_one_file_for_the_key(gateway: TestGateway, location: str) -> None:
    key, key_id = await key_with_id(gateway)
    address = await given(gateway, key=key, location=location)
    reply = await sent(gateway, address["url"])
    assert (reply.status, reply.json()) == (200, {"results": [address["path"]]})
    assert address["path"] == f"/uploads/{location}/{key_id}/a%20b.png"
    read = await gateway.call("GET", address["path"], key=key)
    assert (read.body, read.headers["content-type"]) == (PNG, "image/png")
    stranger = await gateway.call("GET", address["path"], key=None)
    assert stranger.status == (200 if location == "pub" else 404)


async def test_address_takes_one_file_only(gateway: TestGateway) -> None:
    address = await given(gateway)
    assert (await sent(gateway, address["url"])).status == 200
    again = await sent(gateway, address["url"], b"other")
    assert (again.status, again.problem()["errorCode"]) == (409, "Conflict")
    assert (await gateway.call("GET", address["path"])).body == PNG
    assert (await gateway.call("DELETE", address["path"])).status == 200
    assert (await sent(gateway, address["url"])).status == 409


async def test_file_that_is_too_large_leaves_the_address_good(gateway: TestGateway) -> None:
    await upload(gateway, "secure", ("file", "a b.png", b"before"))
    address = await given(gateway, maxSize=len(PNG))
    assert address["maxSize"] == len(PNG)
    refused = await sent(gateway, address["url"], PNG + b"1")
    assert (refused.status, refused.problem()["errorCode"]) == (413, "RequestEntityTooLarge")
    assert b" 413 " in await in_chunks(gateway, address["url"], PNG + b"1")
    assert (await gateway.call("GET", address["path"])).body == b"before"
    assert b" 200 " in await in_chunks(gateway, address["url"], PNG)
    assert (await gateway.call("GET", address["path"])).body == PNG


async def test_body_that_breaks_off_leaves_the_address_good(gateway: TestGateway) -> None:
    address = await given(gateway)
    head = f"PUT {address['url']} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    await gateway.raw(head.encode() + b"half", then_close=True)
    assert (await gateway.call("GET", address["path"])).status == 404
    async with asyncio.timeout(10):
        while (reply := await sent(gateway, address["url"])).status != 200:
            assert reply.problem()["errorCode"] == "UploadInProgress"
            assert reply.headers["retry-after"] == "1"


async def test_expired_address_says_so(gateway: TestGateway) -> None:
    late = UploadUrls(gateway.app._data.engine.tables, SystemClock(), bool)
    url, _ = await late.issue("secure/0/a.png", most=10, seconds=-1, base="")
    reply = await sent(gateway, url)
    assert (reply.status, reply.problem()["errorCode"]) == (403, "LinkExpired")


async def test_address_ends_with_its_key(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    address = await given(gateway, key=key)
    changed = {"id": key_id, "cancelledDate": "2020-01-01T00:00:00Z"}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", changed)).status == 200
    reply = await sent(gateway, address["url"])
    assert (reply.status, reply.problem()["errorCode"]) == (403, "LinkInvalid")
    assert (await gateway.call("GET", address["path"])).status == 404


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("a%20b.png", "b.png"),
        ("/secure/", "/pub/"),
        ("/0/", "/1/"),
        ("maxSize=10", "maxSize=11"),
        ("&id=", "&id=0"),
        ("expires=", "expires=1"),
        ("signature=", "signature=A"),
    ],
)
async def test_changed_address_takes_nothing(gateway: TestGateway, part: str, other: str) -> None:
    address = await given(gateway, maxSize=10)
    assert part in address["url"]
    reply = await sent(gateway, address["url"].replace(part, other), b"x")
    assert (reply.status, reply.problem()["errorCode"]) == (403, "LinkInvalid")
    assert (await gateway.call("GET", "/api/QueryFiles?include=total")).json()["total"] == 0


async def test_reading_and_sending_are_signed_apart(gateway: TestGateway) -> None:
    await upload(gateway, "secure", ("file", "a b.png", PNG))
    path = "secure/0/a b.png"
    query = await gateway.app.urls.query(path)
    for_reading = f"/signed-uploads/secure/0/a%20b.png{query}&id=x&maxSize=10"
    assert (await sent(gateway, for_reading, b"x")).status == 403
    for_sending = (await given(gateway))["url"].partition("?")[2]
    reading = f"/uploads/secure/0/a%20b.png?{for_sending}"
    assert (await gateway.call("GET", reading, key=None)).status == 404


@pytest.mark.parametrize("query", ["", "?expires=1", "?expires=1&signature=x&id=x&maxSize=0"])
async def test_address_that_lacks_something_is_refused(gateway: TestGateway, query: str) -> None:
    assert (await sent(gateway, f"/signed-uploads/secure/0/a.png{query}")).status == 400


async def test_form_is_refused_before_it_is_a_file(gateway: TestGateway) -> None:
    address = await given(gateway)
    reply = await sent(gateway, address["url"], kind="multipart/form-data; boundary=x")
    assert reply.status == 415
    assert "the body, not a form" in reply.problem()["message"]
    assert (await sent(gateway, address["url"])).status == 200


async def test_type_is_told_from_the_bytes(gateway: TestGateway) -> None:
    address = await given(gateway, location="pub")
    await sent(gateway, address["url"], HTML)
    read = await gateway.call("GET", address["path"], key=None)
    assert read.headers["content-type"] == "text/html"
    assert read.headers["content-disposition"].startswith("attachment")


async def test_empty_file_is_a_file(gateway: TestGateway) -> None:
    address = await given(gateway)
    assert (await sent(gateway, address["url"], b"")).status == 200
    assert (await gateway.call("GET", address["path"])).body == b""


async def test_large_file_is_never_held_whole(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, MAX_FILE="100MB") as gateway:
        address = await given(gateway)

        async def body() -> AsyncGenerator[bytes]:
            for _ in range(40):
                yield bytes(MB)

        before = memory()
        async with aiohttp.ClientSession() as client:
            reply = await client.put(gateway.url + address["url"], data=body())
            assert reply.status == 200
        assert memory() - before < 24 * MB
        [file] = (await gateway.call("GET", "/api/QueryFiles")).json()["results"]
        assert file["size"] == 40 * MB


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_file_counts_on_its_owners_storage(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, MAX_STORED_PER_KEY="2000") as gateway:
        key, key_id = await key_with_id(gateway)
        held = await kept(gateway, bytes(1500), key_id=key_id)
        address = await given(gateway, key=key)
        refused = await sent(gateway, address["url"])
        assert (refused.status, refused.problem()["errorCode"]) == (403, "StorageQuotaExceeded")
        await gateway.app._data.artifacts.delete([held])
        assert (await sent(gateway, address["url"])).status == 200


@pytest.mark.parametrize(
    "members",
    [
        {"name": ""},
        {"name": ".hidden"},
        {"name": "../"},
        {"location": "elsewhere"},
        {"maxSize": 0},
        {"maxSize": 10_000_001},
        {"expiresIn": 0},
        {"expiresIn": 86_401},
    ],
)
async def test_bounds_of_an_address(gateway: TestGateway, members: dict[str, Any]) -> None:
    body = {"name": "a.png", **members}
    assert (await gateway.call("POST", "/api/CreateUploadUrl", body)).status == 400


async def test_usual_bounds_of_an_address(gateway: TestGateway) -> None:
    address = await given(gateway, maxSize=10_000_000, expiresIn=86_400)
    assert address["maxSize"] == (await given(gateway))["maxSize"] == 10_000_000
    for key in (None, "ak-ffffffffffffffffffffffffffffffff"):
        reply = await gateway.call("POST", "/api/CreateUploadUrl", {"name": "a"}, key=key)
        assert reply.status == 401


async def test_name_cannot_leave_the_folder_of_its_key(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    for name in ("../0/a.png", "/uploads/secure/0/a.png", "..\\0\\a.png"):
        assert (await given(gateway, key=key, name=name))[
            "path"
        ] == f"/uploads/secure/{key_id}/a.png"


async def test_senders_at_once_cannot_both_use_an_address(gateway: TestGateway) -> None:
    address = await given(gateway)
    contents = [PNG + b"%d" % n for n in range(8)]
    replies = await asyncio.gather(*(sent(gateway, address["url"], each) for each in contents))
    statuses = [reply.status for reply in replies]
    assert sorted(statuses) == [200] + [409] * 7
    read = await gateway.call("GET", address["path"])
    assert read.body == contents[statuses.index(200)]


async def test_processes_share_what_is_used(tables: Tables) -> None:
    one, other = (UploadUrls(tables, SystemClock(), bool) for _ in range(2))
    url = UploadUrl(id="x", path="secure/1/a", most=1)
    with pytest.raises(ZeroDivisionError):
        async with one.using(url, 2**40):
            raise ZeroDivisionError
    async with one.using(url, 2**40):
        with pytest.raises(Exception, match="takes one"):
            async with other.using(url, 2**40):
                pass
    assert await tables.read("SELECT id FROM upload_addresses") == [("x",)]


async def test_used_addresses_are_forgotten_long_after_their_end(tables: Tables) -> None:
    urls, now = UploadUrls(tables, SystemClock(), bool), int(SystemClock().now().timestamp())
    for id, expires in (("old", now - 90_000), ("over", now - 80_000), ("new", now + 60)):
        async with urls.using(UploadUrl(id=id, path="p", most=1), expires):
            pass
    left = await tables.read("SELECT id FROM upload_addresses ORDER BY id")
    assert [row[0] for row in left] == ["new", "over"]
