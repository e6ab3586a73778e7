"""Jobs as the command line shows them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from aiserver.cli.console import say, table
from aiserver.jobs.admin_counts import DAY_MS, statistics, sums_by
from aiserver.jobs.job import WAITING, Job, State, Summary
from aiserver.jobs.shown import duration_ms, error_of, maybe_moment
from aiserver.jobs.store import Counts, Delivery, DeliveryState, JobStore

COLUMNS = {
    "id": "ID",
    "state": "State",
    "model": "Model",
    "provider": "Provider",
    "key": "Key",
    "age": "Age",
    "took": "Took",
    "errorCode": "Error",
    "operation": "Operation",
}
_HIDDEN = ("keyId", "durationMs", "logs", "callbacks")
_PARTS = (
    ("model", "Waiting for model"),
    ("key", "Waiting of key"),
    ("operation", "Waiting for operation"),
    ("provider", "Running at provider"),
)
_STATISTICS = {
    "name": "Operation",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "retries": "Tried again",
}


def listed(job: Job | Summary, names: dict[int, str]) -> dict[str, Any]:
    """A job in short; `provider` is the last that served it, `names` are those of keys."""
    took = duration_ms(job, _now()) if job.started is not None else None
    return {
        "id": job.id,
        "refId": job.ref_id,
        "state": job.state.shown,
        "operation": job.operation,
        "model": job.model or None,
        "provider": job.worker,
        "key": names.get(job.key_id, str(job.key_id)),
        "keyId": job.key_id,
        "tag": job.tag,
        "created": _time(job.created),
        "started": _time(job.started),
        "ended": _time(job.ended),
        "durationMs": took,
        "attempts": job.attempt,
        "errorCode": job.error_code,
        "errorMessage": job.error_message,
    }


def for_people(row: dict[str, Any]) -> dict[str, Any]:
    """The same with times that can be read at a glance."""
    took, created = row["durationMs"], datetime.fromisoformat(row["created"])
    age = int((datetime.now(UTC) - created).total_seconds())
    return {**row, "age": _long(max(age, 0)), "took": None if took is None else seconds(took)}


def full(
    job: Job, names: dict[int, str], *, position: int | None, callbacks: Iterable[Delivery]
) -> dict[str, Any]:
    """All that is known of a job but what it was asked and answered."""
    error = error_of(job)
    return {
        **listed(job, names),
        "errorMessage": job.error_message if error is None else error.message,
        "position": position,
        "progress": job.progress,
        "status": job.status,
        "priority": job.priority,
        "attemptsAllowed": job.max_attempts,
        "providerWanted": job.provider or None,
        "notBefore": _time(job.run_after) if job.state in WAITING else None,
        "deadline": _time(job.deadline),
        "cancelAsked": _time(job.cancel_asked),
        "requestId": job.request_id,
        "replyTo": job.reply_to,
        "promptTokens": job.prompt_tokens,
        "completionTokens": job.completion_tokens,
        "contentKept": job.request is not None,
        "logs": job.logs or None,
        "callbacks": [_callback(each) for each in callbacks],
    }


def content(job: Job) -> dict[str, Any]:
    """What the job was asked and answered; None where it is not kept any more, or not yet there."""
    return {"request": _read(job.request), "answer": _read(job.result)}


def details(row: dict[str, Any]) -> list[str]:
    """The lines of `full` for people, without what there is not."""
    shown = {n: v for n, v in for_people(row).items() if v is not None and n not in _HIDDEN}
    wide = max(len(name) for name in shown)
    lines = [f"{name:<{wide}}  {_said(value)}" for name, value in shown.items()]
    for each in row["callbacks"]:
        last = each["error"] or each["httpStatus"] or "not tried yet"
        lines.append(f"callback {each['id']}: {each['state']}, {each['attempts']} attempts, {last}")
    if row["logs"]:
        lines += ["logs:", row["logs"].rstrip("\n")]
    return lines


async def stats_of(store: JobStore, names: dict[int, str]) -> dict[str, Any]:
    """Counts of the queue now, and of what ended in the last 24 hours by operation."""
    now = _now()
    counts = await store.counts()
    tallies = await store.tallies(since=now - DAY_MS, until=now + 1)
    summed = statistics(sums_by(tallies, lambda tally: tally.operation))
    return {
        "waiting": _sum(counts, WAITING),
        "running": _sum(counts, [State.STARTED]),
        "ended": _sum(counts, [state for state in State if state.ended]) + counts.archived,
        "archived": counts.archived,
        "by": {
            "model": {model: n for model, n in counts.waiting_by_model.items() if model},
            "key": {names.get(id, str(id)): n for id, n in counts.waiting_by_key.items()},
            "operation": counts.waiting_by_operation,
            "provider": counts.running_by_worker,
        },
        "lastDay": [msgspec.to_builtins(each) for each in summed],
    }


def say_stats(found: dict[str, Any]) -> None:
    said = "{waiting} waiting, {running} running, {ended} ended, {archived} of them archived."
    say(said.format(**found))
    for member, title in _PARTS:
        rows = [{"name": name, "jobs": count} for name, count in found["by"][member].items()]
        if rows:
            say("")
            table(rows, {"name": title, "jobs": "Jobs"}, empty="")
    say("")
    table(found["lastDay"], _STATISTICS, empty="No job ended in the last 24 hours.")


def seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"


def _long(age: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age >= size:
            return f"{age // size} {unit}"
    return f"{age} s"


def _sum(counts: Counts, states: Iterable[State]) -> int:
    return sum(counts.states.get(state, 0) for state in states)


def _callback(each: Delivery) -> dict[str, Any]:
    pending = each.state is DeliveryState.PENDING
    return {
        "id": each.id,
        "state": each.state.value,
        "attempts": each.attempt,
        "httpStatus": each.last_status,
        "error": each.last_error,
        "due": _time(each.due) if pending else None,
        "delivered": _time(each.delivered),
    }


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _read(body: bytes | None) -> Any:
    if body is None:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode(errors="replace")


def _time(ms: int | None) -> str | None:
    at = maybe_moment(ms)
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
