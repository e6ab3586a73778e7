"""Kept files for the tests: real tables, a real store, and a clock that stands still."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiserver.files.artifacts import Artifact, Artifacts
from aiserver.files.shelf import Shelf
from aiserver.files.storage import Limits, Storage
from aiserver.files.store import FileStore
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import Tables
from fakes.calls import StillClock

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Place:
    """Artifacts whose clock stands still, in front of real tables and a real store."""

    def __init__(self, tables: Tables, storage: Storage, folder: Path) -> None:
        self.tables, self.storage, self.folder = tables, storage, folder
        self.clock = StillClock(NOON)
        self.limit(Limits())

    def limit(self, limits: Limits) -> None:
        self.shelf = Shelf(self.tables, self.storage, limits, self.clock)
        self.artifacts = Artifacts(self.shelf)
        self.files = FileStore(self.shelf)

    def source(self, content: bytes) -> Path:
        path = self.folder / random_hex(4)
        path.write_bytes(content)
        return path

    async def save(
        self,
        content: bytes = b"\x89PNG\r\n\x1a\n",
        *,
        key_id: int = 7,
        kind: str = "artifact",
        name: str | None = None,
        path: str | None = None,
        expires: datetime | None = None,
    ) -> Artifact:
        return await self.artifacts.save(
            self.source(content), key_id=key_id, kind=kind, name=name, path=path, expires=expires
        )

    async def read(self, file: Artifact, start: int = 0, end: int | None = None) -> bytes:
        return b"".join([piece async for piece in self.artifacts.read(file, start, end)])

    def pass_time(self, **time: float) -> None:
        self.clock.moment += timedelta(**time)

    async def stored(self, kind: str = "artifact") -> list[str]:
        """What lies in the store, whether a row names it or not."""
        blobs = self.storage.of(kind)
        return sorted([path async for batch in blobs.old(seconds=-86400) for path in batch])

    async def rows(self) -> int:
        return (await self.tables.read("SELECT count(*) FROM files"))[0][0]
