"""A place for histories on each engine."""

from collections.abc import Generator
from pathlib import Path

import pytest

from histories import ENGINES, Histories, histories_on


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def histories(engine: str, tmp_path: Path) -> Generator[Histories]:
    with histories_on(engine, tmp_path) as opened:
        yield opened
