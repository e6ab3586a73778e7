"""Bytes on the local disk, by path: written whole or not at all, read in pieces."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from aiserver.contract.errors import StorageUnavailable
from aiserver.kit import log

CHUNK = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ERRNO = re.compile(r"\(os error (\d+)\)")
_TROUBLE = (OSError, BaseError)
_log = log.get("files")


class Blobs:
    """Under one folder, which is made when it is first needed. Errors are StorageUnavailable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _told("make"):
            folder.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(folder, automatic_cleanup=True)

    async def put(self, path: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        """On disk when it returns, for a power cut too; a path always has the same bytes."""
        with _told("write"):
            if await self._size(path) != size:
                await obstore.put_async(
                    self._store, path, chunks, chunk_size=CHUNK, max_concurrency=1
                )
            await asyncio.to_thread(_settle, self._folder, path)

    async def read(self, path: str, start: int, length: int) -> bytes:
        """These bytes, which must be there."""
        if length == 0:
            return b""
        with _told("read"):
            return bytes(
                await obstore.get_range_async(self._store, path, start=start, length=length)
            )

    async def delete(self, path: str) -> None:
        """Also what is not there."""
        with _told("delete"):
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError:
                return

    async def _size(self, path: str) -> int | None:
        try:
            return int((await obstore.head_async(self._store, path))["size"])
        except FileNotFoundError:
            return None


def _settle(folder: Path, path: str) -> None:
    """The store renames what it wrote and leaves the rest to the system."""
    place = folder / path
    _sync(place)
    for parent in place.parents:
        _sync(parent)
        if parent == folder:
            break


def _sync(place: Path) -> None:
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _told(verb: str) -> Generator[None]:
    """Errors in words for the caller, details in the log."""
    try:
        yield
    except _TROUBLE as error:
        first = str(error).partition("\n")[0]
        _log.error("files_failed", to=verb, problem=first)
        if _number(error, first) in _FULL:
            raise StorageUnavailable(
                "The server's disk for files is full; nothing was kept of this call. Try again "
                "later, or ask your administrator to make room at AI_FILES_PATH.",
                reason="storage_full",
                retry_after=60,
            ) from error
        raise StorageUnavailable(
            f"The server cannot {verb} files now; its log says why. Try again shortly.",
            retry_after=2,
        ) from error


def _number(error: Exception, text: str) -> int | None:
    """The library tells the system's error in its text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO.search(text)
    return int(found[1]) if found else None
