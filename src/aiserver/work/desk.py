"""Joins what queued work is made of: the store, who runs it, and who tells of its end."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.operation import Handler
from aiserver.contract.registry import Registry
from aiserver.jobs.admin_handlers import AdminHandlers
from aiserver.jobs.callback_handlers import CallbackHandlers
from aiserver.jobs.callback_secrets import CallbackSecrets
from aiserver.jobs.callbacks import Callbacks
from aiserver.jobs.deliveries import Deliveries, Sink
from aiserver.jobs.queue import Queue
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.schedule import Schedule
from aiserver.jobs.shown import RunningJob
from aiserver.jobs.status_handlers import StatusHandlers
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.store.sqlite_outbox import SqliteOutbox
from aiserver.jobs.worker import HEARTBEAT_SECONDS, Worker
from aiserver.kit.background import Background
from aiserver.kit.clock import Clock
from aiserver.kit.db import Database
from aiserver.kit.outbound import Outbound
from aiserver.settlement import Settlement
from aiserver.work.deferred import Deferred
from aiserver.work.owner import dead_among, this_process
from aiserver.work.rooms import Rooms, Slots
from aiserver.work.runner import JobRunner
from aiserver.work.terms import Terms
from aiserver.work.twins import Placing, QueueHandlers

_SWEEP_SECONDS = 2.0
_PROGRESS_SECONDS = 0.25
_ARCHIVE_SECONDS = 60.0
_UPKEEP_SECONDS = 3600.0
# A job that ended stays where it is found fastest for so long.
_ARCHIVE_AFTER = timedelta(minutes=5)
_FORGET_KEYS_AFTER = timedelta(days=1)
_FORGET_DELIVERIES_AFTER = timedelta(days=30)


class Desk:
    """`sink` takes the callbacks that go to this server itself."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        secrets: CallbackSecrets,
        clock: Clock,
        terms: Terms,
        background: Background,
        *,
        sink: Sink,
    ) -> None:
        self._clock = clock
        self._terms = terms
        self._background = background
        self._outbound = Outbound(terms.guard)
        self._addresses = ReplyAddresses(self._outbound, own=terms.own)
        self._store = SqliteJobs(
            database, clock, folder, bounds=terms.bounds, announce=Callbacks(self._addresses).of
        )
        self.queue = Queue(self._store)
        self._outbox = SqliteOutbox(database, clock)
        self._secrets = secrets
        self._deliveries = Deliveries(
            self._outbox, self._addresses, self._secrets, self._outbound, clock, sink=sink
        )
        self.schedule = Schedule(background, clock)
        self._worker: Worker | None = None

    def handlers(
        self, twins: Iterable[type[msgspec.Struct]], places: Mapping[str, Placing]
    ) -> dict[type[msgspec.Struct], Handler]:
        """Those of queued calls, of jobs and of callbacks; of a room's own status calls not."""
        queued = QueueHandlers(self.queue, self._addresses, twins, places)
        self.deferred = Deferred(self.queue, queued)
        rooms = (
            queued,
            StatusHandlers(self.queue, self._clock),
            AdminHandlers(self.queue, self._running, self.schedule, self._clock),
            CallbackHandlers(self._store, self._outbox, self._deliveries, self._secrets),
        )
        return {request: handler for room in rooms for request, handler in room.handlers().items()}

    async def start(
        self,
        registry: Registry,
        settlement: Settlement,
        slots: Mapping[str, Slots],
        caller_of: Callable[[int], Caller | None],
    ) -> None:
        """Takes up what was left, and begins to work. Raises StorageError."""
        await self._store.begin()
        runner = JobRunner(registry, settlement, self._clock, caller_of=caller_of)
        worker = self._worker = Worker(
            self.queue,
            Rooms(slots),
            runner.run,
            self._clock,
            owner=this_process(),
            most=self._terms.most_running,
        )
        self.queue.bell = _Bell(worker, self._deliveries)
        self.queue.swept(await self._store.take_back(dead_among(await self._store.owners())))
        background = self._background
        background.run("jobs", worker.run)
        background.run("callbacks", self._deliveries.run)
        background.every(HEARTBEAT_SECONDS, "job leases", worker.beat)
        background.every(_PROGRESS_SECONDS, "job progress", worker.tell_progress)
        background.every(_SWEEP_SECONDS, "job sweep", self._sweep)
        self.schedule.every(_ARCHIVE_SECONDS, "Archive finished jobs", self._archive)
        self.schedule.every(_UPKEEP_SECONDS, "Forget old jobs", self._forget)

    async def secret_of(self, key_id: int) -> str:
        """What the callbacks of a key's jobs are signed with. Raises StorageError."""
        return (await self._secrets.of(key_id)).current

    async def stop(self, *, grace: float) -> None:
        """Lets jobs end for so many seconds; the others go back to the queue."""
        if self._worker is not None:
            await self._worker.shut(grace=grace)

    async def close(self) -> None:
        """Finishes what was begun, once nothing of it is at work."""
        await self._store.close()
        await self._outbound.close()

    def _running(self) -> list[RunningJob]:
        running = self._worker.running if self._worker is not None else []
        return [
            RunningJob(
                msgspec.structs.replace(attempt.job, worker=attempt.worker),
                attempt.job.started or 0,
            )
            for attempt in running
        ]

    async def _sweep(self) -> None:
        while (await self.queue.sweep()).more:
            pass

    async def _archive(self) -> None:
        before = self._ago(_ARCHIVE_AFTER)
        while await self._store.archive(before):
            pass

    async def _forget(self) -> None:
        content = self._ago(timedelta(seconds=self._terms.content_seconds))
        while (await self._store.blank(content)).more:
            pass
        while await self._store.forget_keys(self._ago(_FORGET_KEYS_AFTER)):
            pass
        while await self._outbox.prune(self._ago(_FORGET_DELIVERIES_AFTER)):
            pass
        if self._terms.months > 0:
            await self._store.drop_months(_month_before(self._clock.now(), self._terms.months - 1))

    def _ago(self, time: timedelta) -> int:
        return int((self._clock.now() - time).timestamp() * 1000)


class _Bell:
    """Passes the news of the queue on to those who act on them."""

    def __init__(self, worker: Worker, deliveries: Deliveries) -> None:
        self.ready = worker.ready
        self.stop = worker.stop
        self.called_back = deliveries.wake


def _month_before(now: datetime, count: int) -> str:
    year, index = divmod(now.astimezone(UTC).year * 12 + now.month - 1 - count, 12)
    return f"{year:04}-{index + 1:02}"
