"""Load on a gateway: callers that check every answer, and upstreams with a speed that fail at will."""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from aiserver.kit.db import driver
from aiserver.kit.upstream import Connection, Target, UpstreamError, UpstreamPool
from fakes.upstream import Exchange, FakeUpstream, Script, answer_normally

OK = "ok"
MODEL = "fake-model"
CHAT = "/v1/chat/completions"


class PacedUpstream(FakeUpstream):
    """Answers a chat after `seconds`, give or take `spread` of them; `fault` answers instead of it.

    `running` and `most_running` are its calls at once, `asked` counts the texts that it was asked,
    `served` the calls that it answered without a fault. While `gate` is clear, calls wait.
    """

    def __init__(self, seconds: float = 0.0, *, spread: float = 0.0) -> None:
        super().__init__()
        self.queue = _Endless([self._answer])
        self.seconds = seconds
        self.spread = spread
        self.fault: Script | None = None
        self.running = 0
        self.most_running = 0
        self.served = 0
        self.asked: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self._random = Random(7)

    async def kill(self) -> None:
        """As the end of its process: nothing listens, every connection breaks off."""
        self.stop_listening()
        for exchange in self.exchanges:
            exchange.transport.abort()
        await self._server.wait_closed()

    async def revive(self) -> None:
        """Listens again where it did."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Exchange(self), "127.0.0.1", self.port)

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.request.method != "POST":
            await answer_normally(exchange)
            return
        self.asked[exchange.request.json()["messages"][-1]["content"]] += 1
        if self.fault is not None:
            await self.fault(exchange)
            return
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.seconds:
            spread = self.spread * self._random.uniform(-1, 1)
            await passed(self.seconds * (1 + spread))
        await self.gate.wait()
        # A call is over for the upstream before its last byte is here.
        self.running -= 1
        self.served += 1
        await answer_normally(exchange)


class _Endless(deque[Script]):
    """Gives its only script again and again."""

    def popleft(self) -> Script:
        return self[0]


async def passed(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, lambda: over.done() or over.set_result(None))
    await over


class Connections(UpstreamPool):
    """`lost` connections are those that the gateway ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def lost(self, connection: Connection) -> None:
        self.ended += 1
        super().lost(connection)


class Caller:
    """Asks a gateway at `url` and compares each answer with what was asked."""

    def __init__(self, url: str, key: str) -> None:
        self.connections = Connections()
        self._url = url
        self._target = Target.parse(url + CHAT)
        self._headers = [
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {key}".encode()),
        ]

    async def close(self) -> None:
        await self.connections.aclose()

    async def post(self, path: str, body: Any) -> Any:
        response = await self.connections.send(
            Target.parse(self._url + path), headers=self._headers, body=json.dumps(body).encode()
        )
        async with response:
            content = await response.read(10_000_000)
            assert response.status == 200, content
            return json.loads(content)

    async def provider(self, name: str, url: str, **members: Any) -> None:
        """Adds a provider of the model."""
        body = {"name": name, "aiTypeId": "Custom", "apiBaseUrl": url, "models": [{"model": MODEL}]}
        await self.post("/api/CreateAiProvider", body | members)

    async def ask(self, text: str, *, stream: bool = False, model: str = MODEL) -> str:
        """OK, or in a few words what came instead; `text` is the call's request id too."""
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
        if stream:
            body["stream"] = True
        try:
            response = await self.connections.send(
                self._target,
                headers=[*self._headers, (b"x-request-id", text.encode())],
                body=json.dumps(body).encode(),
            )
            async with response:
                status, content = response.status, await response.read(10_000_000)
        except UpstreamError as error:
            return type(error).__name__
        if status != 200:
            return f"{status} {content.decode()[:200]}"
        return _judged(_streamed(content) if stream else _whole(content), f"echo: {text}")


def _judged(answer: str, wanted: str) -> str:
    return OK if answer == wanted else f"{answer!r} instead of {wanted!r}"


def _whole(content: bytes) -> str:
    return json.loads(content)["choices"][0]["message"]["content"]


def _streamed(content: bytes) -> str:
    said: list[str] = []
    events = content.decode().split("\n\n")
    if events[-2:] != ["data: [DONE]", ""]:
        return f"no end but {events[-2]}"
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        said += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
    return "".join(said)


async def load(
    ask: Callable[[int], Awaitable[str]],
    *,
    calls: int,
    at_once: int,
    at: Mapping[int, Callable[[], Awaitable[None]]] | None = None,
) -> Counter[str]:
    """How so many calls came out; `at` is done before the call of that number begins."""
    outcomes: Counter[str] = Counter()
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            if at is not None and number in at:
                await at[number]()
            outcomes[await ask(number)] += 1

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return outcomes


class Kept(NamedTuple):
    """A chat as the history has it; `attempts` as they are written there."""

    status: int
    error: str | None
    provider: str | None
    lost: int
    attempts: list[dict[str, Any]]


def history_of(data: Path) -> dict[str, Kept]:
    """Every chat in the files of a stopped gateway by its request id. Raises on one kept twice."""
    found: dict[str, Kept] = {}
    sql = "SELECT request_id, status, error, provider, lost, attempts FROM log WHERE path = ?"
    for file in month_files(data):
        for request_id, *members, attempts in rows(file, sql, CHAT):
            assert request_id not in found, f"{request_id} is kept twice"
            found[request_id] = Kept(*members, attempts=json.loads(attempts or "[]"))
    return found


def month_files(data: Path) -> list[Path]:
    return sorted((data / "history").glob("history-*.db"))


def rows(file: Path, sql: str, *values: object) -> list[Any]:
    connection = driver.connect(file)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()
