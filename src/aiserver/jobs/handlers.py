"""Answers the operations about callbacks."""

import asyncio
from collections.abc import Mapping

import msgspec

from aiserver.contract.errors import NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.jobs.operations import DummyReplyTo, DummyReplyToResponse, HasDummyReplyTo
from aiserver.kit.db import StorageError
from aiserver.kit.tables import Statement, Tables

# Anyone may call the sink, so it remembers no more than the newest of these.
MOST_REMEMBERED = 100

_KEEP = """
INSERT INTO sunk_callbacks (ref_id, place)
VALUES (?, (SELECT COALESCE(MAX(place), 0) + 1 FROM sunk_callbacks))
ON CONFLICT (ref_id) DO UPDATE SET place = excluded.place
"""
_TRIM = """
DELETE FROM sunk_callbacks
WHERE place <= (SELECT place FROM sunk_callbacks ORDER BY place DESC LIMIT 1 OFFSET ?)
"""
_TAKE = "DELETE FROM sunk_callbacks WHERE ref_id = ? RETURNING ref_id"


class _Callback(msgspec.Struct, rename="camel"):
    ref_id: str | None = None


class _Batch:
    """Newest last; `error` until it was written."""

    def __init__(self) -> None:
        self.ref_ids: dict[str, None] = {}
        self.error: StorageError | None = StorageError("The callback was not kept; send it again.")

    def put(self, ref_id: str) -> None:
        self.ref_ids.pop(ref_id, None)
        self.ref_ids[ref_id] = None
        if len(self.ref_ids) > MOST_REMEMBERED:
            del self.ref_ids[next(iter(self.ref_ids))]


class CallbackSink:
    """Remembers the refIds of callbacks for every process of the installation."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._gathering = _Batch()
        self._writing = asyncio.Lock()

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {DummyReplyTo: self.take, HasDummyReplyTo: self.has}

    async def take(self, request: DummyReplyTo, call: Call) -> DummyReplyToResponse:
        await self._remember(request.ref_id)
        return DummyReplyToResponse(ref_id=request.ref_id)

    async def deliver(self, headers: Mapping[str, str], body: bytes) -> int:
        """A callback to this server's own address, without a way through its own door.

        Raises StorageError.
        """
        try:
            ref_id = msgspec.json.decode(body, type=_Callback).ref_id
        except msgspec.MsgspecError:
            return 400
        await self._remember(ref_id)
        return 200

    async def has(self, request: HasDummyReplyTo, call: Call) -> None:
        [taken] = await self._tables.write(Statement(_TAKE, (request.ref_id or "",)))
        if not taken:
            raise NotFound("RefId not found.")

    async def _remember(self, ref_id: str | None) -> None:
        if not ref_id:
            return
        batch = self._gathering
        batch.put(ref_id)
        # One write at a time, of all that came meanwhile: strangers cannot keep the disk busy.
        async with self._writing:
            if batch is self._gathering:
                self._gathering = _Batch()
                await self._write(batch)
        if batch.error is not None:
            raise batch.error

    async def _write(self, batch: _Batch) -> None:
        keep = [Statement(_KEEP, (ref_id,)) for ref_id in batch.ref_ids]
        try:
            await self._tables.write(*keep, Statement(_TRIM, (MOST_REMEMBERED,)))
            batch.error = None
        except StorageError as error:
            batch.error = error
