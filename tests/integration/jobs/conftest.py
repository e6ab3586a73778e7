"""A store of jobs on each engine."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from job_stores import ENGINES, OpenStores, Stores, opener


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def open_stores(engine: str, tmp_path: Path, migrated: bytes) -> AsyncGenerator[OpenStores]:
    async with AsyncExitStack() as stack:
        yield opener(engine, stack, tmp_path, migrated)


@pytest.fixture
async def store(open_stores: OpenStores) -> Stores:
    return await open_stores()
