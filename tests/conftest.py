"""What every test may use."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from aiserver.kit.migrations import upgrade
from aiserver.kit.postgres import Postgres
from aiserver.kit.postgres_tables import PostgresTables
from aiserver.kit.tables import SqliteTables, Tables
from fakes.upstream import FakeUpstream
from gateway import TestGateway, running
from postgres import server

# The same examples in every run, however busy the machine.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the server runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty database at the newest schema, as bytes: migrating for every test is slow."""
    path = tmp_path_factory.mktemp("migrated") / "app.db"
    database = Database.open(path)
    upgrade(database)
    database.close()
    return path.read_bytes()


@pytest.fixture
def database(tmp_path: Path, migrated: bytes) -> Generator[Database]:
    path = tmp_path / "app.db"
    path.write_bytes(migrated)
    opened = Database.open(path, busy_seconds=0.05)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgres"])
async def tables(request: pytest.FixtureRequest) -> AsyncGenerator[Tables]:
    """Empty ones of each engine."""
    if request.param == "sqlite":
        yield SqliteTables(request.getfixturevalue("database"))
        return
    url = server().fresh_database()
    opened = await Postgres.open(url, connections=3)
    yield PostgresTables(opened, SystemClock())
    await opened.close()
    server().give_back(url)


@pytest.fixture
async def gateway(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated) as opened:
        yield opened


@pytest.fixture
async def upstream() -> AsyncGenerator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def serving(gateway: TestGateway, upstream: FakeUpstream) -> TestGateway:
    """A gateway with one provider `fake` that serves `fake-model`."""
    await gateway.provider("fake", upstream.base_url)
    return gateway
