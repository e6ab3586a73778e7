"""What the PostgreSQL store's files share: how rows become values, and who is told of a change."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections.abc import Iterable, Sequence
from typing import Any

from aiserver.jobs.job import JOB_COLUMNS, SUMMARY_COLUMNS, Job, State, Summary
from aiserver.jobs.store import Changed, Word
from aiserver.kit.postgres import Record, writable

CHANNEL = "ai_server_jobs"
ALL_KEYS = -1
COLUMNS = ", ".join(JOB_COLUMNS)
SUMMARY = ", ".join(SUMMARY_COLUMNS)
# Large members, left out of pages.
CONTENT = ("request", "files", "result", "logs")

_STATE = JOB_COLUMNS.index("state")
_SUMMARY_STATE = SUMMARY_COLUMNS.index("state")
_LONGEST_PAYLOAD = 7_900


# Tells the other processes; the parameter is a list of payloads.
NOTIFY = f"(SELECT count(pg_notify('{CHANNEL}', said)) FROM unnest({{0}}::text[]) said)"


def job(row: Record | Sequence[Any]) -> Job:
    """From a row of COLUMNS."""
    values: list[Any] = list(row)
    values[_STATE] = State(values[_STATE])
    return Job(*values)


def summary(row: Record | Sequence[Any]) -> Summary:
    """From a row of SUMMARY."""
    values: list[Any] = list(row)
    values[_SUMMARY_STATE] = State(values[_SUMMARY_STATE])
    return Summary(*values)


def changed(job: Job, *, called_back: bool) -> Changed:
    return Changed(job.id, job.ref_id, job.key_id, job.state, job.kind, job.model, called_back)


def text(value: str | None) -> str | None:
    """As PostgreSQL can hold it: it takes neither NUL nor a lone surrogate."""
    return None if value is None else writable(value)


def payload(sender: str, word: Word, about: Iterable[object] = ()) -> str:
    """`sender word one,two`; when there are too many to name, the word alone stands for any."""
    named = ",".join(str(one) for one in about)
    return f"{sender} {word} {named if len(named) < _LONGEST_PAYLOAD else ''}".rstrip()


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows as one list for each column, for unnest()."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width
