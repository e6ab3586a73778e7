"""Where jobs can run: the rooms that do the work of each kind, asked for a slot."""

from collections.abc import Callable, Mapping
from typing import Protocol

from aiserver.jobs.worker import Slot


class Slots(Protocol):
    """The slots of one kind of work."""

    def reserve(self, model: str, provider: str) -> Slot | None: ...

    def watch(self, freed: Callable[[], None]) -> None: ...


class Rooms:
    """By kind of job; a kind that nobody does here waits for another process."""

    def __init__(self, slots: Mapping[str, Slots]) -> None:
        self._slots = slots

    def reserve(self, kind: str, model: str, provider: str) -> Slot | None:
        slots = self._slots.get(kind)
        return None if slots is None else slots.reserve(model, provider)

    def watch(self, freed: Callable[[], None]) -> None:
        for slots in self._slots.values():
            slots.watch(freed)
