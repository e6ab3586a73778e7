"""Where jobs and callbacks are kept: what every store promises, whichever database it stands on.

A call returns after its transaction is durable. Each may raise StorageError: nothing was changed,
or (a lost connection) it is not known; every write can be repeated. The clock is handed in.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from aiserver.jobs.job import Fence, Job, NewJob, Outcome, State, Summary
from aiserver.jobs.store.outbox import (
    DELIVERY_COLUMNS,
    MOST_PASSED,
    Attempt,
    Attempted,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    NewDelivery,
    Outbox,
)

__all__ = [
    "DELIVERY_COLUMNS",
    "MOST_PASSED",
    "Attempt",
    "Attempted",
    "Delivery",
    "DeliveryFilter",
    "DeliveryState",
    "NewDelivery",
    "Outbox",
]

MOST_ROWS = 1_000
MOST_COUNTED = 10_000


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs may wait (Queued and Scheduled), in all and of one key; 0 is no bound."""

    queued: int = 100_000
    queued_per_key: int = 10_000
    retry_after: float = 5.0


class Accepted(msgspec.Struct, frozen=True):
    """`replayed`: the same request came before under its idempotency key; this is its job."""

    id: int
    ref_id: str
    state: State
    replayed: bool = False


class Group(msgspec.Struct, frozen=True):
    """Jobs that are alike to a claim; `ready` is how many are Queued, counted to a bound,
    `priority` the highest among them, `keys` whose the next few are, in their order.
    """

    kind: str
    model: str
    provider: str
    ready: int
    priority: int = 0
    keys: tuple[int, ...] = ()


class Want(msgspec.Struct, frozen=True):
    """At most `count` jobs of one group; `provider` is the wish of its jobs, "" for none."""

    kind: str
    model: str
    provider: str
    count: int


class Beat(msgspec.Struct, frozen=True):
    """`lost`: not ours any more, stop without a word; `cancelled`: stop and finish as Cancelled."""

    lost: list[Fence]
    cancelled: list[Fence]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`progress` is 0 to 1; None leaves a member as it is. `log` is added to the job's log.

    `worker` is the provider that the attempt runs at.
    """

    fence: Fence
    progress: float | None = None
    status: str | None = None
    log: str | None = None
    worker: str | None = None


class Changed(msgspec.Struct, frozen=True):
    """A job that came to `state`; what waiters and the event stream need to know."""

    id: int
    ref_id: str
    key_id: int
    state: State
    kind: str
    model: str
    called_back: bool


class Swept(msgspec.Struct, frozen=True):
    """What a sweep did. `ready` counts the jobs that became Queued, `lost` leases taken back.

    `again`: when the next thing falls due (ms), None when nothing is planned. `more`: there was
    more than one round holds; sweep again at once.
    """

    ended: list[Changed]
    ready: int
    lost: int
    again: int | None
    more: bool = False


class CancelOutcome(StrEnum):
    CANCELLED = "cancelled"
    ASKED = "asked"
    ENDED = "ended"


class CancelResult(msgspec.Struct, frozen=True):
    """By job id; an id that is not there, or not that owner's, is in none of them.

    `owners` are the processes that hold the jobs that were ASKED to stop.
    """

    outcomes: dict[int, CancelOutcome]
    ended: list[Changed]
    owners: list[str]


class Requeued(msgspec.Struct, frozen=True):
    """`errors` say why by job id."""

    ids: list[int]
    errors: dict[int, str]


class Order(StrEnum):
    ID = "id"
    ENDED = "ended"
    STARTED = "started"
    PRIORITY = "priority"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a page shows: all that are given must fit; an empty collection fits nothing.

    `provider` is the caller's wish, `worker` who served it last. `since` and `until` bound
    `created`, in ms, the end excluded. `take` is at most MOST_ROWS.
    """

    states: Collection[State] | None = None
    ids: Collection[int] | None = None
    ref_ids: Collection[str] | None = None
    key_id: int | None = None
    operation: str | None = None
    kind: str | None = None
    model: str | None = None
    provider: str | None = None
    worker: str | None = None
    tag: str | None = None
    since: int | None = None
    until: int | None = None
    order: Order = Order.ID
    descending: bool = True
    skip: int = 0
    take: int = 100


