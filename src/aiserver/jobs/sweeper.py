"""Does what falls due: in its moment, and every two seconds for what nobody told of."""

import asyncio

from aiserver.jobs.queue import Queue
from aiserver.jobs.store import Swept
from aiserver.jobs.worker import HEARTBEAT_SECONDS
from aiserver.kit.clock import Clock

SWEEP_SECONDS = 2.0
# Between rounds, however much falls due one after the other.
_LEAST_SECONDS = 0.05
# The store was away, or this process was, if no round ended for so long.
AWAY_SECONDS = 3 * SWEEP_SECONDS
# Then whoever held a lease has so long to say that it is alive.
SPARED_SECONDS = 2 * HEARTBEAT_SECONDS


class Sweeper:
    """`round` is to be run every SWEEP_SECONDS, and when `soon` is set."""

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self.soon = asyncio.Event()
        self._queue = queue
        self._clock = clock
        self._ended = clock.monotonic()
        self._spare_until = self._ended
        self._timer: asyncio.TimerHandle | None = None

    async def round(self) -> None:
        """All that is due. Raises StorageError."""
        began = self._clock.monotonic()
        if began - self._ended > AWAY_SECONDS:
            self._spare_until = began + SPARED_SECONDS
        spare = began < self._spare_until
        swept = await self._queue.sweep(spare_leases=spare)
        while swept.more:
            swept = await self._queue.sweep(spare_leases=spare)
        self._ended = self._clock.monotonic()
        if not spare:
            self._arm(swept)

    def planned(self) -> None:
        """Something was stored that falls due at a time of its own."""
        soonest = asyncio.get_running_loop().time() + _LEAST_SECONDS
        if self._timer is None or self._timer.when() > soonest:
            self._wake_in(_LEAST_SECONDS)

    def _arm(self, swept: Swept) -> None:
        if swept.again is not None:
            wait = swept.again / 1000 - self._clock.now().timestamp()
            if wait < SWEEP_SECONDS:
                self._wake_in(max(wait, _LEAST_SECONDS))

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.soon.set()
