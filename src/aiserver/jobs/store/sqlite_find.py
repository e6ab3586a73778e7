"""Finds one job in SQLite, wherever it is kept."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from typing import Any

import msgspec

from aiserver.jobs.job import SUMMARY_COLUMNS, Job, Summary
from aiserver.jobs.store.sqlite_months import MonthFiles
from aiserver.jobs.store.sqlite_rows import COLUMNS, job_of, summary_of
from aiserver.kit.db import Database

_KEPT = ", ".join(SUMMARY_COLUMNS)
_UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(("run_after", "deadline", "request", "files", "echo", "idempotency_key")),
    **dict.fromkeys(("body_hash", "owner", "lease_until", "progress", "status", "result")),
    **dict.fromkeys(("error_status", "error_kind", "cancel_asked")),
    **{"priority": 0, "vtag": 0, "logs": ""},
}


def live(
    database: Database,
    *,
    id: int | None = None,
    ref_id: str | None = None,
    key_id: int | None = None,
) -> Job | None:
    """From the table `jobs`."""
    where, values = _where(id, ref_id, key_id)
    rows = database.read(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values)
    return job_of(rows[0]) if rows else None


def summary(
    database: Database,
    *,
    id: int | None = None,
    ref_id: str | None = None,
    key_id: int | None = None,
) -> Summary | None:
    where, values = _where(id, ref_id, key_id)
    rows = database.read(f"SELECT {_KEPT} FROM job_summary WHERE {where}", values)
    return summary_of(rows[0]) if rows else None


def archived(files: MonthFiles, summary: Summary) -> Job:
    """From its month; what is in no file any more is None."""
    rows = files.get(summary.month or "", [summary.id])
    if rows:
        return msgspec.structs.replace(job_of(rows[0]), notified=summary.notified)
    known = {name: getattr(summary, name) for name in SUMMARY_COLUMNS if name != "month"}
    return Job(**known, **_UNKNOWN, max_attempts=summary.attempt)


def _where(id: int | None, ref_id: str | None, key_id: int | None) -> tuple[str, list[int | str]]:
    values: list[int | str] = []
    if id is not None:
        where = "id = ?"
        values.append(id)
    else:
        where = "ref_id = ?"
        values.append(ref_id or "")
    if key_id is not None:
        where += " AND key_id = ?"
        values.append(key_id)
    return f"{where} ORDER BY id DESC LIMIT 1", values
