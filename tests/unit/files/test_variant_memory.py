"""Variants in memory: bounded, and their use told."""

from aiserver.files.variant_memory import MOST_HELD, VariantMemory


def test_bytes_are_bounded() -> None:
    memory: VariantMemory[int] = VariantMemory(most_bytes=100)
    for number in range(10):
        memory.put(number, b"x" * 10)
    assert memory.get(0) is not None
    memory.put(10, b"x" * 10)
    assert memory.get(1) is None
    assert memory.get(0) is not None
    memory.put(11, b"x" * 101)
    assert [number for number in range(12) if memory.get(number)] == []


def test_number_is_bounded() -> None:
    memory: VariantMemory[int] = VariantMemory()
    for number in range(MOST_HELD + 1):
        memory.put(number, b"x")
    assert memory.get(0) is None
    assert memory.get(1) == b"x"


def test_same_variant_counts_once() -> None:
    memory: VariantMemory[int] = VariantMemory(most_bytes=15)
    memory.put(1, b"x" * 10)
    memory.put(1, b"y" * 10)
    assert memory.get(1) == b"y" * 10


def test_use_is_told_once() -> None:
    times = iter([5, 6, 7])
    memory: VariantMemory[int] = VariantMemory(clock=lambda: next(times))
    for number in (1, 2, 3):
        memory.put(number, b"x")
    for number in (1, 2, 1):
        memory.get(number)
    assert memory.take_used() == {1: 7, 2: 6}
    assert memory.take_used() == {}


def test_dropped_ones_are_gone() -> None:
    memory: VariantMemory[int] = VariantMemory(most_bytes=20)
    for number in (1, 2):
        memory.put(number, b"x" * 10)
    memory.drop_if(lambda number: number == 1)
    memory.put(3, b"x" * 10)
    assert [memory.get(number) is None for number in (1, 2, 3)] == [True, False, False]
