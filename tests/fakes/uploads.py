"""Uploads that were never sent: bytes in memory, or as many as a test asks for."""


class FakeUpload:
    """Implements `Upload`."""

    def __init__(
        self, content: bytes, filename: str | None = "a.png", content_type: str | None = None
    ) -> None:
        self.filename = filename
        self.content_type = content_type
        self._content = content
        self._at = 0

    @property
    def size(self) -> int | None:
        return len(self._content)

    async def read(self, size: int = -1) -> bytes:
        end = len(self._content) if size < 0 else self._at + size
        piece = self._content[self._at : end]
        self._at += len(piece)
        return piece

    async def seek(self, offset: int) -> None:
        self._at = offset


class LongUpload(FakeUpload):
    """`size` zeros that nobody holds; `largest` is the most that was asked for at once."""

    def __init__(self, size: int) -> None:
        super().__init__(b"", "long.bin")
        self._size = size
        self.largest = 0

    @property
    def size(self) -> int | None:
        return self._size

    async def read(self, size: int = -1) -> bytes:
        wanted = self._size if size < 0 else size
        self.largest = max(self.largest, wanted)
        piece = bytes(min(wanted, self._size - self._at))
        self._at += len(piece)
        return piece
