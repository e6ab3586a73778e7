"""Fills the archive with jobs that ended last month, as if they had been moved there."""

# ruff: noqa: S608 - the names joined into SQL are this module's own.

import asyncio
import time
from contextlib import closing
from pathlib import Path

from aiserver.jobs.store.months import began, month_of
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.kit.db import Connection, Database, open_file
from aiserver.kit.migrations import postgres, upgrade
from aiserver.kit.postgres import Postgres
from bench.jobs import lap

_DAY_MS, _MOST_SECONDS = 86_400_000, 300
# Spread over four weeks, in no order. The content is forgotten by then; the rows stay.
_AT = "{began} + i * 7919 % 2400000 * 1000"
_BOTH = f"""id, ref_id, key_id, operation, kind, model, provider, attempt, state, worker,
  created, started, ended{{columns}})
SELECT i, {{ref}}, i % 20, 'Noop', 'chat', 'model-' || i % 50, '', 1, 'Completed', 'bench',
  {_AT}, {_AT} + 5, {_AT} + 900{{values}} FROM {{numbers}}"""
_SUMMARY = f"INSERT INTO job_summary (month, {_BOTH.replace('SELECT i', 'SELECT {month}, i')}"
_ROW = {"columns": ", priority, max_attempts, logs, vtag", "values": ", 0, 3, '', i"}
_COUNTED = (
    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n)"
)


async def main() -> None:
    """Puts jobs into the new, empty store at the place."""
    place, count, _ = lap.given()
    month = month_of(began(month_of(time.time_ns() // 1_000_000)) - _DAY_MS)
    if place.startswith("postgresql://"):
        await _fill_postgres(place, count, month)
    else:
        await _fill_sqlite(Path(place), count, month)
    lap.show({"archived": count})


async def _fill_sqlite(folder: Path, count: int, month: str) -> None:
    database = Database.open(folder / "app.db")
    upgrade(database)
    MonthFiles(folder / "jobs").put(month, [])
    numbers = _COUNTED.format(count)
    filled = {"began": began(month), "month": f"'{month}'", "numbers": numbers}

    def summarise(connection: Connection) -> None:
        ref = "lower(hex(randomblob(16)))"
        connection.execute(_SUMMARY.format(**filled, columns="", values="", ref=ref))

    with closing(open_file(folder / "jobs" / f"jobs-{month}.db")) as kept:
        kept.execute(f"ATTACH '{database.path}' AS live")
        await database.write(summarise)
        summary = "(SELECT id AS i, ref_id AS r FROM live.job_summary)"
        kept.execute(
            f"INSERT INTO jobs ({_BOTH.format(**filled | {'numbers': summary}, ref='r', **_ROW)}"
        )
        kept.commit()
    database.close()


async def _fill_postgres(url: str, count: int, month: str) -> None:
    database = await Postgres.open(url, statement_seconds=_MOST_SECONDS)
    await postgres.upgrade(database)
    numbers = f"(SELECT generate_series(1::bigint, {count}) AS i) n"
    filled = {"began": began(month), "month": f"'{month}'", "numbers": numbers}
    filled["ref"] = "md5(i::text)"
    partition = f"job_archive_{month.replace('-', '_')}"
    row = {"columns": f"{_ROW['columns']}, month", "values": f"{_ROW['values']}, '{month}'"}
    for statement in (
        f"CREATE TABLE {partition} PARTITION OF job_archive FOR VALUES IN ('{month}')",
        _SUMMARY.format(**filled, columns="", values=""),
        f"INSERT INTO job_archive ({_BOTH.format(**filled, **row)}",
        f"SELECT setval('job_ids', {count})",
        # As autovacuum would, at some moment in the middle of a round.
        "VACUUM ANALYZE job_summary",
        f"VACUUM ANALYZE {partition}",
        "CHECKPOINT",
    ):
        await database.execute(statement)
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
