"""A file as an answer: what the door needs to send all of it, a part of it, or nothing new."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

# How long the address of a file's bytes in the object store opens them.
ELSEWHERE_SECONDS = 300


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """`read(start, end)` gives these bytes in pieces; `modified` in ms since 1970.

    `lasting`: the same address never has other bytes. `public`: caches of others may keep it.
    `vary` names the header of the request that the bytes depend on.
    `content` is all of it where that is in memory already.
    `elsewhere` asks for an address in the object store, good for ELSEWHERE_SECONDS.
    """

    read: Callable[[int, int], AsyncGenerator[bytes]]
    size: int
    sha256: str
    content_type: str
    name: str
    modified: int
    public: bool = False
    lasting: bool = True
    attachment: bool = False
    vary: str | None = None
    content: bytes | None = None
    elsewhere: Callable[[], Awaitable[str | None]] | None = None
