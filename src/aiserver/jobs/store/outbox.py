"""The outbox: callbacks to be sent, and what a store of them promises."""

from collections.abc import Collection
from enum import StrEnum
from typing import Protocol

import msgspec

# Of deliveries that are due, oldest first, that one look for others goes past.
MOST_PASSED = 10_000
# Of receivers, beyond these; the next look goes on behind them.
MOST_WALKED = 10_000
# Of deliveries of busy keys to one receiver there.
MOST_PASSED_THERE = 500
MOST_ATTEMPTS = 100


class DeliveryState(StrEnum):
    PENDING = "Pending"
    DELIVERED = "Delivered"
    FAILED = "Failed"
    DISABLED = "Disabled"


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A callback to be sent. `id` is msg_ and random, the webhook-id of every attempt.

    `receiver` is what shares one line: scheme, host and port of `url`. `due` in ms.
    """

    id: str
    key_id: int
    url: str
    receiver: str
    body: bytes
    due: int
    verb: str = "POST"
    job_id: int | None = None


class Delivery(msgspec.Struct, frozen=True):
    """One row of `outbox`, its members in the order of DELIVERY_COLUMNS.

    `attempt` counts those made; `due` is when the next may begin, or until when one is under way.
    """

    id: str
    job_id: int | None
    key_id: int
    url: str
    receiver: str
    verb: str
    body: bytes | None
    created: int
    attempt: int
    due: int
    state: DeliveryState
    last_status: int | None
    last_error: str | None
    delivered: int | None


DELIVERY_COLUMNS = Delivery.__struct_fields__


class Attempted(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that ended. `state` Pending asks for the next one at `due` (ms).

    `at` is when it began, `status` the receiver's, None when there was no answer.
    """

    id: str
    attempt: int
    at: int
    duration_ms: int
    state: DeliveryState
    due: int | None = None
    status: int | None = None
    error: str | None = None


class Attempt(msgspec.Struct, frozen=True):
    """One row of the delivery log; `attempt` counts from 1."""

    attempt: int
    at: int
    duration_ms: int
    status: int | None
    error: str | None


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first; `take` is at most MOST_ROWS."""

    states: Collection[DeliveryState] | None = None
    key_id: int | None = None
    job_id: int | None = None
    id: str | None = None
    skip: int = 0
    take: int = 100


class Outbox(Protocol):
    """Callbacks to be sent; rows come from JobStore's transactions and from `add`."""

    async def add(self, delivery: NewDelivery) -> None:
        """The same id again changes nothing."""
        ...

    async def take(
        self,
        *,
        until: int,
        most: int,
        per_receiver: int,
        per_key: int | None = None,
        busy: Collection[str] = (),
        busy_keys: Collection[int] = (),
    ) -> list[Delivery]:
        """Pending deliveries that are due, oldest first, at most `per_receiver` of one receiver
        and `per_key` of one key, none of the receivers in `busy` and the keys in `busy_keys`. Each
        is due again `until` (ms) if nothing is heard of it, so that one process has it at a time.

        Its cost goes by what is due, to a bound, not by what waits. Behind MOST_PASSED that cannot
        be taken the receivers have their turn by name, MOST_WALKED a call, each with its oldest.
        """
        ...

    async def next_due(self) -> int | None:
        """When the next Pending delivery is due (ms); None when there is none."""
        ...

    async def attempted(self, attempted: Attempted) -> bool:
        """Logs an attempt and sets the delivery's state; with Delivered the job's `notified`.

        Not delivered but asked for again meanwhile, it is Pending and due now. The log keeps the
        newest MOST_ATTEMPTS.

        False, and no word written, when `attempt` is not the number of attempts before it plus one
        or the delivery is not Pending.
        """
        ...

    async def redeliver(self, id: str, *, key_id: int | None = None) -> bool:
        """Pending and due now, whatever its state; attempts count on. False: no such delivery.

        While an attempt is under way it is due at that one's end, unless that one delivers it.
        """
        ...

    async def deliveries(self, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
        """A page without the bodies, and how many fit in all."""
        ...

    async def delivery(self, id: str, *, key_id: int | None = None) -> Delivery | None: ...

    async def attempts(self, id: str) -> list[Attempt]:
        """The newest MOST_ATTEMPTS, oldest first."""
        ...

    async def pending(self, key_id: int, *, most: int) -> int:
        """How many deliveries of a key are Pending, counted to `most`."""
        ...

    async def blank(self, before: int) -> int:
        """Forgets the bodies of callbacks created before then, Pending ones too; how many,
        MOST_ROWS a call.
        """
        ...

    async def prune(self, before: int) -> int:
        """Deletes deliveries created before then that are not Pending, with their log; how many."""
        ...
