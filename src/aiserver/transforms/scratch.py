"""Folders for the files of running transforms: gone with their job, or with the next start."""

import asyncio
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from aiserver.contract.errors import StorageUnavailable
from aiserver.contract.uploads import OnDisk, Upload
from aiserver.kit import log
from aiserver.kit.ids import random_hex

_PIECE = 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK = ".lock"
P = ParamSpec("P")
T = TypeVar("T")
_log = log.get("transforms")


class Scratch:
    """One folder a job, below that of this process; `opened` makes one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> "Generator[Scratch]":
        """Until the end of the block, for this process alone; what dead ones left is deleted."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = folder / random_hex(16)
        with _held(folder / _LOCK):
            lock = _locked(own.with_suffix(_LOCK))
            _sweep(folder)
            own.mkdir(mode=0o700)
        try:
            yield cls(own)
        finally:
            shutil.rmtree(own, ignore_errors=True)
            own.with_suffix(_LOCK).unlink(missing_ok=True)
            os.close(lock)

    @asynccontextmanager
    async def folder(self) -> AsyncGenerator[Path]:
        """An empty one, removed at the end of the block. Raises StorageUnavailable."""
        path = self._folder / random_hex(16)
        try:
            with told():
                await _to_its_end(path.mkdir, mode=0o700)
            yield path
        finally:
            await _to_its_end(shutil.rmtree, path, ignore_errors=True)

    @asynccontextmanager
    async def file(self) -> AsyncGenerator[Path]:
        """A path with nothing at it; what is there at the end of the block is removed.

        Raises StorageUnavailable.
        """
        path = self._folder / random_hex(16)
        with told():
            self._folder.stat()
        try:
            yield path
        finally:
            if path.exists():
                await _to_its_end(path.unlink, missing_ok=True)


async def write(upload: Upload, path: Path) -> None:
    """All of the upload as this file, to be read only: the kept one itself on the same disk.

    Else a copy, a piece in memory at a time. Raises StorageUnavailable.
    """
    kept = upload.path if isinstance(upload, OnDisk) else None
    if kept is not None and await _to_its_end(_linked, kept, path):
        return
    await upload.seek(0)
    with told():
        await _to_its_end(path.touch, mode=0o600)
        while piece := await upload.read(_PIECE):
            await _to_its_end(_append, path, piece)


@contextmanager
def told() -> Generator[None]:
    """The errors of the disk in words for the caller."""
    try:
        yield
    except OSError as error:
        _log.error("scratch_failed", problem=str(error))
        if error.errno in _FULL:
            raise StorageUnavailable(
                "The server's disk for work under way is full; nothing was changed. Try again "
                "later, or ask your administrator to make room at APP_DATA.",
                reason="storage_full",
                retry_after=60,
            ) from error
        raise StorageUnavailable(retry_after=2) from error


def _linked(kept: Path, path: Path) -> bool:
    try:
        if not stat.S_ISREG(kept.lstat().st_mode):
            return False
        path.hardlink_to(kept)
    except OSError:
        # Gone, on another disk, or on one that knows no links: the copy will tell.
        return False
    return True


def _append(path: Path, piece: bytes) -> None:
    with path.open("ab") as file:
        file.write(piece)


async def _to_its_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, and waited for when cancelled: nothing may be written once a folder is gone."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


@contextmanager
def _held(path: Path) -> Generator[None]:
    """Waits its turn: processes that start together must not sweep each other."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _locked(path: Path) -> int:
    """The system frees it, even after kill -9."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _sweep(folder: Path) -> None:
    swept = 0
    for lock in folder.glob(f"?*{_LOCK}"):
        handle = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            swept += 1
        finally:
            os.close(handle)
    if swept:
        _log.warning("leftover_scratch_deleted", folders=swept)
