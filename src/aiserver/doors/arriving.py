"""A body that is a file: read by its handler as it arrives, and never held whole."""

import io
from collections.abc import AsyncGenerator


class ArrivingFile:
    """Implements `Upload`, from start to end and only once; `size` is what was announced."""

    filename: str | None = None

    def __init__(
        self, chunks: AsyncGenerator[bytes], *, content_type: str | None, size: int | None
    ) -> None:
        self._chunks = chunks
        self.content_type = content_type
        self.size = size
        self._rest = b""
        self._at = 0

    async def read(self, size: int = -1) -> bytes:
        pieces, found = [self._rest], len(self._rest)
        while size < 0 or found < size:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            pieces.append(chunk)
            found += len(chunk)
        read = b"".join(pieces)
        piece, self._rest = (read, b"") if size < 0 else (read[:size], read[size:])
        self._at += len(piece)
        return piece

    async def seek(self, offset: int) -> None:
        if offset != self._at:
            raise io.UnsupportedOperation("a body cannot be read twice")
