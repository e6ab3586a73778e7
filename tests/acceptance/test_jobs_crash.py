"""A server killed again and again with jobs queued and running: none is lost or settled twice."""

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from acceptance.running import RunningServer
from aiserver.kit.upstream import Target, UpstreamError, UpstreamPool
from fakes.load import PacedUpstream, passed, rows
from gateway import SECRET, running
from postgres import PostgresServer


class Survived(NamedTuple):
    """`again` are jobs with more than one attempt, `fenced` results that came too late to count.

    `resumed` are the seconds from each kill to the first job that ended after it.
    """

    accepted: int
    executions: int
    again: int
    fenced: int
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


class OnSqlite:
    """One process on a file; killed, it is started again."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.settings: dict[str, str] = {}

    def start(self) -> RunningServer:
        quiet = {"LOCAL_MODELS": "false", "LOG_FORMAT": "json", "AUTH_SECRET": SECRET}
        return RunningServer.start(self.data, quiet | self.settings)

    def kill_one(self, server: RunningServer, chance: random.Random) -> bool:
        """Whether that was the whole server."""
        server.process.kill()
        return True

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return rows(self.data / "app.db", sql)

    def close(self) -> None:
        """Nothing is left to be stopped."""


class OnPostgres(OnSqlite):
    """Three processes and their parent; now and then the database itself falls."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self._postgres = PostgresServer()
        self._url = self._postgres.fresh_database()
        self.settings = {"DATABASE_URL": self._url, "ENCRYPTION_KEY": "0" * 64}

    def start(self) -> RunningServer:
        self.settings["WORKERS"] = "3"
        return super().start()

    def kill_one(self, server: RunningServer, chance: random.Random) -> bool:
        workers = _children(server.process.pid)
        found = chance.choice([*workers, server.process.pid, None])
        if found is None:
            self._postgres.restart()
        else:
            os.kill(found, signal.SIGKILL)
        return found == server.process.pid

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        said = self._postgres.execute(sql, name=self._url.rpartition("/")[2])
        cells = [line.split("|") for line in said.splitlines()]
        return [tuple(int(c) if c.isdigit() else c for c in row) for row in cells]

    def close(self) -> None:
        self._postgres.close()


ENGINES = {"sqlite": OnSqlite, "postgres": OnPostgres}


def _children(pid: int) -> list[int]:
    """Only the workers: there is a process too that cleans up after them."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in found
        if b"--multiprocessing-fork" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def states(installation: OnSqlite) -> dict[str, int]:
    """How many jobs are in which state, wherever they are kept."""
    kept = "SELECT state FROM jobs UNION ALL SELECT state FROM job_summary"
    sql = f"SELECT state, count(*) FROM ({kept}) AS kept GROUP BY state"
    return dict(installation.rows(sql))


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


async def survive(folder: Path, engine: str, *, total: int, kills: int, every: float) -> Survived:
    chance, installation = random.Random(11), ENGINES[engine](folder / "data")
    try:
        return await _survive(installation, chance, total=total, kills=kills, every=every)
    finally:
        installation.close()


async def _survive(
    installation: OnSqlite, chance: random.Random, *, total: int, kills: int, every: float
) -> Survived:
    loop = asyncio.get_running_loop()
    resumed: list[float] = []
    fenced = 0
    async with PacedUpstream(0.004) as first, PacedUpstream(0.004) as second:
        async with running(installation.data, None, **installation.settings) as gateway:
            await gateway.provider("first", first.base_url, concurrency=4)
            await gateway.provider("second", second.base_url, concurrency=4)
        client, put = Client(), set[int]()
        server = installation.start()
        client.url = server.base_url
        producing = asyncio.create_task(put_all(client, total, put))
        try:
            for _ in range(kills):
                await passed(every * chance.uniform(0.5, 1.5))
                whole = await asyncio.to_thread(installation.kill_one, server, chance)
                began, served = loop.time(), first.served + second.served
                if whole:
                    server.stop()
                    fenced += server.printed().count("job_lease_lost")
                    server = await asyncio.to_thread(installation.start)
                    client.url = server.base_url
                async with asyncio.timeout(10):
                    while len(put) > served and first.served + second.served == served:
                        await passed(0.01)
                resumed.append(loop.time() - began)
            await producing
            async with asyncio.timeout(60 + total / 50):
                while states(installation).get("Completed", 0) < total:
                    await passed(0.05)
        finally:
            producing.cancel()
            await client.close()
            server.stop()
        fenced += server.printed().count("job_lease_lost")
        asked = first.asked + second.asked
    assert states(installation) == {"Completed": total}
    assert all(asked[f"job-{number}"] >= 1 for number in range(total))
    settled = installation.rows("SELECT count(*), count(DISTINCT id) FROM ledger")
    assert settled[0][0] == settled[0][1] >= total
    kept = "SELECT attempt FROM jobs UNION ALL SELECT attempt FROM job_summary"
    again = f"SELECT count(*) FROM ({kept}) AS kept WHERE attempt > 1"
    lost = installation.rows(again)[0][0]
    return Survived(len(put), sum(asked.values()), lost, fenced, resumed)


@pytest.mark.parametrize("engine", ENGINES)
async def test_killed_server_loses_no_job_and_ends_each_once(tmp_path: Path, engine: str) -> None:
    survived = await survive(tmp_path, engine, total=300, kills=2, every=0.6)
    assert survived.accepted == 300
    assert max(survived.resumed) < 10


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
async def test_10000_jobs_outlive_kills_for_a_minute(tmp_path: Path, engine: str) -> None:
    survived = await survive(tmp_path, engine, total=10_000, kills=12, every=5.0)
    print(  # noqa: T201
        f"\n{engine}: {survived.accepted} jobs, {survived.executions} executions, "
        f"{survived.again} with a lost lease, {survived.fenced} fenced writes, resumed after "
        f"{', '.join(f'{seconds:.1f}' for seconds in survived.resumed)} s"
    )
    assert survived.accepted == 10_000
    assert max(survived.resumed) < 10
