"""Clips and a short way to transform them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.programs import Programs
from aiserver.transforms.av.requests import Request
from aiserver.transforms.av.run import Produced, Sources, transform
from clips import Clips, Transforming


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


@pytest.fixture
def transformed(target: Path) -> Transforming:
    async def run(
        request: Request,
        media: Path,
        watermark: Path | None = None,
        *,
        report: Callable[[int], None] = lambda _: None,
        limits: Limits | None = None,
        programs: Programs | None = None,
    ) -> Produced:
        return await transform(
            request,
            Sources(media=media, watermark=watermark),
            target,
            report=report,
            limits=limits or Limits(),
            programs=programs,
        )

    return run
