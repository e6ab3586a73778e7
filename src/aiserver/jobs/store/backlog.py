"""Keeps one key from piling up callbacks without end for receivers that do not take them."""

from aiserver.contract.errors import TooBusy
from aiserver.jobs.store.outbox import Outbox
from aiserver.kit.clock import Clock

MOST_PENDING_PER_KEY = 10_000
# A count is believed for so long: what is queued meanwhile is bounded by the queue.
FRESH_SECONDS = 1.0
_RETRY_AFTER = 60.0


class Backlog:
    """For calls that name a `replyTo`, before they are queued."""

    def __init__(self, outbox: Outbox, clock: Clock, *, most: int = MOST_PENDING_PER_KEY) -> None:
        self._outbox = outbox
        self._clock = clock
        self._most = most
        self._full: dict[int, bool] = {}
        self._since = clock.monotonic()

    async def admit(self, key_id: int) -> None:
        """Raises TooBusy while this key has too many callbacks pending, or StorageError."""
        now = self._clock.monotonic()
        if now - self._since >= FRESH_SECONDS:
            # Only the keys of the last moment are kept.
            self._full, self._since = {}, now
        full = self._full.get(key_id)
        if full is None:
            full = await self._outbox.pending(key_id, most=self._most) >= self._most
            self._full[key_id] = full
        if full:
            raise TooBusy(
                f"This API key has {self._most} callbacks waiting for receivers that did not take "
                "them, its limit. Mend the receivers, see QueryDeliveries, and try again later, or "
                "leave out 'replyTo' and ask for the job's state instead.",
                retry_after=_RETRY_AFTER,
            )
