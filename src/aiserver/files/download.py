"""A file as an answer: what the door needs to send all of it, a part of it, or nothing new."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from aiserver.contract.caller import Caller

# How long the address of a file's bytes in the object store opens them.
ELSEWHERE_SECONDS = 300

Again = Callable[[Caller], bytes | None]


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """`read(start, end)` gives these bytes in pieces; `modified` in ms since 1970.

    `lasting`: the same address never has other bytes. `public`: caches of others may keep it.
    `vary` names the header of the request that the bytes depend on.
    `content` is all of it where that is in memory already.
    `again` has all of it for the same request of the same caller later, where it can tell at once
    that the answer is still the same.
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
    again: Again | None = None
    elsewhere: Callable[[], Awaitable[str | None]] | None = None
