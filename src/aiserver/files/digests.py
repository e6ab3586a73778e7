"""What an upload says, in short: enough to tell two apart, and to name its bytes."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

from aiserver.contract.uploads import Upload

PIECE = 1024 * 1024


class Digest(NamedTuple):
    """`sha256` in hex, `size` in bytes."""

    sha256: str
    size: int


async def pieces(upload: Upload) -> AsyncGenerator[bytes]:
    """All of it from the start, PIECE bytes at a time."""
    await upload.seek(0)
    while piece := await upload.read(PIECE):
        yield piece


async def digest_of(upload: Upload) -> Digest:
    """Reads all of it; the next reader starts at its beginning again."""
    hashed, size = hashlib.sha256(), 0
    async for piece in pieces(upload):
        size += len(piece)
        # A piece takes a millisecond or more.
        await asyncio.to_thread(hashed.update, piece)
    await upload.seek(0)
    return Digest(hashed.hexdigest(), size)


def told_apart(
    members: bytes, uploads: Mapping[str, Upload], digests: Mapping[str, Digest]
) -> bytes:
    """A hash over one of the members and what came with them, in whatever order it was sent."""
    hashed = hashlib.sha256(members)
    for field in sorted(uploads):
        name = (uploads[field].filename or "").encode("utf-8", "replace")
        for part in (field.encode(), name, digests[field].sha256.encode()):
            hashed.update(len(part).to_bytes(8) + part)
    return hashed.digest()
