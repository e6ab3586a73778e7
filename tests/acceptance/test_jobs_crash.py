"""A server killed again and again with jobs queued and running: none is lost or settled twice."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.running import RunningServer
from aiserver.kit.upstream import Target, UpstreamError, UpstreamPool
from fakes.load import PacedUpstream, passed, rows
from gateway import SECRET, running


class Survived(NamedTuple):
    """`resumed` are the seconds from each start to the first job that ended after it."""

    accepted: int
    executions: int
    twice: int
    resumed: list[float]


class Client:
    """Calls a server that may be dead for a while."""

    def __init__(self) -> None:
        self._pool = UpstreamPool()
        self.url = ""

    async def call(self, path: str, body: Any) -> tuple[int, Any] | None:
        headers = [
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {SECRET}".encode()),
        ]
        try:
            response = await self._pool.send(
                Target.parse(self.url + path), headers=headers, body=json.dumps(body).encode()
            )
            async with response:
                return response.status, json.loads(await response.read(1_000_000))
        except UpstreamError:
            return None

    async def close(self) -> None:
        await self._pool.aclose()


def start(data: Path) -> RunningServer:
    quiet = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json", "AUTH_SECRET": SECRET}
    return RunningServer.start(data, quiet)


def states(data: Path) -> dict[str, int]:
    """How many jobs are in which state, wherever they are kept."""
    kept = "SELECT state FROM jobs UNION ALL SELECT state FROM job_summary WHERE month IS NOT NULL"
    return dict(rows(data / "app.db", f"SELECT state, count(*) FROM ({kept}) GROUP BY state"))


async def put_all(client: Client, total: int, put: set[int]) -> None:
    """Queues them under refIds of their own; one whose answer was lost is put again."""
    for number in range(total):
        body = {
            "refId": f"job-{number}",
            "request": {
                "model": "fake-model",
                "messages": [{"role": "user", "content": f"job-{number}"}],
            },
        }
        while True:
            came = await client.call("/api/QueueOpenAiChatCompletion", body)
            # 409: the answer was lost, the job was not.
            if came is not None and came[0] in (200, 409):
                put.add(number)
                break
            await passed(0.02)


async def survive(folder: Path, *, total: int, kills: int, every: float) -> Survived:
    chance, data = random.Random(11), folder / "data"
    loop = asyncio.get_running_loop()
    resumed: list[float] = []
    async with PacedUpstream(0.004) as first, PacedUpstream(0.004) as second:
        async with running(data) as gateway:
            await gateway.provider("first", first.base_url, concurrency=4)
            await gateway.provider("second", second.base_url, concurrency=4)
        client, put = Client(), set[int]()
        server = start(data)
        client.url = server.base_url
        producing = asyncio.create_task(put_all(client, total, put))
        try:
            for _ in range(kills):
                await passed(every * chance.uniform(0.5, 1.5))
                server.process.kill()
                server.stop()
                began, served = loop.time(), first.served + second.served
                server = await asyncio.to_thread(start, data)
                client.url = server.base_url
                async with asyncio.timeout(10):
                    while len(put) > served and first.served + second.served == served:
                        await passed(0.01)
                resumed.append(loop.time() - began)
            await producing
            async with asyncio.timeout(60 + total / 100):
                while states(data).get("Completed", 0) < total:
                    await passed(0.05)
        finally:
            producing.cancel()
            await client.close()
            server.stop()
        asked = first.asked + second.asked
    assert states(data) == {"Completed": total}
    assert all(asked[f"job-{number}"] >= 1 for number in range(total))
    settled = rows(data / "app.db", "SELECT count(*), count(DISTINCT id) FROM ledger")
    assert settled[0][0] == settled[0][1] >= total
    lost = rows(data / "app.db", "SELECT count(*) FROM jobs WHERE attempt > 1")[0][0]
    return Survived(len(put), sum(asked.values()), lost, resumed)


async def test_killed_server_loses_no_job_and_ends_each_once(tmp_path: Path) -> None:
    survived = await survive(tmp_path, total=300, kills=2, every=0.6)
    assert survived.accepted == 300
    assert max(survived.resumed) < 10


@pytest.mark.long
async def test_10000_jobs_outlive_kills_for_a_minute(tmp_path: Path) -> None:
    survived = await survive(tmp_path, total=10_000, kills=12, every=5.0)
    print(  # noqa: T201
        f"\n{survived.accepted} jobs, {survived.executions} executions, "
        f"{survived.twice} with a lost lease, resumed after "
        f"{', '.join(f'{seconds:.1f}' for seconds in survived.resumed)} s"
    )
    assert survived.accepted == 10_000
    assert max(survived.resumed) < 10
