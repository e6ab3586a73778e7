"""Finds and takes jobs that are ready, and keeps the leases of those that run."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from aiserver.jobs.job import JOB_COLUMNS, MOST_LOGGED, MOST_STATUS, Fence, Job
from aiserver.jobs.store import MOST_COUNTED, MOST_ROWS, Beat, Group, Progress, Want
from aiserver.jobs.store.postgres_rows import ALL_KEYS, columns, job, text
from aiserver.kit.postgres import ConnectionCut, Postgres

_MOST_READY, _MOST_KEYS = 100, 4
_JOB = ", ".join(f"j.{name}" for name in JOB_COLUMNS)
# From head to head through the index; DISTINCT would read every job.
_GROUPS = f"""
WITH RECURSIVE heads AS (
  (SELECT kind, model, provider FROM jobs WHERE state = 'Queued'
    ORDER BY kind, model, provider LIMIT 1)
  UNION ALL
  SELECT n.* FROM heads h CROSS JOIN LATERAL (
    SELECT kind, model, provider FROM jobs WHERE state = 'Queued'
    AND (kind, model, provider) > (h.kind, h.model, h.provider)
    ORDER BY kind, model, provider LIMIT 1) n
)
SELECT h.kind, h.model, h.provider, (SELECT count(*) FROM (
    SELECT 1 FROM jobs WHERE state = 'Queued'
    AND kind = h.kind AND model = h.model AND provider = h.provider LIMIT {_MOST_READY}) few),
  (SELECT priority FROM jobs WHERE state = 'Queued'
    AND kind = h.kind AND model = h.model AND provider = h.provider
    ORDER BY priority DESC LIMIT 1),
  ARRAY(SELECT key_id FROM jobs WHERE state = 'Queued'
    AND kind = h.kind AND model = h.model AND provider = h.provider
    ORDER BY priority DESC, vtag, id LIMIT {_MOST_KEYS})
FROM heads h"""
# The lock belongs inside the LATERAL: outside it two claims would look at the same jobs.
_CLAIM = f"""
WITH found AS (
  SELECT f.* FROM unnest($1::text[], $2::text[], $3::text[], $4::int[])
    AS w(kind, model, provider, most)
  CROSS JOIN LATERAL (
    SELECT id, priority, vtag FROM jobs
    WHERE state = 'Queued' AND kind = w.kind AND model = w.model AND provider = w.provider
    AND (deadline IS NULL OR deadline > $5)
    ORDER BY priority DESC, vtag, id LIMIT w.most FOR UPDATE SKIP LOCKED) f
), chosen AS (
  SELECT id FROM found ORDER BY priority DESC, vtag, id LIMIT $6
), taken AS (
  UPDATE jobs j SET state = 'Started', attempt = attempt + 1, started = $5, owner = $7,
    lease_until = $8, progress = NULL, status = NULL
  FROM chosen c WHERE j.id = c.id RETURNING {_JOB}
), counted AS (
  INSERT INTO job_waiting AS w (key_id, side, waiting)
  SELECT key_id, 1, -count(*) FROM (
    SELECT key_id FROM taken UNION ALL SELECT {ALL_KEYS} FROM taken) t
  GROUP BY key_id ORDER BY key_id
  ON CONFLICT (key_id, side) DO UPDATE SET waiting = w.waiting + excluded.waiting
)
SELECT * FROM taken ORDER BY priority DESC, vtag, id"""
# What a claim took whose answer was lost.
_CLAIMED = f"""
SELECT {_JOB} FROM jobs j
WHERE state = 'Started' AND owner = $1 AND lease_until = $2 AND started = $3
ORDER BY priority DESC, vtag, id"""
# Rows are locked by id wherever several are, so that no two wait for each other. Only a Started job
# has an owner; to say so would lead the planner through the index of all leases.
_LOCKED = """
WITH held AS (
  SELECT j.id, f.i FROM jobs j
  JOIN unnest($1::int[], $2::text[], $3::int[]) WITH ORDINALITY f(id, owner, attempt, i)
    ON j.id = f.id AND j.owner = f.owner AND j.attempt = f.attempt
  ORDER BY j.id, f.i FOR UPDATE OF j
)"""
_EXTEND = f"""{_LOCKED}
UPDATE jobs j SET lease_until = $4 FROM held h WHERE j.id = h.id
RETURNING j.id, j.attempt, j.cancel_asked"""
_PROGRESS = f"""{_LOCKED}, written AS (
  UPDATE jobs j SET progress = coalesce(p.progress, j.progress),
    status = coalesce(p.status, j.status), worker = coalesce(p.worker, j.worker),
    logs = left(j.logs || p.log, {MOST_LOGGED})
  FROM held h JOIN unnest($4::float8[], $5::text[], $6::text[], $7::text[])
    WITH ORDINALITY p(progress, status, worker, log, i) USING (i) WHERE j.id = h.id
)
SELECT i FROM held"""
_POSITION = f"""
SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs n
  WHERE n.state = 'Queued' AND n.kind = j.kind AND n.model = j.model
  AND (n.priority > j.priority
    OR n.priority = j.priority AND (n.vtag, n.id) < (j.vtag, j.id)) LIMIT {MOST_COUNTED - 1}) few)
