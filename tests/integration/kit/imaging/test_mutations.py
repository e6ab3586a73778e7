"""Pictures with bytes changed at random: a result or the caller's error, never more."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Convert, Crop, Format, Inspect, Job, Scale, Variant, Watermark
from aiserver.kit.imaging.pool import ImagingPool
from pictures import quarters

KINDS = ("jpeg", "png", "gif", "bmp", "tiff", "webp", "avif")
GROWTH = 160 * 2**20


def seeds() -> list[bytes]:
    """One of each format, and what moves of those that can."""
    made: list[bytes] = []
    for kind in KINDS:
        file = io.BytesIO()
        quarters().save(file, kind)
        made.append(file.getvalue())
    for kind in ("gif", "webp", "tiff"):
        file = io.BytesIO()
        rest = [quarters().rotate(90 * at) for at in (1, 2)]
        quarters().save(file, kind, save_all=True, append_images=rest)
        made.append(file.getvalue())
    return made


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, most of them near the start, and now and then a piece lost or twice."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        reach = len(changed) if chance.random() < 0.4 else min(len(changed), 128)
        if reach:
            changed[chance.randrange(reach)] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
    if chance.random() < 0.2:
        at, length = chance.randrange(len(changed)), chance.randint(1, 200)
        piece = changed[at : at + length]
        changed[at : at + length] = piece * chance.choice((0, 2))
    return bytes(changed)


def jobs(source: str, sound: str, out: str, chance: random.Random) -> Job:
    format: Format = chance.choice(("jpg", "png", "gif", "bmp", "tiff", "webp"))
    made: list[Job] = [
        Inspect(source=source),
        Convert(source=source, result=out, format=format),
        Crop(source=source, result=out, x=1, y=1, width=20, height=20, format=format),
        Scale(source=source, result=out, width=33, format=format),
        Variant(source=source, result=out, width=30, height=30, fit="cover", gravity="attention"),
        Watermark(source=sound, mark=source, result=out, format=format),
        Watermark(source=source, mark=sound, result=out, tiled=True, format=format),
    ]
    return chance.choice(made)


async def survives(pool: ImagingPool, folder: Path, *, count: int, seed: int) -> dict[str, int]:
    """Runs `count` mutations; what became of them. Anything but a result or refusal is raised."""
    chance = random.Random(seed)
    sources = seeds()
    upload, sound, out = folder / "upload", folder / "sound.png", folder / "out"
    quarters().save(sound)
    seen: dict[str, int] = {}
    for at in range(count):
        data = mutated(chance.choice(sources), chance)
        upload.write_bytes(data)
        job = jobs(str(upload), str(sound), str(out), chance)
        try:
            await pool.run(job, timeout=30)
            outcome = "done"
        except ImageRefused as refused:
            outcome = refused.code
        except Exception as error:
            (folder / "culprit").write_bytes(data)
            raise AssertionError(f"mutation {at} of seed {seed}: {job} in {folder}") from error
        out.unlink(missing_ok=True)
        seen[outcome] = seen.get(outcome, 0) + 1
    return seen


@pytest.mark.asyncio(loop_scope="module")
async def test_changed_bytes_never_end_a_child(pool: ImagingPool, tmp_path: Path) -> None:
    with_child = await survives(pool, tmp_path, count=1, seed=0)
    before = pool.pids
    seen = await survives(pool, tmp_path, count=200, seed=1)
    assert pool.pids == before
    assert sum(with_child.values()) == 1
    assert min(seen["done"], seen["DamagedImage"]) > 20


@pytest.mark.long
async def test_thousands_of_changes_never_end_a_child(tmp_path: Path) -> None:
    pool = ImagingPool(children=1, recycle_after=100_000, recycle_bytes=2**40)
    await pool.start()
    await survives(pool, tmp_path, count=50, seed=2)
    before = pool.pids
    resident = memory(before[0])
    seen = await survives(pool, tmp_path, count=5000, seed=3)
    assert pool.pids == before
    assert memory(before[0]) - resident < GROWTH
    assert min(seen["done"], seen["DamagedImage"]) > 500
    await pool.stop()


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_mutations_change_pictures() -> None:
    chance = random.Random(4)
    assert sum(mutated(data, chance) != data for data in seeds()) >= 9
    assert all(Image.open(io.BytesIO(data)).size == (80, 60) for data in seeds())
