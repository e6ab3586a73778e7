"""An outbox around another that lets a test wait for what is written to it, and spoil it."""

from collections.abc import Collection

from aiserver.jobs.store import Attempt, Attempted, Delivery, DeliveryFilter, NewDelivery, Outbox
from aiserver.kit.db import StorageError
from fakes.upstream import Occurrences


class WatchedOutbox:
    """Counts attempts as they are recorded; the next `failures` cannot be, nor an `unreadable` due."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.recorded = Occurrences()
        self.refused = Occurrences()
        self.failures = 0
        self.unreadable = False

    async def add(self, delivery: NewDelivery) -> None:
        await self._outbox.add(delivery)

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
        return await self._outbox.take(
            until=until,
            most=most,
            per_receiver=per_receiver,
            per_key=per_key,
            busy=busy,
            busy_keys=busy_keys,
        )

    async def next_due(self) -> int | None:
        if self.unreadable:
            self.refused.add()
            raise StorageError("The database restarts.")
        return await self._outbox.next_due()

    async def attempted(self, attempted: Attempted) -> bool:
        if self.failures:
            self.failures -= 1
            self.refused.add()
            raise StorageError("The database restarts.")
        written = await self._outbox.attempted(attempted)
        self.recorded.add()
        return written

    async def redeliver(self, id: str, *, key_id: int | None = None) -> bool:
        return await self._outbox.redeliver(id, key_id=key_id)

    async def deliveries(self, filter: DeliveryFilter) -> tuple[list[Delivery], int]:
        return await self._outbox.deliveries(filter)

    async def delivery(self, id: str, *, key_id: int | None = None) -> Delivery | None:
        return await self._outbox.delivery(id, key_id=key_id)

    async def attempts(self, id: str) -> list[Attempt]:
        return await self._outbox.attempts(id)

    async def pending(self, key_id: int, *, most: int) -> int:
        return await self._outbox.pending(key_id, most=most)

    async def blank(self, before: int) -> int:
        return await self._outbox.blank(before)

    async def prune(self, before: int) -> int:
        return await self._outbox.prune(before)