FROM jobs j WHERE j.id = $1 AND j.state = 'Queued'"""


async def groups(database: Postgres) -> list[Group]:
    return [
        Group(kind, model, provider, ready, priority, tuple(keys))
        for kind, model, provider, ready, priority, keys in await database.read(_GROUPS)
    ]


async def claim(
    database: Postgres, owner: str, wants: Sequence[Want], *, now: int, until: int, most: int
) -> list[Job]:
    """The jobs in the order in which they stood."""
    rows = [
        (text(w.kind), text(w.model), text(w.provider), max(0, min(w.count, most, MOST_ROWS)))
        for w in wants
    ]
    parameters = (now, min(most, MOST_ROWS), owner, until)
    try:
        taken = await database.rows(_CLAIM, *columns(rows, 4), *parameters)
    except ConnectionCut:
        taken = await database.read(_CLAIMED, owner, until, now)
    return [job(row) for row in taken]


async def heartbeat(database: Postgres, owner: str, held: Sequence[Fence], *, until: int) -> Beat:
    fences = [(fence.job_id, fence.owner, fence.attempt) for fence in held if fence.owner == owner]
    rows = await database.rows(_EXTEND, *columns(fences, 3), until)
    alive = {(id, attempt): asked for id, attempt, asked in rows}
    beat = Beat([], [])
    for fence in held:
        place = (fence.job_id, fence.attempt)
        if fence.owner != owner or place not in alive:
            beat.lost.append(fence)
        elif alive[place] is not None:
            beat.cancelled.append(fence)
    return beat


async def progress(database: Postgres, updates: Sequence[Progress]) -> list[Fence]:
    """The fences that do not hold."""
    last: dict[Fence, Progress] = {}
    for update in updates:
        before = last.pop(update.fence, None)
        last[update.fence] = update if before is None else _joined(before, update)
    fences = [(fence.job_id, fence.owner, fence.attempt) for fence in last]
    what = [
        (u.progress, text(u.status and u.status[:MOST_STATUS]), text(u.worker), text(u.log) or "")
        for u in last.values()
    ]
    rows = await database.rows(_PROGRESS, *columns(fences, 3), *columns(what, 4))
    held = {row["i"] - 1 for row in rows}
    return [fence for i, fence in enumerate(last) if i not in held]


def _joined(first: Progress, then: Progress) -> Progress:
    return Progress(
        fence=then.fence,
        progress=first.progress if then.progress is None else then.progress,
        status=first.status if then.status is None else then.status,
        worker=first.worker if then.worker is None else then.worker,
        log=(first.log or "") + (then.log or ""),
    )


async def position(database: Postgres, id: int) -> int | None:
    rows = await database.read(_POSITION, id)
    return int(rows[0][0]) + 1 if rows else None
