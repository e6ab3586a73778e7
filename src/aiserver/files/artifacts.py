"""Results and uploads that callers know by path: kept, found, read, listed and deleted."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from aiserver.contract.errors import InvalidRequest
from aiserver.files.digests import Digest
from aiserver.files.names import ending_of, is_upload_path, path_of, plain_name
from aiserver.files.shelf import UPLOAD, Shelf
from aiserver.files.sniffing import Sniffed, sniff
from aiserver.files.storage import ARTIFACT
from aiserver.files.table import AT_ONCE, StoredFile, moment, ms
from aiserver.kit.ids import random_hex

PUB = "pub"
SECURE = "secure"
KINDS = (UPLOAD, ARTIFACT, PUB, SECURE)
# Longer than the bytes of any file take.
_HALF_KEPT = timedelta(hours=6)
_PIECE = 1024 * 1024
_HEAD = 4096


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """`path` has no leading slash; `size` in bytes, `duration` in seconds, times in UTC.

    `content_type` is told from the bytes; `name` is as it was sent or given, made plain.
    """

    id: str
    path: str
    key_id: int
    kind: str
    sha256: str
    size: int
    content_type: str
    name: str | None
    created: datetime
    expires: datetime | None = None
    operation: str | None = None
    job_id: int | None = None
    job_ref: str | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    place: str = ""


class Artifacts:
    """Who may do what is decided above; calls raise StorageError and StorageUnavailable."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def save(
        self,
        source: Path,
        *,
        key_id: int,
        extension: str | None = None,
        kind: str = ARTIFACT,
        name: str | None = None,
        operation: str | None = None,
        job_id: int | None = None,
        job_ref: str | None = None,
        width: int | None = None,
        height: int | None = None,
        duration: float | None = None,
        expires: datetime | None = None,
        path: str | None = None,
        day: datetime | None = None,
    ) -> Artifact:
        """Stored for good when it returns; `source` stays, and must not change meanwhile.

        The same bytes of one key on one day are one result. `path` is for pub and secure only and
        replaces what is there; `day` is the folder of results, else today's. Raises InvalidRequest
        for a path, Forbidden for a key without room.
        """
        _refuse_misplaced(kind, path, key_id)
        digest, sniffed = await asyncio.to_thread(_looked_at, source)
        now, ending = self._shelf.moment(), ending_of(extension, sniffed)
        kept_at = path_of(day or now, key_id=key_id, sha256=digest.sha256, name=ending)
        told = random_hex(4)
        other = path_of(day or now, key_id=key_id, sha256=digest.sha256, name=ending, other=told)
        file = StoredFile(
            id=random_hex(16),
            key_id=key_id,
            path=kept_at,
            shown=path or kept_at,
            sha256=digest.sha256,
            size=digest.size,
            name=plain_name(name),
            content_type=sniffed.content_type,
            job_ref=job_ref,
            created=ms(now),
            look=ms(now + _HALF_KEPT),
            kind=kind,
            expires=None if expires is None else ms(expires),
            operation=operation,
            job_id=job_id,
            width=width,
            height=height,
            duration=duration,
        )
        return self._of(await self._shelf.put(file, lambda: source, elsewhere=other))

    async def find(self, path: str, *, kind: str | None = None) -> Artifact | None:
        """Anybody's, whoever asks; without a kind a result comes before an upload."""
        for file in await self._shelf.table.shown(path, self._shelf.now()):
            found = self._of(file)
            if kind in (None, file.kind) and not self.has_ended(found):
                return found
        return None

    def version(self) -> int | None:
        """As long as it is the same, `find` finds the same; None where nobody can tell."""
        return self._shelf.table.version()

    def has_ended(self, artifact: Artifact) -> bool:
        return artifact.expires is not None and ms(artifact.expires) <= self._shelf.now()

    async def read(
        self, artifact: Artifact, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """These bytes, `end` not among them, in pieces of a few MB at most."""
        blobs = self._shelf.storage.of(artifact.kind)
        last = artifact.size if end is None else min(end, artifact.size)
        while start < last:
            piece = await blobs.read(artifact.place, start, min(blobs.piece, last - start))
            start += len(piece)
            yield piece

    async def address(self, artifact: Artifact, *, seconds: float) -> str | None:
        """Where its bytes are read from the object store itself, by anybody for so long.

        None where they are not in one, and for inputs, whose type nobody has looked at.
        """
        if artifact.kind == UPLOAD:
            return None
        blobs = self._shelf.storage.of(artifact.kind)
        return await blobs.address(artifact.place, seconds=seconds)

    def file(self, artifact: Artifact) -> Path | None:
        """Where its bytes lie on this machine's disk, to be read only; None for elsewhere."""
        return self._shelf.storage.of(artifact.kind).file(artifact.place)

    async def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """A copy of it in this folder, whose owner removes it. Raises OSError for the folder."""
        target = folder / f"{random_hex(4)}-{Path(artifact.place).name}"
        with target.open("xb") as written:
            async for piece in self.read(artifact):
                await asyncio.to_thread(written.write, piece)
        return target

    async def delete(self, artifacts_or_ids: Sequence[Artifact | str]) -> None:
        """Rows and bytes; whatever is at the path of an artifact just now."""
        ids: list[str] = []
        for item in artifacts_or_ids:
            if isinstance(item, str):
                ids.append(item)
            else:
                ids += await self._shelf.table.ids_shown(item.path, item.kind)
        await self._shelf.delete(ids)

    async def list(
        self,
        *,
        key_id: int | None = None,
        kind: str | None = None,
        contains: str | None = None,
        skip: int = 0,
        take: int = 100,
    ) -> tuple[list[Artifact], int]:
        """The newest first, and how many there are in all; `contains` looks in name and path."""
        rows, total = await self._shelf.table.page(
            self._shelf.now(),
            key_id=key_id,
            kind=kind,
            contains=contains,
            skip=max(skip, 0),
            take=max(min(take, AT_ONCE), 0),
        )
        return [self._of(row) for row in rows], total

    async def usage(self, key_id: int) -> int:
        """Bytes that are kept for a key, all kinds together."""
        return await self._shelf.table.used(key_id)

    def _of(self, file: StoredFile) -> Artifact:
        return Artifact(
            id=file.id,
            path=file.shown,
            key_id=file.key_id,
            kind=file.kind,
            sha256=file.sha256,
            size=file.size,
            content_type=file.content_type or "application/octet-stream",
            name=file.name,
            created=moment(file.created),
            expires=self._end_of(file),
            operation=file.operation,
            job_id=file.job_id,
            job_ref=file.job_ref,
            width=file.width,
            height=file.height,
            duration=file.duration,
            place=file.path,
        )

    def _end_of(self, file: StoredFile) -> datetime | None:
        if file.expires is not None:
            return moment(file.expires)
        seconds = self._shelf.limits.keep_seconds
        if not seconds or file.kind != ARTIFACT:
            return None
        return moment(file.created) + timedelta(seconds=seconds)


def _refuse_misplaced(kind: str, path: str | None, key_id: int) -> None:
    if kind not in KINDS:
        raise InvalidRequest(f"There is no kind of file {kind!r}; take one of {', '.join(KINDS)}.")
    named = kind in (PUB, SECURE)
    if named != (path is not None):
        raise InvalidRequest("A path is for uploads to pub and secure, and they need one.")
    if path is not None and not is_upload_path(path, kind=kind, key_id=key_id):
        raise InvalidRequest(
            f"This path cannot be used: {kind}/{key_id}/ and a file name of letters is needed."
        )


def _looked_at(source: Path) -> tuple[Digest, Sniffed]:
    """Reads all of it, a piece at a time."""
    hashed, size = hashlib.sha256(), 0
    with source.open("rb") as opened:
        head = piece = opened.read(_PIECE)
        while piece:
            hashed.update(piece)
            size += len(piece)
            piece = opened.read(_PIECE)
    return Digest(hashed.hexdigest(), size), sniff(head[:_HEAD])
