"""Places in line and the room that is left in it, as far as one transaction must know them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiserver.jobs.job import Job, NewJob
from aiserver.jobs.store import Bounds
from aiserver.jobs.store.depth import Depth
from aiserver.jobs.store.postgres_rows import ALL_KEYS, columns
from aiserver.kit.postgres import Transaction

# Who puts jobs in line sees what the last one did: places, bounds and names go one by one.
IN_TURN = "SELECT pg_advisory_xact_lock(4611734512290818)"

# what 0: jobs that wait, by key; 1: a key's last tag; 2: the smallest tag in a line.
_KNOWN = """
SELECT 0 AS what, k.i, sum(w.waiting)::bigint AS number
  FROM unnest($1::int[]) WITH ORDINALITY k(key_id, i) JOIN job_waiting w USING (key_id)
  GROUP BY k.i
UNION ALL
SELECT 1, t.i, f.tag
  FROM unnest($2::text[], $3::text[], $4::int[]) WITH ORDINALITY t(kind, model, key_id, i)
  JOIN fair f USING (kind, model, key_id)
UNION ALL
SELECT 2, l.i, (
    SELECT min(vtag) FROM jobs j WHERE j.state = 'Queued'
    AND j.kind = l.kind AND j.model = l.model AND j.priority = l.priority)
  FROM unnest($5::text[], $6::text[], $7::int[]) WITH ORDINALITY l(kind, model, priority, i)
"""


# The parameters' numbers: kinds, models, keys, tags.
TAG = """INSERT INTO fair (kind, model, key_id, tag)
  SELECT * FROM unnest(${0}::text[], ${1}::text[], ${2}::int[], ${3}::bigint[])
  ON CONFLICT (kind, model, key_id) DO UPDATE SET tag = excluded.tag"""


class Place(NamedTuple):
    """Where a key's job waits."""

    kind: str
    model: str
    priority: int
    key_id: int


def place_of(job: NewJob | Job) -> Place:
    return Place(job.kind, job.model, job.priority, job.key_id)


class Line:
    """`learn` first; what changed is `entered` and `tags`, to be stored in the transaction."""

    def __init__(self, bounds: Bounds) -> None:
        self.depth = Depth(bounds)
        self.entered: Counter[int] = Counter()
        self.tagged: dict[tuple[str, str, int], int] = {}
        self._last: dict[tuple[str, str, int], int] = {}
        self._smallest: dict[tuple[str, str, int], int] = {}

    async def learn(self, transaction: Transaction, places: Sequence[Place]) -> None:
        keys = sorted({place.key_id for place in places} | {ALL_KEYS})
        tags = sorted({(p.kind, p.model, k) for p in places for k in (p.key_id, ALL_KEYS)})
        lines = sorted({place[:3] for place in places})
        waiting: dict[int, int] = {}
        rows = await transaction.rows(_KNOWN, keys, *columns(tags, 3), *columns(lines, 3))
        for what, i, number in rows:
            if what == 0:
                waiting[keys[i - 1]] = number
            elif what == 1:
                self._last[tags[i - 1]] = number
            elif number is not None:
                self._smallest[lines[i - 1]] = number
        total = waiting.pop(ALL_KEYS, 0)
        self.depth.reset(waiting)
        self.depth.total = total

    def enter(self, key_id: int) -> None:
        """One more that waits. Raises TooBusy."""
        self.depth.reserve(key_id)
        self.entered[key_id] += 1
        self.entered[ALL_KEYS] += 1

    def behind_all(self, place: Place) -> int:
        """For what begins at once and takes nobody's place, should it come back to the line."""
        return self._last.get((place.kind, place.model, ALL_KEYS), 0) + 1

    def next(self, place: Place) -> int:
        """The key's next tag."""
        kind, model, _, key_id = place
        own, highest = (kind, model, key_id), (kind, model, ALL_KEYS)
        # Who comes to an empty line begins behind all that was ever in it.
        smallest = self._smallest.setdefault(place[:3], self._last.get(highest, 0))
        tag = max(smallest, self._last.get(own, 0)) + 1
        self._last[own] = self.tagged[own] = tag
        self._last[highest] = self.tagged[highest] = max(tag, self._last.get(highest, 0))
        return tag

    def tags(self) -> list[list[Any]]:
        """For TAG."""
        return columns([(*place, tag) for place, tag in sorted(self.tagged.items())], 4)
