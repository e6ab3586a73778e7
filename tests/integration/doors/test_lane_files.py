"""The lane for files gives what the slow path gave, for as long as the slow path would."""

import asyncio
import io
import random
import re
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from aiserver.doors import lane_files
from aiserver.doors.lane_files import FileLane
from aiserver.files.artifacts import Artifact
from aiserver.files.variants import Variants
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import StorageError
from aiserver.kit.tables import Statement
from gateway import SECRET, Reply, TestGateway, running
from stored import kept, key_with_id, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What differs from call to call.
OF_ITS_OWN = {"x-request-id", "server-timing", "date"}
SOURCES = iter(range(1, 200))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated: bytes
) -> AsyncGenerator[TestGateway]:
    """On SQLite, where it can be told without waiting that nothing changed, and with the lane."""
    folder = tmp_path_factory.mktemp("lane") / "data"
    async with running(folder, migrated, HOT_LANE="auto", DATABASE_URL="") as opened:
        yield opened


class Slow:
    """Counts the calls that take the slow path to a variant."""

    def __init__(self, variants: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        readable = variants._access.readable

        async def counted(*args: Any, **named: Any) -> Artifact:
            self.calls += 1
            return await readable(*args, **named)

        monkeypatch.setattr(variants._access, "readable", counted)


@pytest.fixture
def slow(gateway: TestGateway, monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(room(gateway), monkeypatch)


def room(gateway: TestGateway) -> Variants:
    return next(each for each in gateway.app._rooms if isinstance(each, Variants))


def lane_of(gateway: TestGateway) -> FileLane:
    assert gateway.app._lane is not None
    return gateway.app._lane.files


def png_of(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def picture() -> bytes:
    """Never the same bytes twice."""
    return png_of(Image.new("RGB", (90, 60), (next(SOURCES), 20, 30)))


@pytest.fixture
async def file(gateway: TestGateway) -> Artifact:
    return await kept(gateway, picture())


async def get(gateway: TestGateway, path: str, **more: Any) -> Reply:
    return await gateway.call("GET", path, **more)


async def warm(gateway: TestGateway, path: str, **more: Any) -> Reply:
    """Made by the first call, held in memory and learned by the second."""
    await get(gateway, path, **more)
    return await get(gateway, path, **more)


def fixed(reply: Reply) -> list[tuple[str, str]]:
    return [(name, value) for name, value in reply.headers.items() if name not in OF_ITS_OWN]


async def test_the_same_request_gets_the_same_answer(
    gateway: TestGateway, file: Artifact, slow: Slow
) -> None:
    path = f"/variants/width=45/{file.path}"
    before = await warm(gateway, path)
    counted = slow.calls
    again = await get(gateway, path)
    assert slow.calls == counted
    assert (again.status, again.body, fixed(again)) == (200, before.body, fixed(before))
    assert set(again.headers) == set(before.headers)
    assert again.headers["x-request-id"] != before.headers["x-request-id"]
    assert re.fullmatch(
        r"gateway;dur=\d+\.\d\d, upstream;dur=0\.00", again.headers["server-timing"]
    )


async def test_each_answer_is_in_the_history(gateway: TestGateway, file: Artifact) -> None:
    path = f"/variants/width=44/{file.path}"
    replies = [await warm(gateway, path), await get(gateway, path)]
    slow, fast = [await gateway.recorded(reply.headers["x-request-id"]) for reply in replies]
    assert fast["operationName"] == "GetVariant"
    told = ("operationName", "httpMethod", "pathInfo", "userAuthId", "ipAddress", "statusCode")
    assert {name: fast.get(name) for name in told} == {name: slow.get(name) for name in told}


async def test_other_headers_are_another_request(
    gateway: TestGateway, file: Artifact, slow: Slow
) -> None:
    path = f"/variants/width=43/{file.path}"
    whole = await warm(gateway, path)
    part = await get(gateway, path, headers={"range": "bytes=0-3"})
    assert (part.status, part.body) == (206, whole.body[:4])
    for _ in range(3):
        same = await get(gateway, path, headers={"if-none-match": whole.headers["etag"]})
        assert (same.status, same.body) == (304, b"")
    named = await warm(gateway, path, headers={"x-request-id": "mine"})
    assert named.headers["x-request-id"] == "mine"
    assert (await warm(gateway, path, headers={"accept": "image/jpeg"})).body != whole.body
    head = await gateway.call("HEAD", path)
    assert (head.status, head.body) == (200, b"")


async def test_deleted_file_is_gone_at_once(gateway: TestGateway, file: Artifact) -> None:
    path = f"/variants/width=42/{file.path}"
    assert (await warm(gateway, path)).status == 200
    # Past this process, as another one deletes.
    await gateway.app._data.engine.tables.write(
        Statement("UPDATE files SET deleted = 1 WHERE id = ?", (file.id,))
    )
    assert (await get(gateway, path)).status == 404


async def test_key_that_is_disabled_reads_nothing_more(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, picture(), key_id=key_id)
    path = f"/variants/width=41/{file.path}"
    assert (await warm(gateway, path, key=key)).status == 200
    changed = {"id": key_id, "cancelledDate": "2026-01-01T00:00:00Z"}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", changed)).status == 200
    assert (await get(gateway, path, key=key)).status == 401


async def test_signed_address_ends_when_it_says(
    gateway: TestGateway, file: Artifact, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/variants/width=64/{file.path}{await gateway.app.urls.query(file.path)}"
    assert (await warm(gateway, path, key=None)).status == 200
    counted = slow.calls
    assert (await get(gateway, path, key=None)).status == 200
    assert slow.calls == counted
    monkeypatch.setattr(room(gateway)._access._urls, "_clock", Later(timedelta(days=9000)))
    late = await get(gateway, path, key=None)
    assert (late.status, late.problem()["errorCode"]) == (403, "LinkExpired")


async def test_signed_address_ends_with_its_secret(gateway: TestGateway, file: Artifact) -> None:
    path = f"/variants/width=64/{file.path}{await gateway.app.urls.query(file.path)}"
    assert (await warm(gateway, path, key=None)).status == 200
    await gateway.app.urls.rotate(keep=0)
    assert (await get(gateway, path, key=None)).status == 404


async def test_file_ends_at_its_time(gateway: TestGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    end = SystemClock().now() + timedelta(hours=1)
    file = await kept(gateway, picture(), expires=end)
    path = f"/variants/width=39/{file.path}"
    assert (await warm(gateway, path)).status == 200
    monkeypatch.setattr(room(gateway)._artifacts._shelf, "_clock", Later(timedelta(hours=2)))
    assert (await get(gateway, path)).status == 404


async def test_key_that_publishes_changes_what_caches_may_keep(gateway: TestGateway) -> None:
    key, key_id = await key_with_id(gateway)
    file = await kept(gateway, picture(), key_id=key_id)
    path = f"/variants/width=38/{file.path}"
    before = await warm(gateway, path, key=key)
    assert before.headers["cache-control"].startswith("private")
    changed = {"id": key_id, "features": ["PublicArtifacts"]}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", changed)).status == 200
    after = await get(gateway, path, key=key)
    assert after.headers["cache-control"].startswith("public")
    assert (await get(gateway, path.replace("width=38", "width=32"), key=None)).status == 200


async def test_replaced_upload_shows_the_new_picture(gateway: TestGateway) -> None:
    sent = await upload(gateway, "pub", ("file", "logo.png", picture()))
    [path] = sent.json()["results"]
    variant = path.replace("/uploads/", "/variants/width=64/", 1)
    before = await warm(gateway, variant, key=None)
    kept_at = path.removeprefix("/uploads/")
    replaced = await upload(gateway, kept_at, ("file", "logo.png", picture()), method="PUT")
    assert replaced.status == 200, replaced.body
    after = await get(gateway, variant, key=None)
    assert (after.status, after.headers["etag"] != before.headers["etag"]) == (200, True)


async def test_variant_that_left_the_memory_is_read_from_the_disk(
    gateway: TestGateway, file: Artifact, slow: Slow
) -> None:
    path = f"/variants/width=37/{file.path}"
    before = await warm(gateway, path)
    counted = slow.calls
    room(gateway)._cache._memory.drop_if(lambda _: True)
    assert (await get(gateway, path)).body == before.body
    assert slow.calls == counted + 1


async def test_other_commits_cost_one_look_and_no_more(
    gateway: TestGateway, file: Artifact, slow: Slow
) -> None:
    path = f"/variants/width=36/{file.path}"
    await warm(gateway, path)
    counted = slow.calls
    await kept(gateway, picture())
    for _ in range(3):
        assert (await get(gateway, path)).status == 200
    assert slow.calls == counted + 1


async def test_database_that_cannot_be_read_is_told_as_ever(
    gateway: TestGateway, file: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/variants/width=35/{file.path}"
    await warm(gateway, path)

    def fails(*_: Any) -> None:
        raise StorageError("Cannot read.")

    monkeypatch.setattr(gateway.database, "read", fails)
    assert (await get(gateway, path)).status == 503


async def test_requests_behind_each_other_are_answered_in_turn(
    gateway: TestGateway, file: Artifact
) -> None:
    def asked(width: int, *more: str) -> bytes:
        path = f"/variants/width={width},format=png/{file.path}"
        secret = f"Authorization: Bearer {SECRET}"
        return "\r\n".join((f"GET {path} HTTP/1.1", "Host: here", secret, *more, "", "")).encode()

    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    for each in (asked(34), asked(34), asked(33), asked(33)):
        writer.write(each)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
    writer.close()
    said = await gateway.raw(asked(34) + asked(33) + asked(34, "Connection: close"))
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert [ord(each) for each in re.findall(rb"IHDR\0\0\0(.)", said)] == [34, 33, 34]


async def test_client_that_reads_nothing_is_written_to_no_more(
    gateway: TestGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.frombytes("RGB", (250, 250), random.Random(1).randbytes(250 * 250 * 3))
    path = f"/variants/width=250,format=png/{(await kept(gateway, png_of(noise))).path}"
    content = (await warm(gateway, path)).body
    assert len(content) > 2 * HIGH_WATER_LIMIT
    waiting: list[int] = []
    serve = FileLane.serve

    def watched(lane: FileLane, client: Any, request: bytes, date: bytes) -> bool:
        waiting.append(client.transport.get_write_buffer_size())
        return serve(lane, client, request, date)

    monkeypatch.setattr(FileLane, "serve", watched)
    asked = f"GET {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {SECRET}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    answers = 40
    for _ in range(answers):
        writer.write(asked.encode())
        await asyncio.sleep(0.001)
    for _ in range(answers):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(len(content)) == content
    writer.close()
    assert len(waiting) > 2
    assert max(waiting) <= HIGH_WATER_LIMIT


async def test_what_is_known_is_bounded(
    gateway: TestGateway, file: Artifact, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_files, "_MOST", 3)
    known = lane_of(gateway)._known
    known.clear()
    path = f"/variants/width=31/{file.path}"
    for number in range(5):
        await warm(gateway, path, headers={"x-number": str(number)})
    assert len(known) == 3
    counted = slow.calls
    await get(gateway, path, headers={"x-number": "4"})
    assert slow.calls == counted
    await get(gateway, path, headers={"x-number": "0"})
    assert slow.calls == counted + 1
    known.clear()
    await warm(gateway, path, headers={"x-long": "n" * 5000})
    assert not known


class Later:
    """A clock that is ahead."""

    def __init__(self, by: timedelta) -> None:
        self._by = by
        self._clock = SystemClock()

    def now(self) -> datetime:
        return self._clock.now() + self._by

    def monotonic(self) -> float:
        return self._clock.monotonic()
