"""Gateways on one PostgreSQL: they act as one, and outlive the database's absence."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from fakes.load import PacedUpstream
from fakes.upstream import FakeUpstream, stall
from gateway import TestGateway, running
from postgres import PostgresServer, server

KEY = "0" * 64


@pytest.fixture
async def pair(
    tmp_path: Path, upstream: FakeUpstream
) -> AsyncGenerator[tuple[TestGateway, TestGateway]]:
    """Two processes of a server, as far as the database can tell; `fake` serves both."""
    settings = {"DATABASE_URL": server().fresh_database(), "ENCRYPTION_KEY": KEY}
    async with (
        running(tmp_path / "one", None, **settings) as one,
        running(tmp_path / "other", None, **settings) as other,
    ):
        await one.provider("fake", upstream.base_url, apiKey="sk-0123456789")
        await until_answered(other)
        yield one, other


async def until_answered(gateway: TestGateway, status: int = 200, **more: Any) -> None:
    """A second is what a change may take."""
    async with asyncio.timeout(1):
        while (await gateway.chat(**more)).status != status:
            await asyncio.sleep(0.005)


async def queued(gateway: TestGateway, ref_id: str) -> Any:
    body = {"request": {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}}
    reply = await gateway.call("POST", "/api/QueueOpenAiChatCompletion", {"refId": ref_id, **body})
    assert reply.status == 200, reply.body
    return reply.json()


async def ended(gateway: TestGateway, ref_id: str) -> str:
    """The job's last state, by its event stream, which ends with the job."""
    async with asyncio.timeout(30):
        path = f"/api/GetOpenAiChatStatus?refId={ref_id}"
        job = (await gateway.call("GET", path)).json()
        await gateway.call("GET", f"/api/jobs/{job['jobId']}/events")
        return (await gateway.call("GET", path)).json()["jobState"]


async def test_key_and_provider_of_one_count_in_the_other(
    pair: tuple[TestGateway, TestGateway], upstream: FakeUpstream
) -> None:
    one, other = pair
    assert upstream.requests[-1].header("authorization") == "Bearer sk-0123456789"
    key = await one.key()
    await until_answered(other, key=key)
    await one.call("PATCH", "/api/AdminUpdateApiKey", {"id": 1, "cancelledDate": "2026-01-01"})
    await until_answered(other, 401, key=key)


async def test_job_of_one_is_asked_after_at_the_other(
    pair: tuple[TestGateway, TestGateway],
) -> None:
    one, other = pair
    jobs = [await queued(one, f"n{number}") for number in range(5)]
    assert [job["id"] for job in jobs] == [1, 2, 3, 4, 5]
    assert [await ended(other, f"n{number}") for number in range(5)] == ["Completed"] * 5


async def test_running_job_is_cancelled_from_the_other(
    pair: tuple[TestGateway, TestGateway], upstream: FakeUpstream
) -> None:
    one, other = pair
    upstream.next(stall)
    before = upstream.started.count
    job = await queued(one, "c")
    await upstream.started.reach(before + 1)
    reply = await other.call("DELETE", f"/api/jobs/{job['id']}")
    assert reply.status == 200, reply.body
    await upstream.cancelled.reach(1)
    assert [await ended(gateway, "c") for gateway in pair] == ["Cancelled"] * 2


async def test_history_of_both_is_read_at_either(pair: tuple[TestGateway, TestGateway]) -> None:
    one, other = pair
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}
    for name, gateway in zip(("of-one", "of-other"), pair, strict=True):
        await gateway.call("POST", "/v1/chat/completions", body, headers={"x-request-id": name})
    for gateway in (one, other):
        one.app.history.wake()
        other.app.history.wake()
        assert (await gateway.recorded("of-one"))["statusCode"] == 200
        assert (await gateway.recorded("of-other"))["statusCode"] == 200


async def test_restart_of_the_database_under_load_loses_nothing(tmp_path: Path) -> None:
    postgres = PostgresServer()
    settings = {"DATABASE_URL": postgres.fresh_database(), "ENCRYPTION_KEY": KEY}
    try:
        async with (
            PacedUpstream(0.02) as upstream,
            running(tmp_path / "data", None, **settings) as gateway,
        ):
            await gateway.provider("fake", upstream.base_url, concurrency=4)
            for number in range(40):
                await queued(gateway, f"n{number}")
            await upstream.started.reach(4)
            restarting = asyncio.create_task(asyncio.to_thread(postgres.restart))
            chats = [await gateway.chat() for _ in range(10)]
            await restarting
            assert [chat.status for chat in chats] == [200] * 10
            states = [await ended(gateway, f"n{number}") for number in range(40)]
            assert states == ["Completed"] * 40
            await gateway.app._ledger.flush()
            [(settled,)] = await gateway.rows("SELECT count(*) FROM ledger")
            assert settled >= 50
    finally:
        postgres.close()


async def test_calls_go_on_while_the_database_is_away(tmp_path: Path) -> None:
    postgres = PostgresServer()
    settings = {"DATABASE_URL": postgres.fresh_database(), "ENCRYPTION_KEY": KEY}
    try:
        async with (
            FakeUpstream() as upstream,
            running(tmp_path / "data", None, **settings) as gateway,
        ):
            await gateway.provider("fake", upstream.base_url)
            key = await gateway.key()
            postgres.stop()
            assert [(await gateway.chat(key=key)).status for _ in range(3)] == [200] * 3
            refused = await gateway.call("POST", "/api/AdminCreateApiKey", {"name": "x"})
            assert refused.status == 503, refused.body
            await asyncio.to_thread(postgres.start)
            made = await gateway.call("POST", "/api/AdminCreateApiKey", {"name": "x"})
            assert made.status == 200, made.body
            await gateway.app._ledger.flush()
            assert await gateway.rows("SELECT count(*) FROM ledger") == [(3,)]
    finally:
        postgres.close()