class Counts(msgspec.Struct, frozen=True):
    """Jobs in the table `jobs` by state, and those that wait by key and by model."""

    states: dict[State, int]
    waiting_by_key: dict[int, int]
    waiting_by_model: dict[str, int]
    waiting_by_operation: dict[str, int]
    running_by_worker: dict[str, int]
    archived: int


class Tally(msgspec.Struct, frozen=True):
    """Ended jobs of one hour (ms, its start), operation, worker and state.

    `retries` are attempts past the first; `duration_ms` sums started to ended.
    """

    hour: int
    operation: str
    worker: str | None
    state: State
    jobs: int
    retries: int
    duration_ms: int


class Blanked(msgspec.Struct, frozen=True):
    """How many jobs lost their content, and what their `files` named, to be deleted."""

    jobs: int
    files: list[str]
    more: bool


# Makes the callback of a job that just ended, from its row as it ended; None for no callback. It is
# called inside the transaction, in the store's own thread or task: it must not wait or fail.
Announce = Callable[[Job], NewDelivery | None]


class Word(StrEnum):
    """What another process tells: there is work, or what became of jobs that it names."""

    READY = "ready"
    ENDED = "ended"
    STOP = "stop"
    DELIVER = "deliver"


# Names are ids of jobs that ended, or owners whose jobs were asked to stop; none stands for any.
Heard = Callable[[Word, list[str]], None]


class Listening(Protocol):
    """A loop for `Background` that hears other processes."""

    async def run(self) -> None: ...


