"""What turns the paths of results into addresses, told to the room of jobs by those above."""

from typing import Protocol


class Links(Protocol):
    """`base` is what a caller reached the server by, where its own address is not set."""

    async def of(self, url: str, *, base: str = "") -> str:
        """The address of a result of ours; others stay as they are. Raises StorageError."""
        ...

    async def written(self, body: bytes, *, base: str = "") -> bytes:
        """JSON with the addresses of what it lists in full; anything else as it is."""
        ...
