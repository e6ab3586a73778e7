"""Made variants on disk: found again, bounded, and gone with their source."""

import os
from pathlib import Path

import pytest

from aiserver.contract.errors import StorageUnavailable
from aiserver.files.variant_cache import SMALL, Kept, Key, VariantCache

SOURCE, OTHER = "aa" * 32, "aabb" * 16


class Cache:
    """One whose variants are told apart by number, and were used in that order."""

    def __init__(self, folder: Path, *, most_bytes: int = 10_000, most_files: int = 100) -> None:
        self.folder = folder
        self.cache = VariantCache(folder / "variants", most_bytes=most_bytes, most_files=most_files)
        self._used = 0

    async def keep(self, number: int, size: int = 1000, source: str = SOURCE) -> Kept:
        made = self.folder / f"made-{number}"
        made.write_bytes(bytes([number]) * size)
        kept = await self.cache.keep(key(number, source), made)
        self.age(number, source)
        return kept

    def age(self, number: int, source: str = SOURCE) -> None:
        """What was used later gets a later time, however coarse the disk's clock is."""
        self._used += 1
        for path in self.files():
            if path.name == f"{source}-{number}.webp":
                os.utime(path, ns=(self._used, self._used))

    def files(self) -> list[Path]:
        return sorted(each for each in (self.folder / "variants").rglob("*") if each.is_file())

    async def there(self) -> list[int]:
        """By the names of files: to ask the cache would be a use."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.files())


def key(number: int, source: str = SOURCE) -> Key:
    return Key(source, str(number), "webp")


async def content(kept: Kept | None, start: int = 0, end: int | None = None) -> bytes:
    assert kept is not None
    last = kept.size if end is None else end
    return b"".join([piece async for piece in kept.read(start, last)])


async def test_kept_variant_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert await cache.cache.get(key(1)) is None
    assert await content(await cache.keep(1)) == b"\1" * 1000
    assert await content(await cache.cache.get(key(1)), 10, 12) == b"\1\1"
    another = VariantCache(tmp_path / "variants", most_bytes=10_000)
    assert await content(await another.get(key(1))) == b"\1" * 1000


@pytest.mark.parametrize("size", [SMALL, SMALL + 1, 3 * 2**20])
async def test_variant_of_any_size_is_read_whole_and_in_part(tmp_path: Path, size: int) -> None:
    cache = Cache(tmp_path, most_bytes=2**30)
    kept = await cache.keep(1, size)
    assert await content(kept) == b"\1" * size
    assert len(await content(kept, size - 7, size)) == 7


async def test_longest_unused_go_at_the_cap(tmp_path: Path) -> None:
    cache = Cache(tmp_path, most_bytes=10_000)
    for number in range(10):
        await cache.keep(number)
    assert await cache.there() == list(range(10))
    await cache.keep(10)
    assert await cache.there() == list(range(2, 11))


async def test_use_keeps_a_variant(tmp_path: Path) -> None:
    cache = Cache(tmp_path, most_bytes=10_000)
    for number in range(10):
        await cache.keep(number)
    assert await cache.cache.get(key(0)) is not None
    await cache.keep(10)
    assert await cache.there() == [0, 3, 4, 5, 6, 7, 8, 9, 10]


async def test_use_is_known_after_a_restart(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    for number in range(10):
        await first.keep(number)
    assert await first.cache.get(key(0)) is not None
    await first.cache.close()
    second = Cache(tmp_path)
    await second.keep(10)
    assert 0 in await second.there()


async def test_number_of_files_is_bounded(tmp_path: Path) -> None:
    cache = Cache(tmp_path, most_bytes=10_000, most_files=10)
    for number in range(11):
        await cache.keep(number, size=1)
    assert len(await cache.there()) == 9


async def test_what_was_there_before_a_start_counts(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    for number in range(10):
        await first.keep(number)
    second = Cache(tmp_path)
    await second.keep(10)
    assert len(await second.there()) == 9


async def test_what_another_process_writes_is_bounded_too(tmp_path: Path) -> None:
    one, other = Cache(tmp_path), Cache(tmp_path)
    for number in range(20):
        await (one if number % 2 else other).keep(number)
        # An eighth of the cap goes unseen by each.
        assert len(one.files()) <= 12


@pytest.mark.parametrize("size", [5000, SMALL + 1])
async def test_evicted_variant_is_still_read_to_its_end(tmp_path: Path, size: int) -> None:
    cache = Cache(tmp_path, most_bytes=0)
    kept = await cache.keep(1, size)
    assert cache.files() == []
    assert await content(kept) == b"\1" * size


async def test_variants_go_with_their_source_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    await cache.keep(1)
    await cache.keep(2)
    await cache.keep(3, source=OTHER)
    await cache.cache.forget(SOURCE)
    assert await cache.there() == [3]
    assert await cache.cache.get(key(1)) is None
    assert await cache.cache.get(key(3, OTHER)) is not None
    await cache.cache.forget("ff" * 32)


async def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "variants").write_text("in the way")
    cache = Cache(tmp_path)
    assert await cache.cache.get(key(1)) is None
    with pytest.raises(StorageUnavailable):
        await cache.keep(1)
