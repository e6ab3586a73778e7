"""How many jobs wait, in all and of each key, counted in memory against their bounds."""

from collections.abc import Mapping

from aiserver.contract.errors import TooBusy
from aiserver.jobs.store import Bounds


class Depth:
    """For one process that sees every change; `reset` mends what another one did."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._by_key: dict[int, int] = {}
        self.total = 0

    def of(self, key_id: int) -> int:
        return self._by_key.get(key_id, 0)

    def room(self) -> int:
        """How many more may wait, as far as the bound of all goes."""
        return max(self._bounds.queued - self.total, 0) if self._bounds.queued else 2**31

    def reserve(self, key_id: int) -> None:
        """Counts one that is about to be stored. Raises TooBusy."""
        bounds = self._bounds
        if bounds.queued and self.total >= bounds.queued:
            raise TooBusy(
                f"The queue is full: {bounds.queued} jobs wait. Try again later.",
                retry_after=bounds.retry_after,
            )
        if bounds.queued_per_key and self.of(key_id) >= bounds.queued_per_key:
            raise TooBusy(
                f"This API key has {bounds.queued_per_key} jobs waiting, its limit. "
                "Try again when some are done, or cancel some.",
                retry_after=bounds.retry_after,
            )
        self.move(key_id, 1)

    def move(self, key_id: int, count: int) -> None:
        self.total += count
        left = self.of(key_id) + count
        if left > 0:
            self._by_key[key_id] = left
        else:
            self._by_key.pop(key_id, None)

    def apply(self, moves: Mapping[int, int]) -> None:
        for key_id, count in moves.items():
            self.move(key_id, count)

    def reset(self, by_key: Mapping[int, int]) -> None:
        self._by_key = dict(by_key)
        self.total = sum(by_key.values())
