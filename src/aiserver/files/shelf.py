"""Rows and bytes together: a row comes before its bytes and goes after them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from aiserver.contract.errors import Conflict, Forbidden, StorageUnavailable
from aiserver.files.names import is_ours
from aiserver.files.storage import ARTIFACT, Limits, Storage
from aiserver.files.table import AT_ONCE, SETTLED_AFTER, FileTable, StoredFile, ms
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError
from aiserver.kit.tables import Tables

# Each holds a few pieces in memory.
MOST_WRITTEN = 16
UPLOAD = "upload"
Deleted = Callable[[str], Awaitable[None]]
_KINDS = (ARTIFACT, UPLOAD)
_NEXT_LOOK = timedelta(days=1)
_log = log.get("files")


class Shelf:
    """No bytes are without a row, and no row is readable without its bytes.

    Calls raise StorageError where the table cannot be used, StorageUnavailable for the bytes.
    """

    def __init__(self, tables: Tables, storage: Storage, limits: Limits, clock: Clock) -> None:
        self.table = FileTable(tables)
        self.storage = storage
        self.limits = limits
        self._clock = clock
        self._writing = asyncio.Semaphore(MOST_WRITTEN)
        self._deleted: Deleted | None = None

    def watch(self, deleted: Deleted) -> None:
        """`deleted` is called with the sha256 of bytes whose row is gone, in this process."""
        self._deleted = deleted

    def moment(self) -> datetime:
        return self._clock.now().astimezone(UTC)

    def now(self) -> int:
        """In ms since 1970."""
        return ms(self._clock.now())

    async def put(
        self,
        file: StoredFile,
        source: Callable[[], AsyncIterator[bytes] | Path],
        *,
        elsewhere: str,
    ) -> StoredFile:
        """Keeps it; stored for good when it returns. What fails leaves nothing behind.

        Raises Forbidden where its owner has no room left, before any byte is kept.
        """
        room = self._room(file) if self.limits.per_key and file.key_id else None
        file = await self.table.add(file, elsewhere=elsewhere, room=room)
        try:
            async with self._writing:
                # The type of an input is what its sender says, and may be anything.
                kind = None if file.kind == UPLOAD else file.content_type
                blobs = self.storage.of(file.kind)
                await blobs.put(file.path, file.size, source(), content_type=kind)
            if file.kept is not None:
                return file
            kept, replaced = await self.table.keep(file, self.now())
        except BaseException:
            # On a full disk the table may fail too: then the sweep does it.
            with suppress(StorageError, StorageUnavailable):
                await asyncio.shield(self.delete([file.id]))
            raise
        with suppress(StorageError, StorageUnavailable):
            await self._bury(replaced)
        if kept is None:
            raise Conflict("This file was deleted while it was stored; send it again.")
        return kept

    async def delete(self, ids: Sequence[str], *, key_id: int | None = None) -> None:
        """Rows, and bytes that no other row shares; `key_id` limits it to that owner's."""
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            await self._bury(await self.table.mark(some, self.now(), key_id))

    async def sweep(self, wanted: Callable[[StoredFile], Awaitable[bool]]) -> None:
        """Deletes what nobody wants any more or what has expired, and ends what was begun.

        `wanted` is asked of the inputs of jobs only.
        """
        more = True
        while more:
            due = await self.table.due(self.now())
            more = len(due) == AT_ONCE
            alive = [file for file in due if file.deleted is None]
            inputs = {file.id: await wanted(file) for file in alive if file.kind == UPLOAD}
            day = self.now() + _NEXT_LOOK // timedelta(milliseconds=1)
            await self.table.look_again([id for id, is_wanted in inputs.items() if is_wanted], day)
            await self._bury([file for file in due if file.deleted is not None])
            if unwanted := [id for id, is_wanted in inputs.items() if not is_wanted]:
                _log.warning("files_without_job", files=len(unwanted))
                await self.delete(unwanted)
            await self.delete([file.id for file in alive if file.kind != UPLOAD])

    async def sweep_old(self) -> int:
        """Deletes results that were kept for as long as they are; how many."""
        if not self.limits.keep_seconds:
            return 0
        before, deleted = self.now() - int(self.limits.keep_seconds * 1000), 0
        while old := await self.table.old(before):
            await self.delete(old)
            deleted += len(old)
        return deleted

    async def sweep_bytes(self, *, older: timedelta = SETTLED_AFTER) -> int:
        """Deletes bytes that no row names; how many files. Others' files are left alone."""
        swept = 0
        for kind in _KINDS:
            if self.storage.is_used(kind):
                swept += await self._sweep_place(kind, older.total_seconds())
        if swept:
            _log.warning("leftover_files_deleted", files=swept)
        return swept

    async def _sweep_place(self, kind: str, seconds: float) -> int:
        blobs, swept = self.storage.of(kind), 0
        async for batch in blobs.old(seconds=seconds):
            found = {path: blobs.finished(path) for path in batch}
            known = await self.table.known(set(found.values()), results=kind == ARTIFACT)
            for path, whole in found.items():
                # One that is whole and known is named; half of one is nobody's.
                if is_ours(whole) and path not in known:
                    await blobs.sweep(path)
                    swept += 1
        return swept

    async def _bury(self, files: Sequence[StoredFile]) -> None:
        """Raises StorageUnavailable for bytes that cannot be deleted, after all the others."""
        gone: list[str] = []
        trouble: StorageUnavailable | None = None
        for file in files:
            try:
                await self.storage.of(file.kind).delete(file.path)
                gone.append(file.id)
            except StorageUnavailable as error:
                trouble = error
        if gone:
            await self.table.forget(gone, self.now())
        if self._deleted is not None:
            for sha256 in {file.sha256 for file in files}:
                await self._deleted(sha256)
        if trouble is not None:
            raise trouble

    def _room(self, file: StoredFile) -> Callable[[int], None]:
        most = self.limits.per_key or 0

        def check(used: int) -> None:
            if used + file.size > most:
                raise Forbidden(
                    f"This file of {_shown(file.size)} does not fit: the files of this API key may "
                    f"have {_shown(most)} and have {_shown(used)}. Delete some, or ask your "
                    "administrator to raise MAX_STORED_PER_KEY.",
                    code="StorageQuotaExceeded",
                    reason="storage_quota_exceeded",
                )

        return check


def with_path(file: StoredFile, path: str) -> StoredFile:
    """Shown where its bytes lie."""
    return msgspec.structs.replace(file, path=path, shown=path)


def _shown(size: int) -> str:
    amount, unit = float(size), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g} {unit}"
