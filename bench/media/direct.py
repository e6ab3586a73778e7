"""Makes the same variant over and over without a server: libvips, Pillow, or the pool of ours."""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pyvips
from PIL import Image

from aiserver.kit.imaging.jobs import Variant
from aiserver.kit.imaging.pool import ImagingPool
from bench.machines import family, spent

WIDTH, QUALITY = 500, 85
# The other side of the box that the picture is fitted into, which it does not fill.
BOX = 1000
_WARM_UP = 0.2

Make = Callable[[], Awaitable[object]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--how", choices=HOW, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    target = given.source.with_name(f"direct-{os.getpid()}.jpg")
    pyvips.cache_set_max(0)
    asyncio.run(HOW[given.how](given.source, target, given.seconds))


async def libvips(source: Path, target: Path, seconds: float) -> None:
    async def make() -> None:
        image = pyvips.Image.thumbnail(str(source), WIDTH, height=BOX, size="down")
        image.write_to_file(str(target), Q=QUALITY, keep=0)

    await _over_and_over(make, target, seconds)


async def thumbnail(source: Path, target: Path, seconds: float) -> None:
    async def make() -> None:
        with Image.open(source) as image:
            image.thumbnail((WIDTH, BOX))
            image.save(target, quality=QUALITY)

    await _over_and_over(make, target, seconds)


async def resize(source: Path, target: Path, seconds: float) -> None:
    async def make() -> None:
        with Image.open(source) as image:
            size = (WIDTH, round(image.height * WIDTH / image.width))
            image.resize(size, Image.Resampling.LANCZOS).save(target, quality=QUALITY)

    await _over_and_over(make, target, seconds)


async def engine(source: Path, target: Path, seconds: float) -> None:
    """The pool with one child, without the server around it."""
    pool = ImagingPool(children=1)
    job = Variant(
        source=str(source),
        result=str(target),
        width=WIDTH,
        height=BOX,
        format="jpg",
        quality=QUALITY,
    )

    async def make() -> None:
        await pool.run(job, timeout=30.0)
        # It never writes over a file that is there.
        os.unlink(target)

    await pool.start()
    try:
        await make()
        await _over_and_over(make, target, seconds)
    finally:
        await pool.stop()


HOW = {"libvips": libvips, "thumbnail": thumbnail, "resize": resize, "engine": engine}


async def _over_and_over(make: Make, target: Path, seconds: float) -> None:
    """Prints microseconds of CPU a picture, and pictures a second."""
    await _made(make, _WARM_UP)
    before, began = _total(), time.perf_counter()
    count = await _made(make, seconds)
    took = time.perf_counter() - began
    print(json.dumps({"cpu": (_total() - before) / count, "rate": count / took}), flush=True)
    with suppress(FileNotFoundError):
        os.unlink(target)


async def _made(make: Make, seconds: float) -> int:
    until, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        await make()
        count += 1
    return count


def _total() -> float:
    return sum(spent(pid) for pid in family(os.getpid()))


if __name__ == "__main__":
    main()
