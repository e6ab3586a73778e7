"""The table of files, and the only way to their bytes: every read says whose they must be."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiserver.contract.errors import NotFound, StorageUnavailable
from aiserver.contract.uploads import Upload
from aiserver.files.digests import Digest, pieces
from aiserver.files.leftovers import finished, old_paths, remove
from aiserver.files.names import is_ours, path_of, plain_name, plain_type
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import Statement, Tables

if TYPE_CHECKING:
    from aiserver.files.blobs import Blobs

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# Each holds a few pieces in memory.
MOST_WRITTEN = 16
_AT_ONCE = 500
_FIRST_LOOK = timedelta(hours=1)
_NEXT_LOOK = timedelta(days=1)
# A path bears its day: nobody puts anything there any more.
_DAY_IS_OVER = timedelta(days=2)
# Whether a path is still in use must not change between the look and the deed.
_IN_TURN = Statement("UPDATE revisions SET number = number WHERE name = 'files'")
_log = log.get("files")


class StoredFile(msgspec.Struct, frozen=True):
    """A row of `files`; times in ms since 1970, `size` in bytes. `name` is as sent, made plain."""

    id: str
    key_id: int
    path: str
    sha256: str
    size: int
    name: str | None
    content_type: str | None
    job_ref: str | None
    created: int
    look: int
    deleted: int | None


_COLUMNS = ", ".join(StoredFile.__struct_fields__)
_PUT = f"INSERT INTO files ({_COLUMNS}) VALUES ({', '.join('?' * 11)})"
_ELSEWHERE = """
UPDATE files SET path = ? WHERE id = ? AND EXISTS
  (SELECT 1 FROM files o WHERE o.path = files.path AND o.deleted IS NOT NULL)
