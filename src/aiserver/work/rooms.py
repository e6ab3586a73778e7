"""Where jobs can run: the rooms that do the work of each kind, asked for a slot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from aiserver.contract.operation import Handler
from aiserver.jobs.attempt import Slot
from aiserver.jobs.turns import Name
from aiserver.work.twins import Placing

# A model, and the provider that is wished for, if any.
Wanted = tuple[str, str]


class Slots(Protocol):
    """The slots of one kind of work."""

    def reserve(self, model: str, provider: str) -> Slot | None: ...

    def watch(self, names: Sequence[Wanted], freed: Callable[[], None]) -> None: ...


class QueuedRoom(Protocol):
    """Operations that can be queued, with who answers them and where their jobs run."""

    def handlers(self) -> Mapping[type[msgspec.Struct], Handler]: ...

    def slots(self) -> Mapping[str, Slots]:
        """By kind of job."""
        ...

    def places(self) -> Mapping[str, Placing]:
        """By name of operation; one without a model needs none."""
        ...


class Rooms:
    """By kind of job; a kind that nobody does here waits for another process."""

    def __init__(self, slots: Mapping[str, Slots]) -> None:
        self._slots = slots

    def reserve(self, kind: str, model: str, provider: str) -> Slot | None:
        slots = self._slots.get(kind)
        return None if slots is None else slots.reserve(model, provider)

    def watch(self, names: Sequence[Name], freed: Callable[[], None]) -> None:
        for mine, slots in self._slots.items():
            slots.watch([(model, wish) for kind, model, wish in names if kind == mine], freed)


def slots_of(rooms: Iterable[QueuedRoom]) -> dict[str, Slots]:
    return {kind: slots for room in rooms for kind, slots in room.slots().items()}


def places_of(rooms: Iterable[QueuedRoom]) -> dict[str, Placing]:
    return {name: placing for room in rooms for name, placing in room.places().items()}
