"""The inputs of jobs: kept as they were sent, read by whose they are, deleted with the job."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from aiserver.contract.errors import NotFound
from aiserver.contract.uploads import Upload
from aiserver.files.digests import Digest, pieces
from aiserver.files.names import path_of, plain_name, plain_type
from aiserver.files.shelf import Shelf
from aiserver.files.table import StoredFile, ms
from aiserver.kit.ids import random_hex

if TYPE_CHECKING:
    from aiserver.files.blobs import Blobs

_FIRST_LOOK = timedelta(hours=1)


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

    @property
    def path(self) -> Path | None:
        return self._blobs.file(self._file.path)

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
    """Calls raise StorageError where the table cannot be used, StorageUnavailable for the bytes."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def put(
        self, upload: Upload, digest: Digest, *, key_id: int, job_ref: str | None = None
    ) -> StoredFile:
        """As `Shelf.put`."""
        now, name = self._shelf.moment(), plain_name(upload.filename)
        path = path_of(now, key_id=key_id, sha256=digest.sha256, name=name)
        file = StoredFile(
            id=random_hex(16),
            key_id=key_id,
            path=path,
            shown=path,
            sha256=digest.sha256,
            size=digest.size,
            name=name,
            content_type=plain_type(upload.content_type),
            job_ref=job_ref,
            created=ms(now),
            # Nobody has its id before its bytes are there.
            kept=ms(now),
            look=ms(now + _FIRST_LOOK),
        )
        other = path_of(now, key_id=key_id, sha256=digest.sha256, name=name, other=random_hex(4))
        return await self._shelf.put(file, lambda: pieces(upload), elsewhere=other)

    async def find(self, id: str, *, key_id: int | None) -> StoredFile:
        """`key_id`: whose it must be, None for anybody's. Raises NotFound."""
        file = await self._shelf.table.find(id)
        if file is None or key_id not in (None, file.key_id):
            raise NotFound("There is no such file.")
        return file

    async def open(self, id: str, *, key_id: int | None) -> StoredUpload:
        """As `find`."""
        file = await self.find(id, key_id=key_id)
        return StoredUpload(file, self._shelf.storage.of(file.kind))

    async def delete(self, ids: Sequence[str], *, key_id: int | None = None) -> None:
        """As `Shelf.delete`."""
        await self._shelf.delete(ids, key_id=key_id)

    async def sweep(self, wanted: Callable[[StoredFile], Awaitable[bool]]) -> None:
        """As `Shelf.sweep`, and results that were kept for long enough."""
        await self._shelf.sweep(wanted)
        await self._shelf.sweep_old()

    async def sweep_disk(self) -> int:
        """As `Shelf.sweep_bytes`."""
        return await self._shelf.sweep_bytes()
