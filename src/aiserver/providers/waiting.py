"""Callers that wait for a slot: first come first served, each at every provider it could use."""

import asyncio
from collections.abc import Callable, Collection, Iterable

from aiserver.contract.errors import ApiError
from aiserver.kit.clock import Clock
from aiserver.providers.choice import Candidate, NobodyLeft
from aiserver.providers.lease import Lease


class Waiter:
    """One caller; `turn` holds its lease, or what says that it waits in vain."""

    def __init__(self, model: str, provider: str | None, tried: Collection[int]) -> None:
        self.model = model
        self.provider = provider
        self.tried = frozenset(tried)
        self.turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.at: list[Candidate] = []

    def give_up(self) -> None:
        """A slot that came too late goes to the next in line."""
        self.turn.cancel()
        if not self.turn.cancelled() and self.turn.exception() is None:
            self.turn.result().release()


class Line:
    """A slot goes straight to the caller that has waited longest of those who can use it.

    `serve` chooses for one of them, `able` says who could serve it. So long as the line is told
    of every change, no free slot is left that a caller in it could use.
    """

    def __init__(
        self,
        serve: Callable[[Waiter], Lease | None],
        able: Callable[[Waiter], Iterable[Candidate]],
        clock: Clock,
    ) -> None:
        self.waiting: dict[Waiter, None] = {}
        self._serve = serve
        self._able = able
        self._clock = clock
        self._at: dict[Candidate, dict[Waiter, None]] = {}
        self._alarms: dict[Candidate, asyncio.TimerHandle] = {}

    def join(self, waiter: Waiter) -> None:
        self.waiting[waiter] = None
        self._stand(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Again: does nothing."""
        self.waiting.pop(waiter, None)
        self._step_back(waiter)

    def freed(self, candidate: Candidate) -> None:
        """A slot of it became free."""
        while candidate.free and (waiting := self._at.get(candidate)):
            if not self._offer(next(iter(waiting))):
                # Not for the first one, but perhaps for one who wants another model.
                self.changed(candidate)
                return

    def changed(self, candidate: Candidate) -> None:
        """Its health is another: it may serve some now, and some may have nobody left."""
        for waiter in tuple(self._at.get(candidate, ())):
            self._offer(waiter)
        if candidate in self._at:
            self._arm(candidate)

    def all_changed(self) -> None:
        """Providers came, went or became others."""
        for waiter in tuple(self.waiting):
            self._step_back(waiter)
            if not self._offer(waiter):
                self._stand(waiter)

    def _offer(self, waiter: Waiter) -> bool:
        """Whether it waits no longer."""
        if not waiter.turn.done():
            try:
                lease = self._serve(waiter)
            except (ApiError, NobodyLeft) as error:
                waiter.turn.set_exception(error)
            else:
                if lease is None:
                    return False
                waiter.turn.set_result(lease)
        self.leave(waiter)
        return True

    def _stand(self, waiter: Waiter) -> None:
        waiter.at = [c for c in self._able(waiter) if c.id not in waiter.tried]
        for candidate in waiter.at:
            self._at.setdefault(candidate, {})[waiter] = None
            self._arm(candidate)

    def _step_back(self, waiter: Waiter) -> None:
        for candidate in waiter.at:
            waiting = self._at[candidate]
            del waiting[waiter]
            if not waiting:
                del self._at[candidate]
                if (alarm := self._alarms.pop(candidate, None)) is not None:
                    alarm.cancel()
        waiter.at = []

    def _arm(self, candidate: Candidate) -> None:
        """Time alone can make a provider usable again; nothing else would tell of it."""
        if candidate.health.calm or candidate in self._alarms:
            return
        now = self._clock.monotonic()
        at = candidate.health.changes_at(now)
        if at is not None:
            loop = next(iter(self._at[candidate])).turn.get_loop()
            self._alarms[candidate] = loop.call_later(at - now, self._rung, candidate)

    def _rung(self, candidate: Candidate) -> None:
        del self._alarms[candidate]
        self.changed(candidate)
