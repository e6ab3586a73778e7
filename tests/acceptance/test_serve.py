"""A real server process: starts, stops, kills, and the command line beside it."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from acceptance.running import NotRunning, RunningServer
from aiserver.kit.upstream import Target, UpstreamPool, UpstreamResponse
from fakes.upstream import FakeUpstream, Slow, stall

QUIET = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json"}
COMMAND = str(Path(sys.executable).with_name("ai-server"))
CHAT = "/v1/chat/completions"
LONG = [{"role": "user", "content": "x" * 400}]


@pytest.fixture
def server(tmp_path: Path) -> Generator[RunningServer]:
    started = RunningServer.start(tmp_path / "data", QUIET)
    yield started
    started.stop()


class Visitor:
    """Calls servers over connections that end with the test."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool

    async def open(
        self, server: RunningServer, path: str, body: Any = None, *, key: str | None = None
    ) -> UpstreamResponse:
        return await self._pool.send(
            Target.parse(server.base_url.replace("localhost", "127.0.0.1") + path),
            method=b"GET" if body is None else b"POST",
            headers=[(b"authorization", f"Bearer {key or server.secret}".encode())],
            body=b"" if body is None else json.dumps(body).encode(),
        )

    async def call(
        self, server: RunningServer, path: str, body: Any = None, *, key: str | None = None
    ) -> tuple[int, Any]:
        async with await self.open(server, path, body, key=key) as response:
            return response.status, json.loads(await response.read(10_000_000))

    async def becomes(self, server: RunningServer, chat: Any, key: str, wanted: int) -> None:
        async with asyncio.timeout(1):
            while (await self.call(server, CHAT, chat, key=key))[0] != wanted:
                await asyncio.sleep(0.02)

    async def unready(self, server: RunningServer) -> Any:
        async with asyncio.timeout(5):
            while (ready := await self.call(server, "/health/ready"))[0] == 200:
                await asyncio.sleep(0.01)
            return ready[1]

    async def streaming(
        self, server: RunningServer, fake: FakeUpstream
    ) -> tuple[UpstreamResponse, Slow]:
        """A stream that has begun, and what lets the rest of it go."""
        models = [{"model": "fake-model"}]
        provider = {"name": "fake", "aiTypeId": "Custom", "apiBaseUrl": fake.base_url}
        status, _ = await self.call(server, "/api/CreateAiProvider", {**provider, "models": models})
        assert status == 200
        slow = Slow()
        fake.next(slow)
        slow.release(2)
        body = {"model": "fake-model", "stream": True, "messages": LONG}
        response = await self.open(server, CHAT, body)
        await anext(aiter(response))
        return response, slow

    async def stalled_job(self, server: RunningServer, fake: FakeUpstream) -> None:
        """A job that runs and does not end, beside a stream."""
        fake.next(stall)
        request = {"model": "fake-model", "messages": LONG}
        path = "/api/QueueOpenAiChatCompletion"
        status, _ = await self.call(server, path, {"request": request})
        assert status == 200
        await fake.started.reach(2)


@pytest.fixture
async def visitor() -> AsyncGenerator[Visitor]:
    pool = UpstreamPool()
    yield Visitor(pool)
    await pool.aclose()


def ai_server(data: Path, *words: str) -> str:
    command = [COMMAND, *words, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def refusal(data: Path, environment: dict[str, str], *, port: int = 0) -> str:
    with pytest.raises(NotRunning) as caught:
        RunningServer.start(data, QUIET | environment, port=port)
    return str(caught.value)


async def test_secret_is_printed_once_and_kept(tmp_path: Path, visitor: Visitor) -> None:
    first = RunningServer.start(tmp_path, QUIET)
    assert first.secret.startswith("as-")
    assert (await visitor.call(first, "/api/AdminQueryApiKeys"))[0] == 200
    assert first.stop() == 0
    again = RunningServer.start(tmp_path, QUIET)
    assert "secret" not in again.printed()
    assert (await visitor.call(again, "/api/AdminQueryApiKeys", key=first.secret))[0] == 200
    again.stop()
    files = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert not any(first.secret.encode() in content for content in files)


async def test_own_secret_is_used_and_never_shown(tmp_path: Path, visitor: Visitor) -> None:
    secret = "operators-own-secret-0123456789"
    server = RunningServer.start(tmp_path, QUIET | {"AUTH_SECRET": secret, "LOG_LEVEL": "debug"})
    assert (await visitor.call(server, "/api/AdminQueryApiKeys", key=secret))[0] == 200
    assert (await visitor.call(server, "/api/AdminQueryApiKeys", key="wrong"))[0] == 401
    server.stop()
    assert secret not in server.printed()


def test_encryption_key_is_the_owners_alone(server: RunningServer, tmp_path: Path) -> None:
    mode = stat.S_IMODE((tmp_path / "data" / "encryption.key").stat().st_mode)
    assert mode == 0o600


def test_it_listens_on_loopback_only(server: RunningServer) -> None:
    for address in ("127.0.0.1", "::1"):
        socket.create_connection((address, server.port), timeout=5).close()
    listening = Path("/proc/net/tcp").read_text().splitlines()
    local = [
        line.split()[1] for line in listening if line.split()[1].endswith(f":{server.port:04X}")
    ]
    assert local
    assert all(address.startswith("0100007F") for address in local)


def test_idle_memory_is_small(server: RunningServer) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident) <= 80 * 1024


