"""Finds and takes jobs that are ready, and keeps the leases of those that run."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Sequence

from aiserver.jobs.job import MOST_LOGGED, MOST_STATUS, Fence, Job
from aiserver.jobs.store import MOST_COUNTED, MOST_ROWS, Beat, Group, Progress, Want
from aiserver.jobs.store.sqlite_rows import AMONG, COLUMNS, Effects, job_of, listed
from aiserver.kit.db import Connection, Database, Row

_MOST_READY, _MOST_KEYS = 100, 4
# SQLite takes 500 terms in a compound SELECT.
_WANTS_A_STATEMENT = 400
_NEXT = "SELECT n.id FROM jobs n INDEXED BY jobs_claim WHERE n.state = 'Queued' AND"
# Each step is a look-up in the index; a comparison of rows would be a scan.
_GROUPS = f"""
WITH RECURSIVE heads (id) AS (
  SELECT * FROM (SELECT id FROM jobs INDEXED BY jobs_claim WHERE state = 'Queued'
    ORDER BY kind, model, provider LIMIT 1)
  UNION ALL
  SELECT coalesce(
    ({_NEXT} n.kind = j.kind AND n.model = j.model AND n.provider > j.provider
      ORDER BY n.provider LIMIT 1),
    ({_NEXT} n.kind = j.kind AND n.model > j.model ORDER BY n.model, n.provider LIMIT 1),
    ({_NEXT} n.kind > j.kind ORDER BY n.kind, n.model, n.provider LIMIT 1))
  FROM heads JOIN jobs j ON j.id = heads.id
)
SELECT j.kind, j.model, j.provider, (SELECT count(*) FROM (
    SELECT 1 FROM jobs n INDEXED BY jobs_claim WHERE n.state = 'Queued'
    AND n.kind = j.kind AND n.model = j.model AND n.provider = j.provider LIMIT {_MOST_READY})),
  (SELECT n.priority FROM jobs n INDEXED BY jobs_claim WHERE n.state = 'Queued'
    AND n.kind = j.kind AND n.model = j.model AND n.provider = j.provider
    ORDER BY n.priority DESC LIMIT 1),
  (SELECT group_concat(key_id) FROM (
    SELECT n.key_id FROM jobs n INDEXED BY jobs_claim WHERE n.state = 'Queued'
    AND n.kind = j.kind AND n.model = j.model AND n.provider = j.provider
    ORDER BY n.priority DESC, n.vtag, n.id LIMIT {_MOST_KEYS}))
FROM heads JOIN jobs j ON j.id = heads.id"""
_CANDIDATES = """
SELECT * FROM (SELECT priority, vtag, id FROM jobs INDEXED BY jobs_claim
  WHERE state = 'Queued' AND kind = ? AND model = ? AND provider = ?
  AND (deadline IS NULL OR deadline > ?) ORDER BY priority DESC, vtag, id LIMIT ?)"""
_TAKE = f"""
UPDATE jobs SET state = 'Started', attempt = attempt + 1, started = ?, owner = ?, lease_until = ?,
  progress = NULL, status = NULL
WHERE id {AMONG} RETURNING {COLUMNS}"""
_HELD = "id = ? AND owner = ? AND attempt = ? AND state = 'Started'"
_EXTEND = f"""
UPDATE jobs SET lease_until = ?
WHERE id {AMONG} AND owner = ? AND state = 'Started' RETURNING id, attempt, cancel_asked"""
_PROGRESS = f"""
UPDATE jobs SET progress = ifnull(?, progress), status = ifnull(?, status),
  worker = ifnull(?, worker), logs = substr(logs || ?, 1, {MOST_LOGGED})
WHERE {_HELD}"""
_LINE = "SELECT 1 FROM jobs INDEXED BY jobs_fair WHERE state = 'Queued' AND kind = ? AND model = ?"
_AHEAD = (
    f"SELECT count(*) FROM ({_LINE} AND priority > ? LIMIT {MOST_COUNTED})",
    f"SELECT count(*) FROM ({_LINE} AND priority = ? AND vtag < ? LIMIT {MOST_COUNTED})",
    f"SELECT count(*) FROM ({_LINE} AND priority = ? AND vtag = ? AND id < ? LIMIT {MOST_COUNTED})",
)
_STANDS = "SELECT kind, model, priority, vtag FROM jobs WHERE id = ? AND state = 'Queued'"


def groups(database: Database) -> list[Group]:
    return [
        Group(kind, model, provider, ready, priority, tuple(map(int, keys.split(","))))
        for kind, model, provider, ready, priority, keys in database.read(_GROUPS)
    ]


def position(database: Database, id: int) -> int | None:
    found = database.read(_STANDS, (id,))
    if not found:
        return None
    [(*line, priority, vtag)] = found
    places = ((priority,), (priority, vtag), (priority, vtag, id))
    ahead = (database.read(sql, (*line, *at)) for sql, at in zip(_AHEAD, places, strict=True))
    return min(sum(rows[0][0] for rows in ahead) + 1, MOST_COUNTED)


def claim(
    connection: Connection,
    owner: str,
    wants: Sequence[Want],
    *,
    until: int,
    most: int,
    effects: Effects,
) -> list[Job]:
    """The jobs in the order in which they stood."""
    found: list[Row] = []
    for start in range(0, len(wants), _WANTS_A_STATEMENT):
        found += _candidates(
            connection, wants[start : start + _WANTS_A_STATEMENT], effects.now, most
        )
    found.sort(key=_in_line)
    ids = [id for _, _, id in found[:most]]
    if not ids:
        return []
    rows = connection.rows(_TAKE, (effects.now, owner, until, listed(ids)))
    jobs = {job.id: job for job in map(job_of, rows)}
    for job in jobs.values():
        effects.moves[job.key_id] -= 1
    return [jobs[id] for id in ids]


def _candidates(connection: Connection, wants: Sequence[Want], now: int, most: int) -> list[Row]:
    values: list[str | int] = []
    for want in wants:
        count = max(0, min(want.count, most, MOST_ROWS))
        values += (want.kind, want.model, want.provider, now, count)
    return connection.rows(" UNION ALL ".join([_CANDIDATES] * len(wants)), values)


def _in_line(row: Row) -> tuple[int, int, int]:
    priority, vtag, id = row
    return -priority, vtag, id


def heartbeat(connection: Connection, owner: str, held: Sequence[Fence], until: int) -> Beat:
    rows = connection.rows(_EXTEND, (until, listed(fence.job_id for fence in held), owner))
    alive = {(id, attempt): asked for id, attempt, asked in rows}
    beat = Beat([], [])
    for fence in held:
        place = (fence.job_id, fence.attempt)
        if fence.owner != owner or place not in alive:
            beat.lost.append(fence)
        elif alive[place] is not None:
            beat.cancelled.append(fence)
    return beat


def progress(connection: Connection, updates: Sequence[Progress]) -> list[Fence]:
    """The fences that do not hold."""
    lost: list[Fence] = []
    for update in updates:
        fence = update.fence
        status = None if update.status is None else update.status[:MOST_STATUS]
        what = (update.progress, status, update.worker, update.log or "")
        if not connection.execute(_PROGRESS, (*what, fence.job_id, fence.owner, fence.attempt)):
            lost.append(fence)
    return lost
