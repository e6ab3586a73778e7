"""Slots of transforms: as many as there are, given back once, and told of."""

from aiserver.transforms.slots import CoreSlots


def test_no_more_are_given_than_there_are() -> None:
    slots = CoreSlots(2)
    held = [slots.reserve("", "") for _ in range(3)]
    assert [slot is not None for slot in held] == [True, True, False]


def test_slot_given_back_twice_counts_once() -> None:
    slots = CoreSlots(1)
    slot = slots.reserve("", "")
    assert slot is not None
    slot.release()
    slot.release()
    assert slots.left == 1


def test_who_watches_is_told_once_of_the_next_free_slot() -> None:
    slots, told = CoreSlots(2), list[int]()
    first, second = slots.reserve("", ""), slots.reserve("", "")
    assert first is not None
    assert second is not None
    slots.watch([("", "")], lambda: told.append(slots.left))
    first.release()
    second.release()
    assert told == [1]
