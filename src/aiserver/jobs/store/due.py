"""Chooses which callbacks to deliver next, from rows that a store found due."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from aiserver.jobs.store.outbox import MOST_WALKED

# Looked at first: more than one round takes, and cheap enough for the loop's own thread.
FEW = 256

Found = tuple[Any, ...]


class Look(NamedTuple):
    """As the members of `Outbox.take`; `now` in ms."""

    now: int
    most: int
    per_receiver: int
    per_key: int | None
    busy: Collection[str]
    busy_keys: Collection[int]


def chosen(rows: Sequence[Found], look: Look) -> list[str]:
    """The ids of the first ones, so many of one key at most; a row is due, id, key_id, receiver."""
    of_key: Counter[int] = Counter()
    ids: list[str] = []
    for _, id, key_id, _ in rows:
        if len(ids) < look.most and (look.per_key is None or of_key[key_id] < look.per_key):
            of_key[key_id] += 1
            ids.append(id)
    return ids


class Turn:
    """Remembers `after` which receiver the walk over them goes on, so that each has its turn."""

    def __init__(self) -> None:
        self.after = ""

    def receivers(self, walked: Sequence[Found], look: Look) -> list[str]:
        """Those to take from, at most `look.most`.

        A row is a receiver, its place in the walk, and when its first delivery is due and of which
        key; the last row of a full walk is among them whether it is due or not.
        """
        busy, busy_keys = {*look.busy}, {*look.busy_keys}
        due = [(row[0], row[3]) for row in walked if row[2] <= look.now and row[0] not in busy]
        free = [name for name, key_id in due if key_id not in busy_keys]
        # Behind the delivery of a busy key there may be one of another.
        names = free or [name for name, _ in due]
        full = bool(walked) and walked[-1][1] == MOST_WALKED
        self.after = walked[-1][0] if full else ""
        if len(names) > look.most:
            self.after = names[look.most - 1]
        return names[: look.most]
