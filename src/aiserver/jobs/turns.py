"""Whose job comes next where jobs of several models wait for the same slots."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence

from aiserver.jobs.attempt import Slot
from aiserver.jobs.store import Group

# A group of jobs: kind, model, provider.
Name = tuple[str, str, str]
Shares = dict[Name, list[Slot]]


class Turns:
    """Counts the jobs of each key that began while it had others waiting.

    Within a group the store has the keys in turn; here they are between groups, of which one key
    may have many.
    """

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._last: Name = ("", "", "")

    def began(self, key_id: int) -> None:
        if key_id in self._begun:
            self._begun[key_id] += 1

    def share(
        self, groups: Sequence[Group], space: int, reserve: Callable[[str, str, str], Slot | None]
    ) -> tuple[Shares, list[Name]]:
        """A slot for one group after the other, and the groups that could use one more.

        The most urgent comes first, then who has the key with the fewest, then each in turn.
        """
        self._join({key for group in groups for key in group.keys})
        begun, shares, blocked = Counter(self._begun), Shares(), list[Name]()
        # Who had the last slot comes last next time.
        line = sorted(groups, key=lambda g: (_name(g) <= self._last, _name(g)))
        heap = [(-g.priority, _fewest(g, 0, begun), place, g) for place, g in enumerate(line)]
        heapq.heapify(heap)
        while heap and space > 0:
            priority, fewest, place, group = heapq.heappop(heap)
            name, taken = _name(group), len(shares.get(_name(group), ()))
            if fewest != (now := _fewest(group, taken, begun)):
                heapq.heappush(heap, (priority, now, place, group))
                continue
            if (slot := reserve(*name)) is None:
                blocked.append(name)
                continue
            shares.setdefault(name, []).append(slot)
            self._last, space = name, space - 1
            if group.keys:
                begun[group.keys[taken % len(group.keys)]] += 1
            if taken + 1 < group.ready:
                again = _fewest(group, taken + 1, begun)
                heapq.heappush(heap, (priority, again, place + len(line), group))
        return shares, blocked

    def _join(self, keys: set[int]) -> None:
        """Who comes anew begins with the fewest that anyone has, and no count grows for ever."""
        known = [count for key, count in self._begun.items() if key in keys]
        least = min(known, default=0)
        self._begun = {key: self._begun.get(key, least) - least for key in keys}


def _name(group: Group) -> Name:
    return group.kind, group.model, group.provider


def _fewest(group: Group, taken: int, begun: Counter[int]) -> int:
    """Of the keys whose jobs come next in it."""
    keys = group.keys[taken:] or group.keys
    return min((begun[key] for key in keys), default=0)
