"""A gateway in the test's own loop, on a real socket, and a client for it."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from uvicorn.server import ServerState

import object_stores
import postgres
from aiserver import settings as s
from aiserver.app import App
from aiserver.data import open_data, redactor_for
from aiserver.doors.listen import bind
from aiserver.doors.server import HttpProtocol
from aiserver.engines import SqliteEngine
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from aiserver.kit.ids import random_hex
from aiserver.kit.upstream import Target, UpstreamPool, UpstreamResponse
from aiserver.rooms import open_rooms
from aiserver.work.rooms import QueuedRoom

# With TEST_DATABASE=postgres every gateway stands on a database there, a restarted one on its own.
_URLS: dict[Path, str] = {}
# The same of TEST_STORAGE=moto or seaweed, for results and files.
_STORES: dict[Path, str] = {}
SECRET = "test-secret-0123456789-0123456789"


class Reply:
    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.status = status
        self.headers = {k.decode(): v.decode("latin-1") for k, v in headers.items()}
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self) -> Any:
        """The responseStatus of an error."""
        return self.json()["responseStatus"]

    def events(self) -> list[Any]:
        """The data of a stream's events, [DONE] as text."""
        data = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


class TestGateway:
    """`app` is the real one; `call` speaks to it over its socket."""

    __test__ = False

    def __init__(self, app: App, listener: socket.socket, data: Path) -> None:
        self.app = app
        self.listener = listener
        self.port: int = listener.getsockname()[1]
        self.data = data
        self.url = f"http://127.0.0.1:{self.port}"
        self._pool = UpstreamPool()

    @property
    def database(self) -> Database:
        """The file that it stands on."""
        engine = self.app._data.engine
        assert isinstance(engine, SqliteEngine)
        return engine.database

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Of the database that it stands on, whichever that is."""
        return await self.app._data.engine.tables.read(sql)

    async def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = SECRET,
        headers: dict[str, str] | None = None,
    ) -> UpstreamResponse:
        sent = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        return await self._pool.send(
            Target.parse(self.url + path),
            method=method.encode(),
            headers=[(name.encode(), value.encode()) for name, value in sent.items()],
            body=raw,
        )

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = SECRET,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        async with await self.open(method, path, body, key=key, headers=headers) as response:
            content = await response.read(100_000_000)
            return Reply(response.status, response.headers, content)

    async def chat(
        self, model: str = "fake-model", *, key: str | None = SECRET, **more: Any
    ) -> Reply:
        message = {"role": "user", "content": more.pop("content", "hello")}
        body = {"model": model, "messages": [message], **more}
        return await self.call("POST", "/v1/chat/completions", body, key=key)

    async def key(self, **members: Any) -> str:
        reply = await self.call("POST", "/api/AdminCreateApiKey", {"name": "test", **members})
        assert reply.status == 200, reply.body
        return reply.json()["result"]

    async def provider(self, name: str, url: str, **members: Any) -> int:
        models = members.pop("models", [{"model": "fake-model"}])
        body = {"name": name, "aiTypeId": "Custom", "apiBaseUrl": url, "models": models, **members}
        reply = await self.call("POST", "/api/CreateAiProvider", body)
        assert reply.status == 200, reply.body
        return int(reply.json()["id"])

    async def recorded(self, request_id: str) -> Any:
        """What administrators read of a call, once it is written; `attempts` as data."""
        async with asyncio.timeout(10):
            while True:
                self.app.history.wake()
                reply = await self.call("GET", "/api/RequestLogs?take=200")
                for entry in reply.json()["results"]:
                    if entry["traceId"] == request_id:
                        attempts = json.loads(entry["meta"].pop("attempts", "[]"))
                        return {**entry, "attempts": attempts}
                await asyncio.sleep(0.005)

    async def raw(self, sent: bytes, *, then_close: bool = False) -> bytes:
        """Everything the server says to these bytes until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            if then_close:
                writer.write_eof()
            async with asyncio.timeout(10):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def close(self) -> None:
        await self._pool.aclose()


def running(
    data: Path, migrated: bytes | None = None, **environment: str
) -> AbstractAsyncContextManager[TestGateway]:
    """A started gateway on `data`; settings as environment variables."""
    return running_with((), data, migrated, environment)


@asynccontextmanager
async def running_with(
    rooms: Sequence[QueuedRoom], data: Path, migrated: bytes | None, environment: dict[str, str]
) -> AsyncGenerator[TestGateway]:
    """As `running`, with operations of the test beside the server's own."""
    data.mkdir(parents=True, exist_ok=True)
    if migrated is not None and not (data / "app.db").exists():
        (data / "app.db").write_bytes(migrated)
    defaults = {"AUTH_SECRET": SECRET, "APP_DATA": str(data), "LOCAL_MODELS": "false"}
    # The whole suite passes with either setting.
    defaults["HOT_LANE"] = os.environ.get("HOT_LANE", "auto")
    if os.environ.get("TEST_DATABASE") == "postgres" and "DATABASE_URL" not in environment:
        if data not in _URLS:
            _URLS[data] = postgres.server().fresh_database()
        defaults |= {"DATABASE_URL": _URLS[data], "ENCRYPTION_KEY": "0" * 64}
    store = os.environ.get("TEST_STORAGE")
    if store and "STORAGE_URL" not in environment:
        os.environ.update(object_stores.credentials())
        if data not in _STORES:
            _STORES[data] = object_stores.named(store).url(random_hex(8))
        defaults["STORAGE_URL"] = _STORES[data]
    settings = s.load(environment=defaults | environment)
    clock = SystemClock()
    redact = redactor_for(settings)
    opened = await open_data(settings, clock, redact)
    try:
        async with (
            open_rooms(settings, opened) as own,
            _served(App(settings, opened, redact, clock, rooms=[*own, *rooms]), data) as gateway,
        ):
            yield gateway
    finally:
        await opened.close()


@asynccontextmanager
async def _served(app: App, data: Path) -> AsyncGenerator[TestGateway]:
    await app.start()
    config = app.http_config()
    config.load()
    state = ServerState()
    listener = bind("127.0.0.1", 0)[0]
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}), sock=listener
    )
    gateway = TestGateway(app, listener, data)
    try:
        yield gateway
    finally:
        await gateway.close()
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await app.close()
