"""Bodies: bounds while reading, every form, files on disk and not in memory."""

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers, UploadFile

from aiserver.contract.errors import BodyTooLarge, MalformedBody, Unavailable, UnsupportedMedia
from aiserver.doors import body
from aiserver.doors.body import BodyReader, ClientGone, Receive, Sizes
from fakes.upstream import FakeUpstream
from gateway import TestGateway, running

MB = 1_000_000


def reader(**sizes: int) -> BodyReader:
    return BodyReader(Sizes(**({"body": MB, "upload": 100 * MB, "buffered": 10 * MB} | sizes)))


def arriving(*chunks: bytes, gone: bool = False) -> Receive:
    waiting = list(chunks)

    async def receive() -> MutableMapping[str, Any]:
        if not waiting and gone:
            return {"type": "http.disconnect"}
        body = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": body, "more_body": bool(waiting) or gone}

    return receive


def multipart(*parts: bytes) -> tuple[Headers, bytes]:
    body = b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"
    return Headers({"content-type": "multipart/form-data; boundary=B"}), body


async def test_json_is_read_whatever_its_type_says() -> None:
    for kind in (
        "application/json",
        "text/plain;charset=UTF-8",
        "",
        "application/x-www-form-urlencoded",
    ):
        async with reader().read(
            Headers({"content-type": kind}), arriving(b' {"a":', b"1}")
        ) as body:
            assert body.members == {"a": 1}


async def test_form_is_read_as_pairs() -> None:
    headers = Headers({"content-type": "application/x-www-form-urlencoded"})
    async with reader().read(headers, arriving(b"a=1&b=%C3%A9&c=")) as body:
        assert body.pairs == [("a", "1"), ("b", "é"), ("c", "")]


async def test_empty_body_is_an_empty_request() -> None:
    async with reader().read(Headers({}), arriving(b"")) as body:
        assert body.members == {}


@pytest.mark.parametrize(
    "raw", [b"{", b"[1]", b'"a"', b"nope", b"\xff\xfe", b'{"a":NaN}', b"[" * 50_000]
)
async def test_malformed_json_says_so(raw: bytes) -> None:
    with pytest.raises(MalformedBody):
        async with reader().read(Headers({}), arriving(raw)):
            pass


async def test_body_is_bounded_before_it_is_read() -> None:
    with pytest.raises(BodyTooLarge, match="MAX_BODY"):
        async with reader().read(Headers({"content-length": str(MB + 1)}), arriving()):
            pass


async def test_body_without_length_is_bounded_while_it_is_read() -> None:
    held = reader()
    with pytest.raises(BodyTooLarge):
        async with held.read(Headers({}), arriving(b"x" * MB, b"x", b"never read")):
            pass
    assert held.held == 0


async def test_body_at_the_bound_passes() -> None:
    raw = b'{"a":"' + b"x" * (MB - 8) + b'"}'
    async with reader().read(Headers({"content-length": str(MB)}), arriving(raw)) as body:
        assert len(body.members["a"]) == MB - 8


async def test_all_bodies_together_are_bounded() -> None:
    small = reader(buffered=MB)
    raw = b'{"a":"' + b"x" * 600_000 + b'"}'
    async with small.read(Headers({}), arriving(raw)):
        with pytest.raises(Unavailable) as caught:
            async with small.read(Headers({}), arriving(raw)):
                pass
        assert caught.value.retry_after
    assert small.held == 0
    async with small.read(Headers({}), arriving(raw)):
        pass


async def test_hang_up_is_no_body() -> None:
    with pytest.raises(ClientGone):
        async with reader().read(Headers({}), arriving(b'{"a"', gone=True)):
            pass


async def test_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMedia):
        async with reader().read(Headers({"content-encoding": "gzip"}), arriving(b"x")):
            pass


async def test_file_part_waits_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    headers, raw = multipart(
        b'Content-Disposition: form-data; name="positivePrompt"\r\n\r\na cat',
        b'Content-Disposition: form-data; name=image; filename="t\xc3\xa9 st.png"\r\n\r\n'
        + b"x" * 5 * MB,
    )
    sizes = reader(body=2 * MB, buffered=2 * MB)
    pieces = [raw[at : at + 65536] for at in range(0, len(raw), 65536)]
    async with sizes.read(headers, arriving(*pieces)) as body:
        assert body.pairs == [("positivePrompt", "a cat")]
        upload = body.files["image"]
        assert isinstance(upload, UploadFile)
        assert (upload.filename, upload.size) == ("té st.png", 5 * MB)
        assert upload._in_memory is False
        assert sizes.held == 0
        assert await upload.read(3) == b"xxx"
    assert upload.file.closed


