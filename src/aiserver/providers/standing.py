"""Work that can wait stands in the line of calls, as one caller for each set of providers."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from aiserver.contract.errors import ApiError
from aiserver.providers.choice import Candidate
from aiserver.providers.lease import Lease
from aiserver.providers.waiting import Line, Waiter

# A model, and the provider that is wished for or "".
Wanted = tuple[str, str]


class Standing:
    """Neither keeps the other out; the turn is the most urgent work's, whatever came first."""

    def __init__(self, line: Line, able: Callable[[Waiter], Iterable[Candidate]]) -> None:
        self._line = line
        self._able = able
        self._waiters: dict[Wanted, Waiter] = {}
        self._leases: dict[Wanted, Lease] = {}

    def take(self, name: Wanted) -> Lease | None:
        """The slot, if this had its turn."""
        return self._leases.pop(name, None)

    def watch(self, names: Sequence[Wanted], freed: Callable[[], None]) -> None:
        """What waits, the most urgent first; what was said before is forgotten, its slots too.

        `freed` is called once one of them had its turn, or waits in vain.
        """
        while self._leases:
            self._leases.popitem()[1].release()
        before, self._waiters = self._waiters, {}
        covered: set[Candidate] = set()
        for name in names:
            places = self._places(name)
            if not places <= covered:
                covered |= places
                waiter = _handed_on(before, name, places) or self._joined(name, freed)
                self._waiters[name] = waiter
        for waiter in before.values():
            self._line.leave(waiter)
            waiter.give_up()

    def _places(self, name: Wanted) -> set[Candidate]:
        """Nobody who is known serves it: none."""
        try:
            return set(self._able(_waiter(name)))
        except ApiError:
            return set()

    def _joined(self, name: Wanted, freed: Callable[[], None]) -> Waiter:
        waiter = _waiter(name)
        self._line.join(waiter)
        waiter.turn.add_done_callback(partial(self._turned, waiter, freed))
        return waiter

    def _turned(
        self, waiter: Waiter, freed: Callable[[], None], turn: "asyncio.Future[Lease]"
    ) -> None:
        name = (waiter.model, waiter.provider or "")
        if self._waiters.get(name) is waiter:
            del self._waiters[name]
            if turn.exception() is None:
                self._leases[name] = turn.result()
            freed()


def _waiter(name: Wanted) -> Waiter:
    model, provider = name
    return Waiter(model, provider or None, ())


def _handed_on(before: dict[Wanted, Waiter], name: Wanted, places: set[Candidate]) -> Waiter | None:
    """The place of this, or of what stood for the same providers."""
    for other in (name, *before):
        waiter = before.get(other)
        if waiter is not None and (
            other == name or (set(waiter.at) == places and not waiter.turn.done())
        ):
            waiter.model, waiter.provider = name[0], name[1] or None
            return before.pop(other)
    return None
