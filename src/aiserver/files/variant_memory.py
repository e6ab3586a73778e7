"""The small variants that are asked for most, held in memory: no thread and no disk for them."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MOST_BYTES = 32 * 2**20
MOST_HELD = 2000

K = TypeVar("K", bound=Hashable)


class VariantMemory(Generic[K]):
    """At most `most_bytes` and MOST_HELD, without those asked for longest ago."""

    def __init__(
        self, *, most_bytes: int = MOST_BYTES, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._held: OrderedDict[K, bytes] = OrderedDict()
        self._used: dict[K, int] = {}
        self._bytes = 0

    def get(self, key: K) -> bytes | None:
        content = self._held.get(key)
        if content is not None:
            self._held.move_to_end(key)
            self._used[key] = self._clock()
        return content

    def put(self, key: K, content: bytes) -> None:
        self.drop(key)
        self._held[key] = content
        self._bytes += len(content)
        while self._bytes > self._most_bytes or len(self._held) > MOST_HELD:
            self.drop(next(iter(self._held)))

    def drop(self, key: K) -> None:
        self._bytes -= len(self._held.pop(key, b""))
        self._used.pop(key, None)

    def drop_if(self, wanted: Callable[[K], bool]) -> None:
        for key in [key for key in self._held if wanted(key)]:
            self.drop(key)

    def take_used(self) -> dict[K, int]:
        """When each was last asked for here since this was called, in ns since 1970."""
        used, self._used = self._used, {}
        return used