async def test_upload_is_bounded_while_it_is_read() -> None:
    headers, raw = multipart(
        b'Content-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + b"x" * 3000
    )
    with pytest.raises(BodyTooLarge, match="MAX_UPLOAD"):
        async with reader(upload=2000).read(headers, arriving(raw[:1500], raw[1500:])):
            pass


async def test_call_that_ends_while_a_thread_writes_leaves_no_open_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writing, closing, written = threading.Event(), threading.Event(), threading.Event()
    spools: list[body._Spool] = []
    rollover, close, write = body._Spool.rollover, body._Spool.close, body._Spool.write

    def held(spool: body._Spool) -> None:
        spools.append(spool)
        writing.set()
        closing.wait(10)
        rollover(spool)

    def told(spool: body._Spool) -> None:
        if spool in spools:
            closing.set()
        close(spool)

    def followed(spool: body._Spool, piece: bytes) -> int:
        try:
            return write(spool, piece)
        finally:
            written.set()

    monkeypatch.setattr(body._Spool, "rollover", held)
    monkeypatch.setattr(body._Spool, "close", told)
    monkeypatch.setattr(body._Spool, "write", followed)
    headers, raw = multipart(
        b'Content-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + b"x" * 3 * MB
    )

    async def call() -> None:
        async with reader().read(headers, arriving(raw)):
            pass

    task = asyncio.create_task(call())
    await asyncio.to_thread(writing.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(written.wait, 10)
    assert [spool.closed for spool in spools] == [True]


async def test_form_without_expected_files_is_bounded_as_any_body() -> None:
    headers, raw = multipart(
        b'Content-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + b"x" * 3000
    )
    with pytest.raises(BodyTooLarge, match="MAX_BODY"):
        async with reader(body=2000).read(headers, arriving(raw), files=False):
            pass


async def test_form_value_is_bounded() -> None:
    headers, raw = multipart(b'Content-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 3000)
    with pytest.raises(MalformedBody):
        async with reader(body=2000).read(headers, arriving(raw)):
            pass


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("multipart/form-data", b"--B\r\n\r\n--B--"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=B", b"--B\r\nno header\r\n\r\nx\r\n--B--\r\n"),
        (
            "multipart/form-data; boundary=B",
            b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--",
        ),
        ("multipart/form-data; boundary=B", b"garbage"),
        (
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nhalf a f',
        ),
    ],
)
async def test_broken_form_is_refused(kind: str, raw: bytes) -> None:
    with pytest.raises(MalformedBody):
        async with reader().read(Headers({"content-type": kind}), arriving(raw)):
            pass


@pytest.fixture
async def small(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, MAX_BODY="100KB") as opened:
        await opened.provider("fake", upstream.base_url)
        yield opened


async def test_large_body_is_a_clear_413(small: TestGateway) -> None:
    reply = await small.chat(content="x" * 6_000_000)
    assert reply.status == 413
    assert "larger than 0.1 MB" in reply.problem()["message"]
    assert reply.headers["connection"] == "close"
    assert (await small.chat()).status == 200


async def test_sixty_megabytes_are_refused_by_default(gateway: TestGateway) -> None:
    reply = await gateway.call("POST", "/v1/chat/completions", b'"' + b"x" * 60 * MB + b'"')
    assert reply.status == 413
    assert "50 MB" in reply.problem()["message"]


async def test_endless_body_is_cut_off(small: TestGateway) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = b"POST /api/Hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await small.raw(head + chunk * 50)
    assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""
    assert (await small.chat()).status == 200


@pytest.mark.parametrize("raw", [b"{", b"[]", b"null", b'{"model":"\xff"}'])
async def test_malformed_chat_is_a_clear_400(small: TestGateway, raw: bytes) -> None:
    reply = await small.call("POST", "/v1/chat/completions", raw)
    assert reply.status == 400
    assert reply.problem()["errorCode"] == "SerializationException"
    assert reply.json()["error"]["code"] == "malformed_body"


async def test_body_is_not_read_without_a_key(small: TestGateway) -> None:
    reader_, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n")
    assert b"401" in await reader_.readline()
    writer.close()
    assert small.app.gateway._reader.held == 0
