"""The callback sink: what one process takes is known to all of them, and bounded."""

import asyncio
from typing import Any

import pytest

from aiserver.contract.errors import NotFound
from aiserver.jobs.handlers import MOST_REMEMBERED, CallbackSink
from aiserver.jobs.operations import DummyReplyTo, HasDummyReplyTo
from aiserver.kit.db import StorageError
from aiserver.kit.tables import Rows, Tables
from job_calls import OWNER, ask


async def put(sink: CallbackSink, ref_id: str) -> None:
    await ask(sink, DummyReplyTo(ref_id=ref_id))


async def has(sink: CallbackSink, ref_id: str | None) -> bool:
    try:
        await ask(sink, HasDummyReplyTo(ref_id=ref_id), caller=OWNER)
    except NotFound:
        return False
    return True


async def test_another_process_knows_what_one_took(tables: Tables) -> None:
    one, other = CallbackSink(tables), CallbackSink(tables)
    await put(one, "posted")
    assert await one.deliver({}, b'{"refId":"delivered","jobState":"Completed"}') == 200
    assert await has(other, "posted")
    assert await has(other, "delivered")
    assert not await has(one, "posted")
    assert not await has(other, "never")
    assert not await has(other, None)


async def test_only_the_newest_are_remembered(tables: Tables) -> None:
    one, other = CallbackSink(tables), CallbackSink(tables)
    for number in range(MOST_REMEMBERED):
        await put(one, str(number))
    await put(other, "0")
    await put(other, "one more")
    assert not await has(one, "1")
    assert await has(one, "0")
    assert await has(one, "2")
    assert await has(one, "one more")


class Counted:
    """Tables that count their writes, and fail the next of them on demand."""

    def __init__(self, tables: Tables) -> None:
        self._write = tables.write
        self.read, self.read_long = tables.read, tables.read_long
        self.revision, self.changed = tables.revision, tables.changed
        self.version = tables.version
        self.writes = 0
        self.fails = False

    async def write(self, *statements: Any, **more: Any) -> list[Rows]:
        self.writes += 1
        if self.fails:
            raise StorageError("The disk is full.")
        return await self._write(*statements, **more)


async def test_many_at_once_are_written_together(tables: Tables) -> None:
    counted = Counted(tables)
    sink = CallbackSink(counted)
    await asyncio.gather(*(put(sink, str(number)) for number in range(300)))
    assert counted.writes <= 3
    [(kept,)] = await tables.read("SELECT count(*) FROM sunk_callbacks")
    assert kept == MOST_REMEMBERED
    assert await has(sink, "299")


async def test_what_was_not_kept_is_not_acknowledged(tables: Tables) -> None:
    counted = Counted(tables)
    sink = CallbackSink(counted)
    counted.fails = True
    refused = await asyncio.gather(
        *(put(sink, str(number)) for number in range(10)), return_exceptions=True
    )
    assert all(isinstance(each, StorageError) for each in refused)
    with pytest.raises(StorageError):
        await sink.deliver({}, b'{"refId":"r"}')
    counted.fails = False
    await put(sink, "again")
    assert await has(sink, "again")
