"""What a job is: its states, what it is made of, and the ways in which an attempt can end.

Times are milliseconds since 1970 UTC, costs whole picodollars. Empty text in `model` and `provider`
is none: the claim's index compares them.
"""

from enum import StrEnum
from typing import Any

import msgspec

from aiserver.kit.ledger import LedgerRow

LARGEST_ID = 2**31 - 1
MOST_LOGGED = 65_536
MOST_STATUS = 1_000


class State(StrEnum):
    """As callers see it, but for Scheduled, which they see as Queued."""

    SCHEDULED = "Scheduled"
    QUEUED = "Queued"
    STARTED = "Started"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED

    @property
    def shown(self) -> str:
        """The word for callers."""
        return State.QUEUED.value if self is State.SCHEDULED else self.value


WAITING = frozenset({State.SCHEDULED, State.QUEUED})
ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


class FailureKind(StrEnum):
    """Whose fault a failed job is."""

    REQUEST = "request"
    UPSTREAM = "upstream"
    SERVER = "server"
    LOST = "lost"
    DEADLINE = "deadline"


class Fence(msgspec.Struct, frozen=True, gc=False):
    """Who may write about a running job: the process that holds it, in this attempt only."""

    job_id: int
    owner: str
    attempt: int


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller wants done.

    `key_id` 0 is the admin secret. `request` is a JSON object of its members as they came; `files`
    and `echo` are the caller's uploads and `state` member, kept as they are. `idempotency_key`
    needs `body_hash`.
    """

    operation: str
    kind: str
    key_id: int
    request: bytes
    model: str = ""
    provider: str = ""
    ref_id: str | None = None
    priority: int = 0
    run_after: int | None = None
    deadline: int | None = None
    max_attempts: int = 3
    files: str | None = None
    tag: str | None = None
    reply_to: str | None = None
    echo: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    body_hash: bytes | None = None


class Job(msgspec.Struct, frozen=True):
    """One row of the table `jobs`, its members in the order of JOB_COLUMNS.

    `attempt` is the number of the current or last attempt, 0 before the first. `worker` is the
    provider that served it. `request`, `files` and `result` are None once blanked.
    """

    id: int
    ref_id: str
    key_id: int
    operation: str
    kind: str
    model: str
    provider: str
    priority: int
    run_after: int | None
    deadline: int | None
    max_attempts: int
    attempt: int
    state: State
    request: bytes | None
    files: str | None
    tag: str | None
    reply_to: str | None
    echo: str | None
    request_id: str | None
    idempotency_key: str | None
    body_hash: bytes | None
    created: int
    started: int | None
    ended: int | None
    owner: str | None
    lease_until: int | None
    progress: float | None
    status: str | None
    logs: str
    result: bytes | None
    error_code: str | None
    error_message: str | None
    error_status: int | None
    error_kind: str | None
    worker: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: int | None
    vtag: int
    cancel_asked: int | None
    notified: int | None

    @property
    def fence(self) -> Fence:
        """For a job just claimed."""
        return Fence(self.id, self.owner or "", self.attempt)


JOB_COLUMNS = Job.__struct_fields__


def begun(new: NewJob, *, owner: str, now: int, until: int) -> Job:
    """The row of a job whose first attempt begins as it is stored; the store gives it its ids."""
    given: dict[str, Any] = {name: getattr(new, name) for name in NewJob.__struct_fields__}
    given["ref_id"] = ""
    return Job(
        **given,
        id=0,
        attempt=1,
        state=State.STARTED,
        created=now,
        started=now,
        ended=None,
        owner=owner,
        lease_until=until,
        progress=None,
        status=None,
        logs="",
        result=None,
        error_code=None,
        error_message=None,
        error_status=None,
        error_kind=None,
        worker=None,
        prompt_tokens=None,
        completion_tokens=None,
        cost=None,
        vtag=0,
        cancel_asked=None,
        notified=None,
    )


class Summary(msgspec.Struct, frozen=True):
    """What stays of a job in the main store after it moved to its month's archive.

    `month` is as 2026-11; None while the job is in the table `jobs`.
    """

    id: int
    ref_id: str
    key_id: int
    operation: str
    kind: str
    model: str
    provider: str
    attempt: int
    state: State
    tag: str | None
    reply_to: str | None
    request_id: str | None
    created: int
    started: int | None
    ended: int | None
    error_code: str | None
    error_message: str | None
    worker: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: int | None
    notified: int | None
    month: str | None


SUMMARY_COLUMNS = Summary.__struct_fields__


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed, as the caller may read it; `status` is the HTTP status."""

    code: str
    message: str
    status: int
    kind: FailureKind


def with_error(job: Job, error: JobError | None) -> Job:
    """None: of one that ended otherwise."""
    return msgspec.structs.replace(
        job,
        error_code=error and error.code,
        error_message=error and error.message,
        error_status=error and error.status,
        error_kind=error and error.kind.value,
    )


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """The work is done. `result` is the answer's JSON. `ledger` settles the attempt."""

    result: bytes
    worker: str | None = None
    ledger: LedgerRow | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The job failed for good; `result` is what there is to show of it, if anything."""

    error: JobError
    result: bytes | None = None
    worker: str | None = None
    ledger: LedgerRow | None = None


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt failed, another at `at` may not.

    The store makes it Failed with this error when it was the last attempt or `at` is past the
    deadline, and Cancelled when that was asked meanwhile.
    """

    at: int
    error: JobError
    worker: str | None = None
    ledger: LedgerRow | None = None


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt was stopped because that was asked; what it cost until then is in `ledger`."""

    worker: str | None = None
    ledger: LedgerRow | None = None


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """The process stops: the job is Queued again at its old place; the attempt does not count."""

    ledger: LedgerRow | None = None


Outcome = Completed | Failed | Retry | Cancelled | Released
