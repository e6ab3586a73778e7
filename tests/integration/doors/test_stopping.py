"""What callers see of a server that stops: each gets an answer, and in time."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aiserver.doors.listen import bind
from aiserver.doors.serving import Server
from aiserver.kit.upstream import UpstreamResponse
from fakes.upstream import FakeUpstream, Slow, stall
from gateway import TestGateway, running

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "x" * 400}],
}
STREAMED = {**ASKED, "stream": True}
LANES = pytest.mark.parametrize("lane", ["auto", "off"])
QUICK = "0.2s"


class Stopped:
    """A gateway on a server that a test stops."""

    def __init__(self, gateway: TestGateway, server: Server, ended: asyncio.Task[None]) -> None:
        self.gateway = gateway
        self.server = server
        self._ended = ended

    async def under_way(self, calls: int) -> None:
        async with asyncio.timeout(10):
            while self.server._running() < calls:
                await asyncio.sleep(0.005)

    def signal(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    async def stop(self) -> float:
        """The seconds that it took."""
        self.signal()
        return await self.ended()

    async def ended(self) -> float:
        began = time.monotonic()
        await self._ended
        return time.monotonic() - began


@asynccontextmanager
async def stopping(
    folder: Path,
    migrated: bytes,
    upstream: FakeUpstream,
    *,
    grace: str = QUICK,
    lane: str = "auto",
    slots: int = 9,
) -> AsyncGenerator[Stopped]:
    """With a provider, to which a connection is open, as the hot lane needs it."""
    async with running(folder, migrated, HOT_LANE=lane, SHUTDOWN_GRACE=grace) as gateway:
        app, ready = gateway.app, asyncio.Event()
        listener = bind("127.0.0.1", 0)[0]
        gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        gateway.port = listener.getsockname()[1]
        server = Server(app.http_config(), app.lifecycle, app._desk, ready.set)
        ended = asyncio.create_task(server.serve([listener]))
        await ready.wait()
        try:
            await gateway.provider("fake", upstream.base_url, concurrency=slots)
            assert (await gateway.chat()).status == 200
            yield Stopped(gateway, server, ended)
        finally:
            server.should_exit = server.force_exit = True
            await ended


async def stream(gateway: TestGateway, upstream: FakeUpstream) -> UpstreamResponse:
    """One that has begun and does not end."""
    slow = Slow()
    upstream.next(slow)
    slow.release(3)
    response = await gateway.open("POST", CHAT, STREAMED)
    assert b"echo" in await anext(aiter(response))
    return response


async def test_who_waits_for_a_job_is_told_where_it_is_found(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with stopping(tmp_path, migrated, upstream) as stopped:
        gateway = stopped.gateway
        upstream.next(stall, stall, stall, stall)
        queued = {"request": ASKED, "refId": "queued"}
        await gateway.call("POST", "/api/QueueOpenAiChatCompletion", queued)
        waiting = [
            asyncio.create_task(call)
            for call in (
                gateway.call("POST", CHAT, ASKED, headers={"prefer": "wait=60"}),
                gateway.call("POST", CHAT, ASKED, headers={"idempotency-key": "a"}),
                gateway.call("POST", CHAT, STREAMED, headers={"idempotency-key": "b"}),
                gateway.call("GET", "/api/WaitForOpenAiChat?refId=queued"),
                gateway.call("GET", "/api/GetJobEvents?refId=queued"),
            )
        ]
        await upstream.started.reach(5)
        await stopped.under_way(5)
        await stopped.stop()
        preferred, keyed, streamed, waited, events = await asyncio.gather(*waiting)
        assert (preferred.status, preferred.json().keys()) == (202, {"id", "refId", "statusUrl"})
        assert (keyed.status, keyed.problem()["meta"].keys()) == (
            504,
            {"jobId", "refId", "statusUrl"},
        )
        last = json.loads(streamed.body.decode().strip().rpartition("data: ")[2])
        assert last["error"]["code"] == "job_not_ended"
        assert (waited.status, waited.problem()["meta"]["refId"]) == (504, "queued")
        assert events.status == 200
        states = await gateway.rows("SELECT state FROM jobs")
        assert len(states) == 4


def is_stopping(problem: Any) -> bool:
    said = problem["error"]
    return said["code"] == "server_unavailable" and "server is stopping" in said["message"]


@LANES
async def test_call_that_does_not_end_in_time_is_refused_in_its_dialect(
    tmp_path: Path,
    migrated: bytes,
    upstream: FakeUpstream,
    caplog: pytest.LogCaptureFixture,
    lane: str,
) -> None:
    async with stopping(tmp_path, migrated, upstream, lane=lane) as stopped:
        upstream.next(stall)
        headers = {"x-request-id": "mine"}
        calling = asyncio.create_task(stopped.gateway.call("POST", CHAT, ASKED, headers=headers))
        await upstream.started.reach(2)
        await stopped.stop()
        reply = await calling
        assert reply.status == 503
        assert is_stopping(reply.json())
        assert reply.problem()["errorCode"] == "ServiceUnavailable"
        assert reply.headers["retry-after"] == "2"
        assert reply.headers["x-request-id"] == "mine"
        await upstream.cancelled.reach()
    assert not [record for record in caplog.records if record.exc_info]


@LANES
async def test_stream_that_does_not_end_in_time_ends_with_an_error(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with stopping(tmp_path, migrated, upstream, lane=lane) as stopped:
        response = await stream(stopped.gateway, upstream)
        await stopped.stop()
        rest = b"".join([chunk async for chunk in response])
        last = rest.decode().strip().rpartition("\n\n")[2]
        assert is_stopping(json.loads(last.removeprefix("data: ")))
        await upstream.cancelled.reach()


@LANES
async def test_call_that_ends_in_time_is_answered(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with stopping(tmp_path, migrated, upstream, grace="30s", lane=lane) as stopped:
        slow = Slow()
        upstream.next(slow)
        slow.release(3)
        response = await stopped.gateway.open("POST", CHAT, STREAMED)
        await anext(aiter(response))
        stopped.signal()
        slow.release(1000)
        rest = b"".join([chunk async for chunk in response])
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await stopped.ended() < 5


async def test_no_job_begins_while_the_server_stops(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with stopping(tmp_path, migrated, upstream, slots=2) as stopped:
        gateway, slow = stopped.gateway, Slow()
        held = await stream(gateway, upstream)
        upstream.next(slow)
        slow.release(3)
        response = await gateway.open("POST", CHAT, STREAMED)
        await anext(aiter(response))
        queued = await gateway.call("POST", "/api/QueueOpenAiChatCompletion", {"request": ASKED})
        assert queued.status == 200
        stopped.signal()
        slow.release(1000)
        assert b"".join([chunk async for chunk in response]).endswith(b"data: [DONE]\n\n")
        await stopped.ended()
        assert len(upstream.requests) == 3
        assert await gateway.rows("SELECT state, attempt FROM jobs") == [("Queued", 0)]
        held.close()


async def test_second_signal_ends_everything_at_once(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with stopping(tmp_path, migrated, upstream, grace="60s") as stopped:
        upstream.next(stall)
        calling = asyncio.create_task(stopped.gateway.call("POST", CHAT, ASKED))
        await upstream.started.reach(2)
        stopped.signal()
        stopped.signal()
        assert stopped.gateway.app.lifecycle.left == 0
        assert await stopped.ended() < 5
        assert (await calling).status == 503


async def test_file_that_is_not_sent_in_time_is_cut_off(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with stopping(tmp_path, migrated, upstream) as stopped:
        gateway, size = stopped.gateway, 9_500_000
        form = b"--b\r\nContent-Disposition: form-data; name=f; filename=f.bin\r\n\r\n"
        body, kind = form + bytes(size) + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
        reply = await gateway.call("POST", "/uploads/pub", body, headers={"content-type": kind})
        assert reply.status == 200, reply.body
        path = reply.json()["results"][0].removeprefix(gateway.url)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(reader, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(reader, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = await loop.sock_recv(reader, 1000)
            assert got.startswith(b"HTTP/1.1 200")
            assert await stopped.stop() < 3
            got = b""
            with suppress(ConnectionError):
                while piece := await loop.sock_recv(reader, 1_000_000):
                    got += piece
            assert len(got) < size
            assert b"HTTP/1.1" not in got
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
