"""Room for transforms: as many at once as there are cores to work on."""

from collections.abc import Callable, Sequence

from aiserver.contract.trace import Trace


class CoreSlot:
    """Room for one transform until it is released."""

    worker = None

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def give(self, trace: Trace) -> None:
        """The job keeps it to its end."""

    def release(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free()


class CoreSlots:
    """`count` of them, for jobs of any key: the store claims fairly between keys."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._waiting: Callable[[], None] | None = None

    @property
    def left(self) -> int:
        return self._left

    def reserve(self, model: str, provider: str) -> CoreSlot | None:
        """None while every core has a transform."""
        if self._left <= 0:
            return None
        self._left -= 1
        return CoreSlot(self._freed)

    def watch(self, names: Sequence[tuple[str, str]], freed: Callable[[], None]) -> None:
        """`freed` is called once, when the next slot is released, if any work is named."""
        self._waiting = freed if names else None

    def _freed(self) -> None:
        self._left += 1
        freed, self._waiting = self._waiting, None
        if freed is not None:
            freed()