def test_second_server_on_the_same_data_is_refused(server: RunningServer, tmp_path: Path) -> None:
    assert "Another server runs on" in refusal(tmp_path / "data", {})


def test_busy_port_is_named(server: RunningServer, tmp_path: Path) -> None:
    said = refusal(tmp_path / "other", {}, port=server.port)
    assert f"Port {server.port} is in use" in said


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"MAX_BODY": "lots"}, "MAX_BODY"),
        ({"AUTH_SECRET": "short"}, "24 characters"),
        ({"WORKERS": "2"}, "PostgreSQL"),
        ({"HOST": "not.an.address.invalid"}, "Cannot use the address"),
        ({"ENCRYPTION_KEY": "x"}, "32 bytes"),
        ({"DATABASE_URL": "postgresql://host/db"}, "every node needs the same one"),
    ],
)
def test_unusable_setting_stops_the_start(
    tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    assert says in refusal(tmp_path, environment)


def test_broken_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "app.db").write_bytes(b"not a database " * 1000)
    assert "Cannot open the database" in refusal(tmp_path, {})


def test_data_folder_that_is_a_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "data folder" in refusal(tmp_path / "file", {})


async def test_stop_lets_a_stream_finish(server: RunningServer, visitor: Visitor) -> None:
    async with FakeUpstream() as fake:
        response, slow = await visitor.streaming(server, fake)
        server.process.send_signal(signal.SIGTERM)
        assert (await visitor.unready(server))["problems"] == {"server": "stopping"}
        status, body = await visitor.call(server, "/api/QueryAiProviders")
        assert (status, body["responseStatus"]["errorCode"]) == (503, "ServiceUnavailable")
        assert server.process.poll() is None
        slow.release(1000)
        rest = b"".join([chunk async for chunk in response])
        assert rest.endswith(b"data: [DONE]\n\n")
        assert server.process.wait(5) == 0


async def test_grace_time_has_an_end(tmp_path: Path, visitor: Visitor) -> None:
    server = RunningServer.start(tmp_path, QUIET | {"SHUTDOWN_GRACE": "0.1s"})
    async with FakeUpstream() as fake:
        response, _ = await visitor.streaming(server, fake)
        assert server.stop() == 0
        response.close()


async def test_calls_and_jobs_share_one_grace_time(tmp_path: Path, visitor: Visitor) -> None:
    server = RunningServer.start(tmp_path, QUIET | {"SHUTDOWN_GRACE": "2s"})
    async with FakeUpstream() as fake:
        response, _ = await visitor.streaming(server, fake)
        await visitor.stalled_job(server, fake)
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        assert 2 <= time.monotonic() - began < 3.5
        last = b"".join([chunk async for chunk in response]).strip().rpartition(b"\n\n")[2]
        assert json.loads(last[6:])["error"]["code"] == "server_unavailable"
    assert "Traceback" not in server.printed()
    assert '"level": "error"' not in server.printed()


async def test_second_interrupt_stops_at_once(server: RunningServer, visitor: Visitor) -> None:
    async with FakeUpstream() as fake:
        response, _ = await visitor.streaming(server, fake)
        await visitor.stalled_job(server, fake)
        server.process.send_signal(signal.SIGINT)
        await visitor.unready(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 0
        response.close()


async def test_killed_server_loses_nothing_it_confirmed(tmp_path: Path, visitor: Visitor) -> None:
    server = RunningServer.start(tmp_path, QUIET)
    async with FakeUpstream() as fake:
        _, body = await visitor.call(server, "/api/AdminCreateApiKey", {"name": "kept"})
        response, _ = await visitor.streaming(server, fake)
        os.kill(server.process.pid, signal.SIGKILL)
        server.stop()
        response.close()
        again = RunningServer.start(tmp_path, QUIET)
        messages = [{"role": "user", "content": "still here"}]
        chat = {"model": "fake-model", "messages": messages}
        status, answer = await visitor.call(again, CHAT, chat, key=body["result"])
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "echo: still here"
        again.stop()


async def test_command_beside_the_server_counts_within_a_second(
    server: RunningServer, tmp_path: Path, visitor: Visitor
) -> None:
    data = tmp_path / "data"
    async with FakeUpstream() as fake:
        key = ai_server(data, "keys", "create", "app")
        words = ("--type", "custom", "--url", fake.base_url, "--model", "fake-model")
        ai_server(data, "providers", "add", "fake", *words)
        chat = {"model": "fake-model", "messages": [{"role": "user", "content": "x"}]}
        await visitor.becomes(server, chat, key, 200)
        ai_server(data, "keys", "disable", "app")
        await visitor.becomes(server, chat, key, 401)
        ai_server(data, "keys", "enable", "app")
        ai_server(data, "providers", "disable", "fake")
        await visitor.becomes(server, chat, key, 404)
        secret = ai_server(data, "keys", "reset-admin")
        async with asyncio.timeout(1):
            while (await visitor.call(server, "/api/AdminQueryApiKeys", key=secret))[0] != 200:
                await asyncio.sleep(0.02)
        assert (await visitor.call(server, "/api/AdminQueryApiKeys"))[0] == 401
