"""What the headers of a queued call ask of its job: when, how urgently, and once only."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from aiserver.contract.caller import Caller
from aiserver.contract.errors import Forbidden, InvalidRequest
from aiserver.contract.twins import Wishes
from aiserver.kit.times import parse_iso

DEADLINE, RUN_AFTER, PRIORITY = "Job-Deadline", "Job-Run-After", "Job-Priority"
_RUN_AFTER_MEMBER = "runAfter"
LONGEST_DELAY_DAYS = 30
# A job that begins as late as it may still has a day.
LONGEST_DEADLINE_DAYS = LONGEST_DELAY_DAYS + 1
LARGEST_PRIORITY = 100
_DAY_MS = 24 * 60 * 60 * 1000
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,4}", re.ASCII)


class Asked(NamedTuple):
    """The headers as they were sent; None for one that was not."""

    idempotency_key: str | None = None
    deadline: str | None = None
    run_after: str | None = None
    priority: str | None = None


class Plan(NamedTuple):
    """Times in ms since 1970."""

    run_after: int | None
    deadline: int | None
    priority: int


NOTHING = Asked()


def planned(asked: Asked, wishes: Wishes, caller: Caller, *, now: int) -> Plan:
    """Headers go before members of the body. Raises InvalidRequest or Forbidden; `now` in ms."""
    run_after = None
    if asked.run_after is not None:
        run_after = _moment(
            RUN_AFTER, asked.run_after, "before which the job waits", now, LONGEST_DELAY_DAYS
        )
    elif wishes.run_after is not None:
        at = _milliseconds(wishes.run_after)
        run_after = _bounded(_RUN_AFTER_MEMBER, at, now, LONGEST_DELAY_DAYS)
    deadline = None
    if asked.deadline is not None:
        deadline = _moment(
            DEADLINE,
            asked.deadline,
            "by which the job must have ended",
            now,
            LONGEST_DEADLINE_DAYS,
        )
        if deadline <= max(now, run_after or now):
            late = "the time before which the job waits" if deadline > now else "now"
            raise InvalidRequest(f"'{DEADLINE}' must be later than {late}.", param=DEADLINE)
    return Plan(run_after, deadline, _priority(asked.priority, wishes, caller))


def _moment(name: str, text: str, meaning: str, now: int, most_days: int) -> int:
    plain = text.strip()
    try:
        at = (
            now + round(float(plain) * 1000)
            if _SECONDS.fullmatch(plain)
            else _milliseconds(parse_iso(plain))
        )
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"'{name}' is a time {meaning}: write seconds from now, like 90, "
            "or a moment, like 2026-11-23T18:00:00Z.",
            param=name,
        ) from None
    return _bounded(name, at, now, most_days)


def _bounded(name: str, at: int, now: int, most_days: int) -> int:
    if at > now + most_days * _DAY_MS:
        raise InvalidRequest(f"'{name}' may be {most_days} days ahead at most.", param=name)
    return at


def _priority(text: str | None, wishes: Wishes, caller: Caller) -> int:
    """Only an administrator's jobs go ahead of other keys'; anybody's may stand back."""
    if text is None:
        return wishes.priority if caller.is_admin else min(wishes.priority, 0)
    plain = text.strip()
    if not _WHOLE.fullmatch(plain) or abs(int(plain)) > LARGEST_PRIORITY:
        raise InvalidRequest(
            f"'{PRIORITY}' is a whole number from -{LARGEST_PRIORITY} to {LARGEST_PRIORITY}; "
            "higher goes first.",
            param=PRIORITY,
        )
    if int(plain) > 0 and not caller.is_admin:
        raise Forbidden(
            f"Only an administrator may raise a job's priority; write '{PRIORITY}' "
            f"from -{LARGEST_PRIORITY} to 0.",
            param=PRIORITY,
        )
    return int(plain)


def _milliseconds(at: datetime) -> int:
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)
