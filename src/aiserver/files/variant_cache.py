"""Made variants on this machine's disk: those used longest ago go when there are too many."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from aiserver.contract.errors import StorageUnavailable
from aiserver.files.variant_memory import MOST_BYTES, VariantMemory
from aiserver.kit import log

# Listing more than these would take too long.
MOST_FILES = 50_000
# What fits into one answer to a thread; larger ones are read a piece at a time.
SMALL = 256 * 1024
_PIECE = 1024 * 1024
_MADE_ROOM = 0.9
_LOOK_AFTER = 8
_log = log.get("files")


class Key(NamedTuple):
    """The sha256 of the source's bytes, of what is asked of it, and the ending of the result."""

    source: str
    asked: str
    ending: str


class Kept(NamedTuple):
    """A variant to be sent, even if it is evicted meanwhile: its bytes, or a file held open."""

    size: int
    content: bytes | None
    held: "_Held | None"

    async def read(self, start: int, end: int) -> AsyncGenerator[bytes]:
        if self.content is not None:
            yield self.content[start:end]
            return
        while self.held is not None and start < end:
            piece = await asyncio.to_thread(self.held.read, min(_PIECE, end - start), start)
            if not piece:
                raise StorageUnavailable("This variant was cut short; ask for it again.")
            start += len(piece)
            yield piece


class _Held:
    """An open file, closed with its last reader: an answer may be dropped before it is begun."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, length: int, start: int) -> bytes:
        return os.pread(self._descriptor, length, start)

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Found(NamedTuple):
    used: int
    size: int
    path: str


class VariantCache:
    """At most `most_bytes`, and as much as an eighth more for every process that shares it.

    Calls raise StorageUnavailable where the folder cannot be used.
    """

    def __init__(self, folder: Path, *, most_bytes: int, most_files: int = MOST_FILES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._making_room = asyncio.Lock()
        self._bytes = 0
        self._files = 0
        self._since: int | None = None
        self._memory: VariantMemory[Key] = VariantMemory(most_bytes=min(MOST_BYTES, most_bytes))

    async def get(self, key: Key) -> Kept | None:
        content = self.at_hand(key)
        if content is not None:
            return Kept(len(content), content, None)
        return self._remembered(key, await asyncio.to_thread(self._get, key))

    def at_hand(self, key: Key) -> bytes | None:
        """What needs no look at the disk."""
        return self._memory.get(key)

    async def keep(self, key: Key, made: Path) -> Kept:
        """Takes the file over, which must be on the same disk."""
        try:
            kept = await asyncio.to_thread(self._keep, key, made)
            async with self._making_room:
                await self._bounded(kept.size)
        except OSError as error:
            _log.error("variant_not_kept", problem=str(error))
            raise StorageUnavailable(retry_after=2) from error
        self._remembered(key, kept)
        return kept

    async def close(self) -> None:
        """Leaves on the disk what is known of their use."""
        await asyncio.to_thread(self._touch, self._memory.take_used())

    async def forget(self, source: str) -> None:
        """Deletes all variants of these bytes."""
        self._memory.drop_if(lambda key: key.source == source)
        try:
            await asyncio.to_thread(self._forget, source)
        except OSError as error:
            # Nobody can read them any more, and at the cap they go.
            _log.warning("variants_not_deleted", problem=str(error))

    def _get(self, key: Key, *, new: bool = False) -> Kept | None:
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("variant_not_read", problem=str(error))
            return None
        held = _Held(descriptor)
        if not new:
            os.utime(descriptor)
        size = os.fstat(descriptor).st_size
        if size <= SMALL:
            return Kept(size, held.read(size, 0), None)
        return Kept(size, None, held)

    def _keep(self, key: Key, made: Path) -> Kept:
        path = self._path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(made, path)
        kept = self._get(key, new=True)
        if kept is None:
            raise FileNotFoundError(f"{path} went as soon as it was written")
        return kept

    async def _bounded(self, size: int) -> None:
        """Looks at the folder at first, and then when much was added or it must be too full."""
        if self._since is not None:
            self._since += size
            self._bytes += size
            self._files += 1
            full = self._bytes > self._most_bytes or self._files > self._most_files
            if not full and self._since < self._most_bytes // _LOOK_AFTER:
                return
        used = self._memory.take_used()
        self._bytes, self._files = await asyncio.to_thread(self._evict, used)
        self._since = 0

    def _remembered(self, key: Key, kept: Kept | None) -> Kept | None:
        if kept is not None and kept.content is not None:
            self._memory.put(key, kept.content)
        return kept

    def _touch(self, used: Mapping[Key, int]) -> None:
        for key, moment in used.items():
            with suppress(OSError):
                os.utime(self._path(key), ns=(moment, moment))

    def _evict(self, used: Mapping[Key, int]) -> tuple[int, int]:
        """Down to a bit below the bounds, so that it is done rarely; what is left."""
        self._touch(used)
        found = list(self._found())
        size, files = sum(each.size for each in found), len(found)
        if size <= self._most_bytes and files <= self._most_files:
            return size, files
        for oldest in sorted(found):
            if size <= self._most_bytes * _MADE_ROOM and files <= self._most_files * _MADE_ROOM:
                break
            Path(oldest.path).unlink(missing_ok=True)
            size, files = size - oldest.size, files - 1
        _log.info("variants_evicted", files=len(found) - files, left=files, bytes=size)
        return size, files

    def _found(self) -> Iterator[_Found]:
        for folder in _listed(self._folder):
            for entry in _listed(folder.path):
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield _Found(about.st_mtime_ns, about.st_size, entry.path)

    def _forget(self, source: str) -> None:
        for entry in _listed(self._folder / source[:2]):
            if entry.name.startswith(f"{source}-"):
                Path(entry.path).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        return self._folder / key.source[:2] / f"{key.source}-{key.asked}.{key.ending}"


def _listed(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
