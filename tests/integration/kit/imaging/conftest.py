"""A pool with one child for the tests of a module, and a scratch folder for each test."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from aiserver.kit.imaging.jobs import Limits
from aiserver.kit.imaging.pool import ImagingPool
from pictures import Save


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncGenerator[ImagingPool]:
    opened = ImagingPool(children=1)
    await opened.start()
    yield opened
    await opened.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tight() -> AsyncGenerator[ImagingPool]:
    """One whose limits are small: 10,000 pixels, 5 frames, 20 kB."""
    limits = Limits(max_pixels=10_000, max_frames=5, source_bytes=20_000)
    opened = ImagingPool(children=1, limits=limits)
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def written(name: str, picture: Image.Image | bytes, **options: Any) -> str:
        path = tmp_path / name
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path, **options)
        return str(path)

    return written


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "result")
