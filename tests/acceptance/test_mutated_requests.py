"""No request is a server error: every operation gets valid, spoilt and broken ones."""

import asyncio
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiserver.contract.caller import ADMINISTRATOR
from aiserver.jobs.status_handlers import StatusHandlers
from aiserver.kit.db import Connection
from fakes.upstream import Exchange, FakeUpstream, answer_normally, status
from gateway import SECRET, TestGateway, running
from mutations import Caller, Requests, flipped

KEY = "ak-0123456789abcdef0123456789abcdef"
# The share of requests whose head is damaged too; each takes a connection of its own.
RAW_SHARE = 0.05
_CONNECTIONS, _ROUND, _SAID = 16, 2000, 20_000
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_ANSWER, _WAIT = 20.0, 1.0
_FAILED = (b"HTTP/1.1 500", b"The server failed")


class Line:
    """A connection that is kept between requests."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: bytes) -> bytes:
        """The whole answer; nothing when the server closed the connection instead."""
        kept = self._streams is not None
        try:
            return await self._ask(sent)
        except TimeoutError:
            # The late answer would be taken for that of the next request.
            self.close()
            raise
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            # It may have been closed as idle before it took this request.
            return await self.ask(sent) if kept else b""

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, sent: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(sent)
        async with asyncio.timeout(_ANSWER):
            head = await reader.readuntil(b"\r\n\r\n")
            folded = head.lower()
            body = b""
            if sent.startswith(b"HEAD ") or b" 204 " in head[:15]:
                pass
            elif b"\r\ntransfer-encoding: chunked" in folded:
                while (size := int((await reader.readline()).split(b";")[0], 16)) > 0:
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            elif found := re.search(rb"\r\ncontent-length: (\d+)", folded):
                body = await reader.readexactly(int(found[1]))
            else:
                body = await reader.read()
        if b"\r\nconnection: close" in folded:
            self.close()
        return head + body


class Trial:
    """Sends requests by number, counts the answers, keeps what failed."""

    def __init__(
        self, gateway: TestGateway, upstream: FakeUpstream, seed: int, say: Callable[[str], None]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._gateway = gateway
        self._upstream = upstream
        self._seed = seed
        self._say = say
        self._lines = [Line(gateway.port) for _ in range(_CONNECTIONS)]

    async def run(self, count: int) -> None:
        started = time.monotonic()
        for first in range(0, count, _ROUND):
            requests = await self._fresh()
            numbers = iter(range(first, min(first + _ROUND, count)))
            await asyncio.gather(*(self._take(line, requests, numbers) for line in self._lines))
            done = min(first + _ROUND, count)
            if done % _SAID == 0:
                took = time.monotonic() - started
                self._say(f"{done} requests in {took:.0f} s: {self.shown()}")
            if len(self.failures) > 20:
                break
        for line in self._lines:
            line.close()

    def shown(self) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(self.counts.items()))

    async def _take(self, line: Line, requests: Requests, numbers: Iterator[int]) -> None:
        for number in numbers:
            operation, sent = requests[number]
            rng = random.Random(f"{self._seed}/{number}/head")
            try:
                if rng.random() < RAW_SHARE and b"127.0.0.1" not in sent:
                    sent = flipped(rng, sent)
                    answer = await self._gateway.raw(sent, then_close=True)
                else:
                    answer = await line.ask(sent) or b"The server failed to answer at all"
            except TimeoutError:
                answer = b"The server failed to answer in time"
            found = _STATUS.match(answer)
            self.counts[found[1].decode() if found else "closed"] += 1
            if any(sign in answer for sign in _FAILED):
                said = f"seed {self._seed}, request {number} ({operation.name}):"
                self.failures.append(f"{said}\n  sent {sent!r}\n  answer {answer[:600]!r}")

    async def _fresh(self) -> Requests:
        """Forgets what the requests have made, so that the database stays small."""
        app = self._gateway.app

        def forget(connection: Connection) -> None:
            for table in ("api_keys", "providers", "sessions", "sqlite_sequence"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("UPDATE revisions SET number = number + 1")

        await self._gateway.database.write(forget)
        await app._changes.look()
        self._upstream.requests.clear()
        self._upstream.queue.clear()
        self._upstream.next(*[_answer] * 10_000)
        await self._gateway.provider("fake", self._upstream.base_url)
        await self._gateway.call("POST", "/api/CreateApiKey", {"name": "test", "key": KEY})
        proof = app._ring.credential(ADMINISTRATOR)
        session = await app._data.sessions.open(0, proof, "test", remember=False)
        callers = (
            Caller("administrator", f"Authorization: Bearer {SECRET}"),
            Caller("key", f"Authorization: Bearer {KEY}"),
            Caller("session", f"Cookie: ss-id={session}"),
            Caller("nobody", ""),
        )
        return Requests(
            list(app.gateway._registry), callers, seed=self._seed, url=self._upstream.base_url
        )


async def _answer(exchange: Exchange) -> None:
    """As any upstream: what it cannot read is the caller's mistake."""
    try:
        await answer_normally(exchange)
    except (ValueError, TypeError, LookupError, AttributeError, StopIteration, RuntimeError):
        await status(400, {"error": {"message": "unreadable", "type": "invalid"}})(exchange)


async def tried(
    data: Path,
    migrated: bytes,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    count: int,
    say: Callable[[str], None] = lambda _: None,
) -> Trial:
    monkeypatch.setattr("aiserver.keys.signin.MOST_FAILURES", 10**9)
    # Who waits for a queued job is otherwise answered after two minutes.
    defaults = StatusHandlers.__init__.__kwdefaults__ or {}
    for name in ("wait", "listen"):
        monkeypatch.setitem(defaults, name, _WAIT)
    async with FakeUpstream() as upstream, running(data, migrated, PROVIDER_WAIT="1s") as gateway:
        trial = Trial(gateway, upstream, seed, say)
        await trial.run(count)
        assert not trial.failures, "\n\n".join(trial.failures)
        await trial._fresh()
        assert (await gateway.call("GET", "/health/ready")).status == 200
        assert (await gateway.chat(key=KEY)).status == 200
    return trial


async def test_spoilt_requests_are_no_server_errors(
    tmp_path: Path, migrated: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = await tried(tmp_path, migrated, monkeypatch, seed=20_261, count=2000)
    assert {"200", "204", "400", "401", "404", "405"} <= set(trial.counts), trial.shown()


@pytest.mark.long
async def test_many_spoilt_requests_are_no_server_errors(
    tmp_path: Path,
    migrated: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # MUTATION_SEED=... tries the requests of a failure again.
    seed = int(os.environ.get("MUTATION_SEED") or random.randrange(2**32))

    def say(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    say(f"\nseed {seed}")
    await tried(tmp_path, migrated, monkeypatch, seed=seed, count=200_000, say=say)
