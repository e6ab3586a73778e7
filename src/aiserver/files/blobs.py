"""Bytes by path, on the local disk or in an object store: whole or not at all, read in pieces."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore import store as stores
from obstore.exceptions import BaseError

from aiserver.contract.errors import StorageUnavailable
from aiserver.files.leftovers import finished, old_paths, remove
from aiserver.kit import log
from aiserver.kit.ids import random_hex

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK = 1024 * 1024
# The least that a part of an upload to S3 may have.
_PART = 5 * CHUNK
_LISTED = 500
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ERRNO = re.compile(r"\(os error (\d+)\)")
TROUBLE = (OSError, BaseError)
_SIGNING = (stores.S3Store, stores.GCSStore, stores.AzureStore)
_CONNECT = timedelta(seconds=5)
_RETRIES = 3
# For one request, which carries a part at most.
_LONGEST = timedelta(seconds=60)
# Signing asks for credentials where a machine's own are used, and else nobody.
_SIGNING_SECONDS = 5.0
_log = log.get("files")


class Blobs:
    """In an object store. Errors are StorageUnavailable; `home` is the setting that names it."""

    # Of one read, for whoever reads a file from end to end.
    piece = 2 * CHUNK
    _part = _PART

    def __init__(self, store: "ObjectStore", *, home: str) -> None:
        self._store = store
        self._home = home

    async def put(
        self,
        path: str,
        size: int,
        source: AsyncIterator[bytes] | Path,
        *,
        content_type: str | None = None,
    ) -> None:
        """Stored for good when it returns; a path always has the same bytes.

        `content_type` is what the store itself says of them to whoever reads them there.
        """
        with _told("write", self._home):
            if await self._size(path) != size:
                await obstore.put_async(
                    self._store,
                    path,
                    source,
                    attributes={"Content-Type": content_type} if content_type else None,
                    chunk_size=self._part,
                    max_concurrency=1,
                )

    async def read(self, path: str, start: int, length: int) -> bytes:
        """These bytes, which must be there."""
        if length == 0:
            return b""
        with _told("read", self._home):
            return bytes(
                await obstore.get_range_async(self._store, path, start=start, length=length)
            )

    def file(self, path: str) -> Path | None:
        """Where these bytes lie on this machine's disk, to be read only; None for elsewhere."""
        return None

    async def address(self, path: str, *, seconds: float) -> str | None:
        """Where anybody reads it from the store itself; None where the store cannot sign."""
        if not isinstance(self._store, _SIGNING):
            return None
        try:
            async with asyncio.timeout(_SIGNING_SECONDS):
                return await obstore.sign_async(
                    self._store, "GET", path, timedelta(seconds=seconds)
                )
        except TROUBLE as error:
            _log.error("address_not_signed", problem=str(error).partition("\n")[0])
            return None

    async def delete(self, path: str) -> None:
        """Also what is not there."""
        with _told("delete", self._home):
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError:
                return

    async def size(self, path: str) -> int | None:
        """None for what is not there."""
        with _told("read", self._home):
            return await self._size(path)

    async def old(self, *, seconds: float) -> AsyncIterator[list[str]]:
        """Paths that nobody wrote to for so long, by the hundreds."""
        before = datetime.now(UTC) - timedelta(seconds=seconds)
        with _told("list", self._home):
            listed = obstore.list(self._store, chunk_size=_LISTED)  # pyright: ignore[reportUnknownMemberType]
            async for metas in listed:
                batch = [meta["path"] for meta in metas if meta["last_modified"] < before]
                if batch:
                    yield batch

    def finished(self, path: str) -> str:
        """The path that a listed one was written for."""
        return path

    async def sweep(self, path: str) -> None:
        """Deletes what `old` listed."""
        await self.delete(path)

    async def _size(self, path: str) -> int | None:
        try:
            return int((await obstore.head_async(self._store, path))["size"])
        except FileNotFoundError:
            return None


class LocalBlobs(Blobs):
    """Under one folder, which is made when it is first needed; safe from a power cut too."""

    piece = CHUNK
    _part = CHUNK

    def __init__(self, folder: Path, *, home: str) -> None:
        self._folder = folder
        with _told("make", home):
            folder.mkdir(parents=True, exist_ok=True)
            store = stores.LocalStore(folder, automatic_cleanup=True)
        super().__init__(store, home=home)

    async def put(
        self,
        path: str,
        size: int,
        source: AsyncIterator[bytes] | Path,
        *,
        content_type: str | None = None,
    ) -> None:
        await super().put(path, size, source)
        with _told("write", self._home):
            await asyncio.to_thread(_settle, self._folder, path)

    def file(self, path: str) -> Path | None:
        return self._folder / path

    async def old(self, *, seconds: float) -> AsyncIterator[list[str]]:
        walk = old_paths(self._folder, seconds=seconds)
        while (batch := await asyncio.to_thread(next, walk, None)) is not None:
            yield batch

    def finished(self, path: str) -> str:
        return finished(path)

    async def sweep(self, path: str) -> None:
        with _told("delete", self._home):
            await asyncio.to_thread(remove, self._folder, path)


def remote(url: str, below: str, *, home: str) -> Blobs:
    """`url` as STORAGE_URL has it; `below` is added to its path. Raises StorageUnavailable."""
    with _told("reach", home):
        return Blobs(_opened(url, below, retries=_RETRIES, longest=_LONGEST), home=home)


async def tried(url: str, below: str, *, seconds: float) -> None:
    """Writes, reads, lists and deletes an object there. Raises TROUBLE as the store has it."""
    store = _opened(url, below, retries=0, longest=timedelta(seconds=seconds))
    folder, content = f"probe-{random_hex(8)}", random_hex(8).encode()
    path = f"{folder}/object"
    await obstore.put_async(store, path, content)
    try:
        found = bytes(await obstore.get_range_async(store, path, start=0, length=len(content)))
        async for _ in obstore.list(store, prefix=folder):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            pass
    finally:
        await obstore.delete_async(store, path)
    if found != content:
        raise OSError("what was read is not what was written")


def _opened(url: str, below: str, *, retries: int, longest: timedelta) -> "ObjectStore":
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    bare = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/{below}"
    plain = options.get("endpoint", "").startswith("http://")
    # Each kind of store has options of its own, under the same names.
    opened = cast("Callable[..., ObjectStore]", stores.from_url)
    return opened(
        bare,
        config=options or None,
        client_options={
            "allow_http": plain,
            "connect_timeout": min(_CONNECT, longest),
            "timeout": longest,
        },
        retry_config={"max_retries": retries, "retry_timeout": longest},
    )


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
def _told(verb: str, home: str) -> Generator[None]:
    """Errors in words for the caller, details in the log."""
    try:
        yield
    except TROUBLE as error:
        first = str(error).partition("\n")[0]
        _log.error("files_failed", to=verb, problem=first)
        if _number(error, first) in _FULL:
            raise StorageUnavailable(
                "The server's disk for files is full; nothing was kept of this call. Try again "
                f"later, or ask your administrator to make room at {home}.",
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
