"""Writes that meet go together, in bounded numbers, and fail alone."""

import asyncio
from collections.abc import Sequence

import pytest

from aiserver.jobs.store.batches import Batches
from aiserver.kit.db import StorageError


class Disk:
    """Writes when told to; keeps the sizes of its writes."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.sizes: list[int] = []

    async def write(self, items: Sequence[int]) -> Sequence[int | Exception]:
        await self.free.wait()
        self.sizes.append(len(items))
        if 13 in items:
            raise ValueError("no 13")
        if 99 in items:
            raise StorageError("The disk is full.")
        return [KeyError("no 7") if item == 7 else item * 2 for item in items]


async def test_items_that_meet_share_a_write() -> None:
    disk = Disk()
    batches = Batches(disk.write)
    assert await asyncio.gather(*map(batches.add, (1, 2, 3))) == [2, 4, 6]
    assert disk.sizes == [3]


async def test_item_that_comes_meanwhile_goes_with_the_next() -> None:
    disk = Disk()
    disk.free.clear()
    batches = Batches(disk.write, most=2)
    first = batches.submit(1)
    await asyncio.sleep(0)
    later = [batches.submit(item) for item in (2, 3, 4)]
    disk.free.set()
    assert await asyncio.gather(first, *later) == [2, 4, 6, 8]
    assert disk.sizes == [1, 2, 1]


async def test_item_that_breaks_a_write_fails_alone() -> None:
    batches = Batches(Disk().write)
    answers = await asyncio.gather(*map(batches.add, (1, 13, 7, 2)), return_exceptions=True)
    assert (answers[0], answers[3]) == (2, 4)
    assert [type(answer) for answer in answers[1:3]] == [ValueError, KeyError]


async def test_trouble_with_the_disk_is_everybodys() -> None:
    disk = Disk()
    batches = Batches(disk.write)
    answers = await asyncio.gather(*map(batches.add, (1, 99)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageError, StorageError]
    assert disk.sizes == [2]
    assert await batches.add(1) == 2


async def test_no_more_wait_than_the_bound() -> None:
    disk = Disk()
    disk.free.clear()
    batches = Batches(disk.write, waiting=2)
    kept = [batches.submit(item) for item in (1, 2)]
    with pytest.raises(StorageError, match="Too many"):
        await batches.add(3)
    disk.free.set()
    assert await asyncio.gather(*kept) == [2, 4]


async def test_closing_waits_for_what_was_added() -> None:
    batches = Batches(Disk().write)
    added = batches.submit(1)
    await batches.close()
    assert added.result() == 2