RETURNING path"""
_MARK = "UPDATE files SET deleted = ?, look = ? WHERE id IN ({ids}) AND deleted IS NULL"
_SHARED = """
DELETE FROM files WHERE id IN ({ids}) AND deleted IS NOT NULL AND EXISTS
  (SELECT 1 FROM files o WHERE o.path = files.path AND o.deleted IS NULL)"""

_FORGET = "DELETE FROM files WHERE id IN ({ids}) AND created <= ?"
_LOOK = "UPDATE files SET look = created + ? WHERE id IN ({ids})"
_MARKED = f"SELECT {_COLUMNS} FROM files WHERE id IN ({{ids}}) AND deleted IS NOT NULL"
_FIND = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND deleted IS NULL"
_DUE = f"SELECT {_COLUMNS} FROM files WHERE look <= ? ORDER BY look LIMIT ?"


class StoredUpload:
    """Implements `Upload` for a file that is kept; raises StorageUnavailable."""

    def __init__(self, file: StoredFile, blobs: "Blobs") -> None:
        self._file = file
        self._blobs = blobs
        self._at = 0

    @property
    def filename(self) -> str | None:
        return self._file.name

    @property
    def content_type(self) -> str | None:
        return self._file.content_type

    @property
    def size(self) -> int | None:
        return self._file.size

    async def read(self, size: int = -1) -> bytes:
        left = max(self._file.size - self._at, 0)
        piece = await self._blobs.read(
            self._file.path, self._at, left if size < 0 else min(size, left)
        )
        self._at += len(piece)
        return piece

    async def seek(self, offset: int) -> None:
        self._at = max(offset, 0)


class FileStore:
    """Rows come before their bytes and go after them, so no bytes are without a row.

    Calls raise StorageError where the table cannot be used, StorageUnavailable for the disk.
    """

    def __init__(self, tables: Tables, folder: Path, clock: Clock) -> None:
        self._tables = tables
        self._folder = folder
        self._clock = clock
        self._blobs: Blobs | None = None
        self._writing = asyncio.Semaphore(MOST_WRITTEN)

    async def put(
        self, upload: Upload, digest: Digest, *, key_id: int, job_ref: str | None = None
    ) -> StoredFile:
        """Keeps it; on disk when it returns. What fails leaves nothing behind."""
        now, name = self._clock.now().astimezone(UTC), plain_name(upload.filename)
        path = path_of(now, key_id=key_id, sha256=digest.sha256, name=name)
        file = StoredFile(
            id=random_hex(16),
            key_id=key_id,
            path=path,
            sha256=digest.sha256,
            size=digest.size,
            name=name,
            content_type=plain_type(upload.content_type),
            job_ref=job_ref,
            created=_ms(now),
            look=_ms(now + _FIRST_LOOK),
            deleted=None,
        )
        other = path_of(now, key_id=key_id, sha256=digest.sha256, name=name, other=random_hex(4))
        _, _, moved = await self._tables.write(
            _IN_TURN,
            Statement(_PUT, msgspec.structs.astuple(file)),
            # Somebody may be about to delete what is there.
            Statement(_ELSEWHERE, (other, file.id)),
        )
        file = msgspec.structs.replace(file, path=moved[0][0]) if moved else file
        try:
            async with self._writing:
                await self._opened().put(file.path, file.size, pieces(upload))
        except BaseException:
            # On a full disk the table may fail too: then the sweep does it.
            with suppress(StorageError, StorageUnavailable):
                await asyncio.shield(self.delete([file.id]))
            raise
        return file

    async def find(self, id: str, *, key_id: int | None) -> StoredFile:
        """`key_id`: whose it must be, None for anybody's. Raises NotFound."""
        rows = await self._tables.read(_FIND, id)
        if not rows or key_id not in (None, rows[0][1]):
            raise NotFound("There is no such file.")
        return StoredFile(*rows[0])

    async def open(self, id: str, *, key_id: int | None) -> StoredUpload:
        """As `find`."""
        return StoredUpload(await self.find(id, key_id=key_id), self._opened())

    async def delete(self, ids: Sequence[str], *, key_id: int | None = None) -> None:
        """Rows, and bytes that no other row shares; `key_id` limits it to that owner's."""
        for start in range(0, len(ids), _AT_ONCE):
            await self._bury(await self._mark(ids[start : start + _AT_ONCE], key_id))

    async def sweep(self, wanted: Callable[[StoredFile], Awaitable[bool]]) -> None:
        """Deletes what nobody wants any more, and ends what was begun."""
        more = True
        while more:
            rows = await self._tables.read(_DUE, self._now(), _AT_ONCE)
            due, more = [StoredFile(*row) for row in rows], len(rows) == _AT_ONCE
            alive = {file.id: await wanted(file) for file in due if file.deleted is None}
            await self._look_again([id for id, is_wanted in alive.items() if is_wanted])
            await self._bury([file for file in due if file.deleted is not None])
            if unwanted := [id for id, is_wanted in alive.items() if not is_wanted]:
                _log.warning("files_without_job", files=len(unwanted))
                await self.delete(unwanted)

    async def sweep_disk(self) -> int:
        """Deletes old bytes that no row names; how many files. Others' files are left alone."""
        swept = 0
        walk = old_paths(self._folder, seconds=_DAY_IS_OVER.total_seconds())
        while (batch := await asyncio.to_thread(next, walk, None)) is not None:
            known = await self._known({finished(path) for path in batch})
            for path in batch:
                if is_ours(finished(path)) and path not in known:
                    await asyncio.to_thread(remove, self._folder, path)
                    swept += 1
        if swept:
            _log.warning("leftover_files_deleted", files=swept)
        return swept

    async def _mark(self, ids: Sequence[str], key_id: int | None) -> list[StoredFile]:
        """Those whose bytes nobody needs; their rows stay for now, so nobody takes the path."""
        among, now = ", ".join("?" * len(ids)), self._now()
        of_key = "" if key_id is None else " AND key_id = ?"
        whose = () if key_id is None else (key_id,)
        *_, rows = await self._tables.write(
            _IN_TURN,
            Statement(_MARK.format(ids=among) + of_key, (now, now, *ids, *whose)),
            Statement(_SHARED.format(ids=among), ids),
            Statement(_MARKED.format(ids=among), ids),
        )
        return [StoredFile(*row) for row in rows]

    async def _bury(self, files: Sequence[StoredFile]) -> None:
        """Raises StorageUnavailable for bytes that cannot be deleted, after all the others."""
        gone: list[str] = []
        trouble: StorageUnavailable | None = None
        for file in files:
            try:
                await self._opened().delete(file.path)
                gone.append(file.id)
            except StorageUnavailable as error:
                trouble = error
        if gone:
            among, day = ", ".join("?" * len(gone)), _DAY_IS_OVER // _MS
            await self._tables.write(
                Statement(_FORGET.format(ids=among), (*gone, self._now() - day)),
                Statement(_LOOK.format(ids=among), (day, *gone)),
            )
        if trouble is not None:
            raise trouble

    async def _look_again(self, ids: Sequence[str]) -> None:
        if ids:
            at, among = self._now() + _NEXT_LOOK // _MS, ", ".join("?" * len(ids))
            sql = f"UPDATE files SET look = ? WHERE id IN ({among})"
            await self._tables.write(Statement(sql, (at, *ids)))

    async def _known(self, paths: set[str]) -> set[str]:
        among = ", ".join("?" * len(paths))
        rows = await self._tables.read(f"SELECT path FROM files WHERE path IN ({among})", *paths)
        return {row[0] for row in rows}

    def _opened(self) -> "Blobs":
        if self._blobs is None:
            # Ten megabytes that a server without uploads never needs.
            from aiserver.files.blobs import Blobs  # noqa: PLC0415

            self._blobs = Blobs(self._folder)
        return self._blobs

    def _now(self) -> int:
        return _ms(self._clock.now())


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS
