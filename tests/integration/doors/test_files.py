"""Files over HTTP: whole, in part, not again, and never run by a browser."""

import asyncio
import contextlib
from email.utils import formatdate

import pytest

from aiserver.files.artifacts import Artifact
from gateway import SECRET, Reply, TestGateway, running
from stored import HTML, PNG, SVG, kept


async def get(gateway: TestGateway, path: str, *, method: str = "GET", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.call(method, path, headers=named)


@pytest.fixture
async def file(gateway: TestGateway) -> Artifact:
    return await kept(gateway)


@pytest.fixture
def path(file: Artifact) -> str:
    return f"/artifacts/{file.path}"


async def test_whole_file_comes_with_what_it_is(
    gateway: TestGateway, file: Artifact, path: str
) -> None:
    reply = await get(gateway, path)
    assert (reply.status, reply.body) == (200, PNG)
    headers = reply.headers
    assert headers["content-type"] == "image/png"
    assert headers["content-length"] == str(len(PNG))
    assert headers["etag"] == f'"{file.sha256}"'
    assert headers["last-modified"] == formatdate(int(file.created.timestamp()), usegmt=True)
    assert headers["cache-control"] == "private, max-age=31536000, immutable"
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-disposition"] == 'inline; filename="cat.png"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox"


async def test_head_tells_of_the_file_without_it(gateway: TestGateway, path: str) -> None:
    whole, head = (
        await get(gateway, path),
        await get(gateway, path, method="HEAD", range="bytes=0-1"),
    )
    assert (head.status, head.body) == (200, b"")
    told = ("content-length", "content-type", "etag", "cache-control", "content-disposition")
    assert {n: head.headers[n] for n in told} == {n: whole.headers[n] for n in told}


SIZE = len(PNG)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=5-{SIZE + 100}", 5, SIZE),
        ("BYTES = 1 - 2", 1, 3),
        (f"bytes=0-{10**17}", 0, SIZE),
    ],
)
async def test_part_is_sent(
    gateway: TestGateway, path: str, asked: str, start: int, end: int
) -> None:
    reply = await get(gateway, path, range=asked)
    assert (reply.status, reply.body) == (206, PNG[start:end])
    assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert reply.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
async def test_part_beyond_the_end_is_refused(gateway: TestGateway, path: str, asked: str) -> None:
    reply = await get(gateway, path, range=asked)
    assert (reply.status, reply.body) == (416, b"")
    assert reply.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=5-2",
        "bytes=-",
        "bytes=",
        "lines=0-1",
        "bytes=a-b",
        "bytes=" + "9" * 50,
    ],
)
async def test_range_that_means_nothing_gives_all(
    gateway: TestGateway, path: str, asked: str
) -> None:
    reply = await get(gateway, path, range=asked)
    assert (reply.status, reply.body) == (200, PNG)


async def test_known_file_is_not_sent_again(gateway: TestGateway, path: str) -> None:
    first = await get(gateway, path)
    tag, when = first.headers["etag"], first.headers["last-modified"]
    for sent in (tag, f"W/{tag}", "*", f'"other", {tag}'):
        reply = await get(gateway, path, if_none_match=sent)
        assert (reply.status, reply.body) == (304, b"")
        assert reply.headers["etag"] == tag
        assert reply.headers["cache-control"] == first.headers["cache-control"]
    assert (await get(gateway, path, if_none_match='"other"', if_modified_since=when)).status == 200
    assert (await get(gateway, path, if_modified_since=when)).status == 304
    old = formatdate(0, usegmt=True)
    assert (await get(gateway, path, if_modified_since=old)).status == 200
    assert (await get(gateway, path, if_modified_since="yesterday")).status == 200
    assert (await get(gateway, path, if_none_match=tag, range="bytes=0-1")).status == 304


async def test_part_of_another_version_is_not_mixed_in(gateway: TestGateway, path: str) -> None:
    first = await get(gateway, path)
    for same in (first.headers["etag"], first.headers["last-modified"]):
        assert (await get(gateway, path, range="bytes=0-1", if_range=same)).status == 206
    for other in ('"other"', f"W/{first.headers['etag']}", formatdate(0, usegmt=True), "x"):
        assert (await get(gateway, path, range="bytes=0-1", if_range=other)).status == 200


@pytest.mark.parametrize(
    ("content", "extension", "shown"),
    [
        (PNG, "png", "inline"),
        (b"plain words", "txt", "inline"),
        (HTML, "html", "attachment"),
        (HTML, "png", "attachment"),
        (SVG, "svg", "attachment"),
        (b"<?xml version='1.0'?><a/>", "xml", "attachment"),
        (b"%PDF-1.7 ...", "pdf", "attachment"),
        (b"\0\1\2", "bin", "attachment"),
    ],
)
async def test_browser_runs_nothing(
    gateway: TestGateway, content: bytes, extension: str, shown: str
) -> None:
    file = await kept(gateway, content, extension=extension, name=f"x.{extension}")
    reply = await get(gateway, f"/artifacts/{file.path}")
    assert reply.headers["content-disposition"].startswith(f"{shown}; filename=")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"] == "sandbox"


async def test_download_is_an_attachment(gateway: TestGateway, path: str) -> None:
    reply = await get(gateway, f"{path}?download=1")
    assert reply.headers["content-disposition"] == 'attachment; filename="cat.png"'


async def test_name_of_any_letters_stays_whole(gateway: TestGateway) -> None:
    file = await kept(gateway, name='té "1"; 100%\u4e2d.png')
    reply = await get(gateway, f"/artifacts/{file.path}")
    assert reply.headers["content-disposition"] == (
        'inline; filename="t_ _1_; 100__.png"; '
        "filename*=UTF-8''t%C3%A9%20%221%22%3B%20100%25%E4%B8%AD.png"
    )


async def test_empty_file_is_whole(gateway: TestGateway) -> None:
    file = await kept(gateway, b"", extension="bin", name=None)
    reply = await get(gateway, f"/artifacts/{file.path}")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")
    assert (await get(gateway, f"/artifacts/{file.path}", range="bytes=0-")).status == 416


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/../app.db",
        "/artifacts/..%2f..%2fapp.db",
        "/artifacts/%2e%2e/%2e%2e/app.db",
        "/artifacts/%252e%252e%252fapp.db",
        "/artifacts//etc/passwd",
        "/artifacts/%2fetc%2fpasswd",
        "/artifacts/..\\app.db",
        "/artifacts/..%5capp.db",
        "/artifacts/a%00.png",
        "/artifacts/a%0a.png",
        "/artifacts/%ff%fe",
        "/artifacts/%ed%a0%80",
        "/artifacts/" + "a" * 3000,
        "/artifacts/link/app.db",
        "/files/../app.db",
        "/uploads/pub/../../app.db",
        "/uploads/pub/0/..%2f..%2f..%2fapp.db",
        "/api/GetArtifact?path=../app.db",
        "/api/GetArtifact?path=/etc/passwd",
        "/api/GetFileUpload?path=pub/0/%00",
    ],
)
async def test_no_path_leads_out_of_the_store(gateway: TestGateway, path: str) -> None:
    folder = gateway.data / "artifacts"
    folder.mkdir(exist_ok=True)
    (folder / "link").symlink_to(gateway.data)
    reply = await gateway.call("GET", path)
    assert reply.status in (400, 404), reply.body
    assert b"SQLite" not in reply.body


async def test_stray_file_in_the_folder_is_not_served(gateway: TestGateway, path: str) -> None:
    (gateway.data / "artifacts" / "stray.txt").write_text("secret")
    assert (await get(gateway, "/artifacts/stray.txt")).status == 404


async def test_lost_bytes_are_an_error_with_a_body(
    gateway: TestGateway, file: Artifact, path: str
) -> None:
    for found in (gateway.data / "artifacts").rglob("*.png"):
        found.unlink()
    reply = await get(gateway, path)
    assert reply.status == 503
    assert "content-disposition" not in reply.headers


async def test_file_is_never_held_whole(gateway: TestGateway) -> None:
    file = await kept(gateway, b"x" * 9_000_000, extension="txt", name="long.txt")
    sizes: list[int] = []
    async with await gateway.open("GET", f"/artifacts/{file.path}") as response:
        async for piece in response:
            sizes.append(len(piece))
    assert sum(sizes) == 9_000_000


async def test_reader_that_leaves_frees_the_file(
    gateway: TestGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await kept(gateway, b"x" * 64_000_000, extension="txt", name="long.txt")
    artifacts, read, freed = gateway.app._data.artifacts, asyncio.Event(), asyncio.Event()
    given: list[int] = []
    own = artifacts.read

    async def watched(*arguments: object):  # type: ignore[no-untyped-def]
        try:
            async for piece in own(*arguments):  # type: ignore[arg-type]
                given.append(len(piece))
                read.set()
                yield piece
        finally:
            freed.set()

    monkeypatch.setattr(artifacts, "read", watched)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
    head = (
        f"GET /artifacts/{file.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(10):
        await read.wait()
        writer.transport.abort()
        await freed.wait()
    # The socket's own buffers hold some; the rest was never read.
    assert sum(given) < 32_000_000
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_file_is_not_asked_for_in_a_batch(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("POST", "/api/GetArtifact[]", [{"path": path}])
    assert reply.status == 400
    assert reply.problem()["message"] == "A file cannot be asked for in a batch."


async def test_public_results_may_be_kept_by_caches(tmp_path, migrated: bytes) -> None:  # type: ignore[no-untyped-def]
    async with running(tmp_path / "data", migrated, PUBLIC_ARTIFACTS="true") as gateway:
        file = await kept(gateway)
        reply = await gateway.call("GET", f"/artifacts/{file.path}", key=None)
        assert reply.status == 200
        assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