class JobStore(Protocol):
    """Jobs. Terminal writes reach the job's row, its ledger row and its outbox row, or none."""

    async def begin(self) -> None:
        """Takes over what is there, before anything else is asked of it. Raises StorageError."""
        ...

    def listener(self, heard: Heard, *, again: Callable[[], None]) -> Listening | None:
        """For what other processes do, `again` when something may have been missed; None where
        no others can work on these jobs.
        """
        ...

    async def enqueue(self, job: NewJob) -> Accepted:
        """Stores a job, Queued, or Scheduled when `run_after` is to come.

        Calls that meet share a commit. Raises TooBusy past a bound (not for a replay), Conflict for
        a `ref_id` that this key used or an idempotency key with another body. Same key, same body:
        the first job, `replayed`. No `ref_id`: 32 random hex digits.
        """
        ...

    def start(self, job: NewJob, *, owner: str, until: int) -> asyncio.Future[Accepted]:
        """As `enqueue`, but Started, leased `until` then, and past all bounds."""
        ...

    async def replay(self, key_id: int, idempotency_key: str, body_hash: bytes) -> Accepted | None:
        """The job of this idempotency key, if there is one. Raises Conflict for another body."""
        ...

    async def groups(self) -> list[Group]:
        """The groups with jobs that could be claimed now; its cost goes by groups, not by jobs."""
        ...

    async def claim(
        self, owner: str, wants: Sequence[Want], *, until: int, most: int | None = None
    ) -> list[Job]:
        """Takes jobs, each for one process only: Started, attempt + 1, leased `until` (ms).

        Inside each want by priority (high first), vtag, id; all wants together give no more than
        `most`, by the same order. A job past its deadline is not given. Bounded to MOST_ROWS.
        """
        ...

    async def heartbeat(self, owner: str, held: Sequence[Fence], *, until: int) -> Beat:
        """Extends the leases of all held jobs, in one statement."""
        ...

    async def progress(self, updates: Sequence[Progress]) -> list[Fence]:
        """Writes progress, status (cut to MOST_STATUS) and log lines (the log to MOST_LOGGED).

        Answers the fences that do not hold any more.
        """
        ...

    async def finish(self, fence: Fence, outcome: Outcome) -> Changed | None:
        """Ends the attempt; calls that meet share a commit. None: the lease is lost, not a word
        was written, the ledger row neither.

        In one transaction: the job's end, `outcome.ledger` (the same id again is ignored), and for
        an ended job with `reply_to` what `Announce` makes of it. The state in the answer is the
        one reached, see Retry.
        """
        ...

    async def cancel(self, ids: Sequence[int], *, key_id: int | None = None) -> CancelResult:
        """Ends waiting jobs; a running one is asked to stop and ends when its worker says so.

        `key_id` limits it to that owner's jobs. At most MOST_ROWS ids.
        """
        ...

    async def requeue(self, ids: Sequence[int]) -> Requeued:
        """Failed and Cancelled jobs are Queued again, from the archive too, under their old ids.

        They get as many attempts again as they had; attempt numbers go on. Refused: other states,
        blanked content, a full queue. At most MOST_ROWS ids.
        """
        ...

    async def find(
        self, *, id: int | None = None, ref_id: str | None = None, key_id: int | None = None
    ) -> Job | None:
        """One job with everything that is kept of it, from the archive too; exactly one of `id`
        and `ref_id`. `key_id`: only when it is that owner's. Of several with one `ref_id` (of
        different keys) the newest. Content of a dropped month is None.
        """
        ...

    async def position(self, id: int) -> int | None:
        """The place in its model's line, from 1, counted to MOST_COUNTED; None if not Queued."""
        ...

    async def sweep(self, *, spare_leases: bool = False) -> Swept:
        """Does what has fallen due, in rounds of MOST_ROWS each; several processes may.

        Scheduled jobs become Queued, behind what their key has in line unless they ran before.
        Expired leases: Cancelled where asked, Failed (LOST) after the last attempt, else Queued at
        their old place; the attempt counts. Waiting and running jobs past their deadline: Failed
        (DEADLINE), the fence of a running one broken. An attempt that so ends, at a provider, is in
        the ledger with a cost that is not known. `spare_leases`: no lease counts as expired now.
        """
        ...

    async def owners(self) -> list[str]:
        """The processes that hold leases."""
        ...

    async def take_back(self, owners: Sequence[str]) -> Swept:
        """As if the leases of these owners had expired; for processes known to be dead."""
        ...

    async def counts(self) -> Counts: ...

    async def tallies(self, *, since: int, until: int) -> list[Tally]:
        """Jobs that ended in this span (ms, the end excluded), archived ones too."""
        ...

    async def jobs(self, filter: Filter, *, month: str | None = None) -> tuple[list[Job], int]:
        """A page of the table `jobs`, or of a month's archive, and how many fit in all.

        `request`, `files`, `result` and `logs` are left out; `find` has them.
        """
        ...

    async def summaries(self, filter: Filter) -> tuple[list[Summary], int]:
        """A page of all jobs, archived or not, and how many fit in all."""
        ...

    async def months(self) -> list[str]:
        """The months with an archive, oldest first, as 2026-11."""
        ...

    async def archive(self, before: int) -> int:
        """Moves jobs that ended before then to the archive of the month of their end; how many.

        At most MOST_ROWS a call; 0 when there is nothing left. Again after a crash does no harm.
        """
        ...

    async def drop_months(self, before: str) -> list[str]:
        """Deletes the archives of all months before this one, with their summaries; which."""
        ...

    async def blank(self, before: int) -> Blanked:
        """Forgets request, files, result and logs of jobs that ended before then; rows stay."""
        ...

    async def forget_keys(self, before: int) -> int:
        """Frees idempotency keys of ended jobs created before then; how many."""
        ...

    async def tidy(self) -> int:
        """Forgets the places in line of keys that have no job in it; how many, MOST_ROWS a call."""
        ...

    async def close(self) -> None:
        """Finishes the writes that were begun."""
        ...
