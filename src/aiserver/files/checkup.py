"""Reads every kept file again and tells which are not what they were."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import NamedTuple

from aiserver.files.shelf import Shelf
from aiserver.files.table import StoredFile

MISSING = "missing"
CHANGED = "changed"


class Checked(NamedTuple):
    """`problem` is MISSING, CHANGED or None."""

    file: StoredFile
    problem: str | None


async def checked(shelf: Shelf, *, quick: bool = False) -> AsyncGenerator[Checked]:
    """Every file that can be read, `quick` by its size alone.

    Raises StorageUnavailable where the bytes cannot be asked for at all.
    """
    last = ""
    while page := await shelf.table.after(last):
        for file in page:
            problem = await _problem(shelf, file, quick=quick)
            # One that was deleted meanwhile has none.
            if problem is None or await shelf.table.find(file.id) is not None:
                yield Checked(file, problem)
        last = page[-1].id


async def _problem(shelf: Shelf, file: StoredFile, *, quick: bool) -> str | None:
    blobs = shelf.storage.of(file.kind)
    size = await blobs.size(file.path)
    if size is None:
        return MISSING
    if size != file.size:
        return CHANGED
    if quick:
        return None
    hashed, at = hashlib.sha256(), 0
    while at < size:
        piece = await blobs.read(file.path, at, min(blobs.piece, size - at))
        await asyncio.to_thread(hashed.update, piece)
        at += len(piece)
    return None if hashed.hexdigest() == file.sha256 else CHANGED
