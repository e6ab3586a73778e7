"""HTTP at the socket: names, bounds, and what is not HTTP. After each, the server still answers."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aiserver.doors import server
from gateway import SECRET, TestGateway, running

HELLO = b"GET /api/Hello HTTP/1.1\r\nHost: x\r\n"
END = b"Connection: close\r\n\r\n"


@pytest.fixture
async def hasty(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    """A gateway that loses patience at once."""
    async with running(
        tmp_path / "data",
        migrated,
        HEADER_TIMEOUT="0.1s",
        BODY_TIMEOUT="0.1s",
        KEEP_ALIVE="1s",
        MAX_HEADERS="4KiB",
    ) as opened:
        yield opened


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def problem(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["responseStatus"]["message"]


async def still_answers(gateway: TestGateway) -> None:
    assert (await gateway.call("GET", "/api/Hello?name=you")).json() == {"result": "Hello, you!"}


async def test_header_names_are_canonical(gateway: TestGateway) -> None:
    answer = await gateway.raw(HELLO + END)
    names = [line.split(b":")[0] for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    assert b"Content-Type" in names
    assert b"X-Request-Id" in names
    assert all(name == name.title() for name in names)


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: -1\r\n\r\n", 400),
        (b"Content-Length: 1e3\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n", 400),
        (b"Bad Header: 1\r\n\r\n", 400),
        (b"X: a\nY: b\r\n\r\n", 400),
    ],
)
async def test_smuggling_is_refused(gateway: TestGateway, sent: bytes, wanted: int) -> None:
    answer = await gateway.raw(b"POST /api/Hello HTTP/1.1\r\nHost: x\r\n" + sent, then_close=False)
    assert status(answer) == wanted
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    await still_answers(gateway)


async def test_bare_line_feeds_are_refused(gateway: TestGateway) -> None:
    answer = await gateway.raw(b"GET /api/Hello HTTP/1.1\nHost: x\n\n")
    assert status(answer) == 400
    assert "not a valid HTTP request" in problem(answer)
    await still_answers(gateway)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n", b"\x00" * 100])
async def test_what_is_not_http_is_refused(gateway: TestGateway, sent: bytes) -> None:
    assert status(await gateway.raw(sent)) == 400
    await still_answers(gateway)


async def test_large_headers_are_refused(gateway: TestGateway) -> None:
    answer = await gateway.raw(HELLO + b"X-Big: " + b"a" * 100_000 + b"\r\n" + END)
    assert status(answer) == 431
    assert "larger" in problem(answer)
    await still_answers(gateway)


async def test_headers_are_bounded_before_they_end(hasty: TestGateway) -> None:
    answer = await hasty.raw(HELLO + b"X-Big: " + b"a" * 8000)
    assert status(answer) == 431


async def test_headers_at_the_bound_pass(hasty: TestGateway) -> None:
    assert status(await hasty.raw(HELLO + b"X-Big: " + b"a" * 3900 + b"\r\n" + END)) == 200
    assert status(await hasty.raw(HELLO + b"X-Big: " + b"a" * 4100 + b"\r\n" + END)) == 431


async def test_many_small_headers_are_bounded_too(hasty: TestGateway) -> None:
    lines = b"".join(b"X-%d: 1\r\n" % number for number in range(1000))
    assert status(await hasty.raw(HELLO + lines + END)) == 431


async def test_slow_headers_are_cut_off(hasty: TestGateway) -> None:
    answer = await hasty.raw(HELLO + b"X-Slow: ")
    assert status(answer) == 408
    await still_answers(hasty)


async def test_silent_connection_is_closed(hasty: TestGateway) -> None:
    assert await hasty.raw(b"") == b""


async def test_silent_body_is_cut_off(hasty: TestGateway) -> None:
    head = b"POST /api/Hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    assert status(await hasty.raw(head + b'{"name"')) == 408
    await still_answers(hasty)


async def test_idle_connection_is_closed(hasty: TestGateway) -> None:
    answer = await hasty.raw(HELLO + b"\r\n")
    assert status(answer) == 200
    assert b"Connection: close" not in answer


async def test_pipelined_requests_are_answered_in_order(gateway: TestGateway) -> None:
    sent = b"".join(
        b"GET /api/Hello?name=n%d HTTP/1.1\r\nHost: x\r\n%b\r\n"
        % (n, b"Connection: close\r\n" if n == 4 else b"")
        for n in range(5)
    )
    answer = await gateway.raw(sent)
    assert [answer.index(b"Hello, n%d!" % n) for n in range(5)] == sorted(
        answer.index(b"Hello, n%d!" % n) for n in range(5)
    )
    assert answer.count(b"HTTP/1.1 200") == 5


async def test_pipelined_requests_are_bounded(gateway: TestGateway) -> None:
    assert (await gateway.raw((HELLO + b"\r\n") * 5000)).count(b"HTTP/1.1 200 OK") <= 101
    await still_answers(gateway)


async def test_garbage_after_a_request_spoils_no_answer(gateway: TestGateway) -> None:
    answer = await gateway.raw(HELLO + b"\r\n" + b"\x00garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'{"result":"Hello, World!"}' in answer
    assert answer.count(b"HTTP/1.1 200") == 1
    await still_answers(gateway)


async def test_http_1_0_gets_a_plain_answer(gateway: TestGateway) -> None:
    answer = await gateway.raw(b"GET /api/Hello HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b'{"result":"Hello, World!"}')


async def test_expect_is_answered_before_the_body(gateway: TestGateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /api/Hello HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n"
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b'{"name":"x"}')
    assert b"200 OK" in await reader.readline()
    writer.close()


async def test_refused_call_asks_for_no_body(gateway: TestGateway) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    answer = await gateway.raw(head + b"Content-Length: 99\r\n" + END)
    assert status(answer) == 401


async def test_offered_upgrade_is_declined(gateway: TestGateway) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    answer = await gateway.raw(HELLO + upgrade + HELLO + END)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_head_has_no_body(gateway: TestGateway) -> None:
    answer = await gateway.raw(b"HEAD /up HTTP/1.1\r\nHost: x\r\n" + END)
    assert status(answer) == 200
    assert b"Content-Length: 15" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_odd_paths_are_only_not_found(gateway: TestGateway) -> None:
    for path in (b"/%00", b"/..%2f..%2fetc/passwd", b"/%ff%fe", b"//x", b"/api/", b"/static/../x"):
        answer = await gateway.raw(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + END)
        assert status(answer) == 404, path
    await still_answers(gateway)


async def test_line_break_in_a_request_id_is_not_echoed(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/up", headers={"x-request-id": "my-id_1:2"})
    assert reply.headers["x-request-id"] == "my-id_1:2"
    reply = await gateway.call("GET", "/up", headers={"x-request-id": "a b\tc"})
    assert reply.headers["x-request-id"] not in ("", "a b\tc")
    reply = await gateway.call("GET", "/up", headers={"x-request-id": "x" * 200})
    assert len(reply.headers["x-request-id"]) == 32


async def test_slow_reader_holds_nothing_for_ever(
    gateway: TestGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STUCK_WRITE_SECONDS", 0.05)

    gateway.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    long_answer = b"GET /api/Hello?name=%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 1000)

    def send_and_never_read() -> None:
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.settimeout(20)
            reader.connect(("127.0.0.1", gateway.port))
            reader.sendall(long_answer * 90)
            while True:
                reader.sendall(b"x" * 1_000_000)

    with pytest.raises(ConnectionError):
        await asyncio.to_thread(send_and_never_read)
    await still_answers(gateway)


async def test_key_is_never_in_an_answer(gateway: TestGateway) -> None:
    for path in ("/api/Hello?name=" + SECRET, "/api/" + SECRET, "/" + SECRET):
        reply = await gateway.call("GET", path, headers={"authsecret": SECRET})
        if reply.status != 200:
            assert SECRET.encode() not in reply.body
