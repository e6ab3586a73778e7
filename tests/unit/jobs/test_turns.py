"""Between models that share slots, keys take turns however many models each of them uses."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.contract.trace import Trace
from aiserver.jobs.store import Group
from aiserver.jobs.turns import Name, Turns


class FreeSlot:
    worker = None

    def give(self, trace: Trace) -> None: ...

    def release(self) -> None: ...


def always(kind: str, model: str, provider: str) -> FreeSlot:
    return FreeSlot()


class Queue:
    """Jobs as key ids by model, taken one after the other as a worker takes them."""

    def __init__(self, **models: list[int]) -> None:
        self.models = models
        self.turns = Turns()

    def groups(self) -> list[Group]:
        return [
            Group("chat", model, "", len(keys), 0, tuple(keys[:4]))
            for model, keys in self.models.items()
            if keys
        ]

    def take(self, space: int = 1, reserve: Callable[..., FreeSlot | None] = always) -> list[int]:
        shares, _ = self.turns.share(self.groups(), space, reserve)
        keys = [self.models[model].pop(0) for (_, model, _), s in shares.items() for _ in s]
        for key in keys:
            self.turns.began(key)
        return keys

    def all(self) -> list[int]:
        return [key for _ in range(sum(map(len, self.models.values()))) for key in self.take()]


def test_key_with_many_models_has_no_larger_share() -> None:
    queue = Queue(**{f"m{n}": [1] * 3 for n in range(20)}, other=[2] * 5)
    order = queue.all()
    assert max(place for place, key in enumerate(order) if key == 2) <= 9


def test_key_behind_another_in_its_model_has_its_share_too() -> None:
    queue = Queue(**{f"m{n}": [1] * 3 for n in range(20)}, both=[1, 2, 1, 2, 1, 2, 2, 2])
    order = queue.all()
    assert max(place for place, key in enumerate(order) if key == 2) <= 12


def test_one_key_has_its_models_in_turn() -> None:
    queue = Queue(a=[1] * 3, b=[1] * 3)
    taken: list[str] = []
    for _ in range(4):
        before = {model: len(keys) for model, keys in queue.models.items()}
        queue.take()
        taken += [m for m, keys in queue.models.items() if len(keys) < before[m]]
    assert taken == ["a", "b", "a", "b"]


def test_newcomer_does_not_make_up_for_the_past() -> None:
    queue = Queue(a=[1] * 100)
    for _ in range(50):
        queue.take()
    queue.models["b"] = [2] * 50
    order = [key for _ in range(20) for key in queue.take()]
    assert 9 <= order.count(2) <= 11


def test_urgent_comes_first_whoever_it_is() -> None:
    groups = [Group("chat", "a", "", 1, 0, (2,)), Group("chat", "b", "", 2, 7, (1, 1))]
    turns = Turns()
    shares, _ = turns.share(groups, 2, always)
    assert {name[1]: len(slots) for name, slots in shares.items()} == {"b": 2}


def test_group_that_gets_no_slot_is_told_once() -> None:
    groups = [Group("chat", "a", "", 9, 0, (1,)), Group("chat", "b", "", 9, 0, (1,))]
    left = count(1)

    def reserve(kind: str, model: str, provider: str) -> FreeSlot | None:
        return FreeSlot() if model == "a" and next(left) < 4 else None

    shares, blocked = Turns().share(groups, 100, reserve)
    assert [len(slots) for slots in shares.values()] == [3]
    assert sorted(blocked) == [("chat", "a", ""), ("chat", "b", "")]


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2), st.lists(st.integers(1, 5)))),
    st.integers(0, 20),
)
def test_no_more_is_shared_out_than_there_is(
    given_groups: list[tuple[int, int, list[int]]], space: int
) -> None:
    groups = [
        Group("chat", f"m{n}", "", ready, priority, tuple(keys[:4]))
        for n, (ready, priority, keys) in enumerate(given_groups)
    ]
    shares, blocked = Turns().share(groups, space, always)
    ready: dict[Name, int] = {("chat", g.model, ""): g.ready for g in groups}
    assert all(len(slots) <= ready[name] for name, slots in shares.items())
    assert sum(map(len, shares.values())) == min(space, sum(ready.values()))
    assert blocked == []


@pytest.mark.parametrize("space", [1, 3, 10])
def test_shares_are_equal_however_many_slots_come_at_once(space: int) -> None:
    queue = Queue(a=[1] * 90, b=[1] * 90, c=[2] * 90)
    order = [key for _ in range(60 // space) for key in queue.take(space)]
    assert abs(order.count(1) - order.count(2)) <= 2
