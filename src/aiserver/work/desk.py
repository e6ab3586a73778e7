"""Joins what queued work is made of: the store, who runs it, and who tells of its end."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.operation import Handler
from aiserver.contract.registry import Registry
from aiserver.contract.twins import statuses_of
from aiserver.files.store import FileStore
from aiserver.jobs.admin_handlers import AdminHandlers
from aiserver.jobs.callback_handlers import CallbackHandlers
from aiserver.jobs.callback_secrets import CallbackSecrets
from aiserver.jobs.callbacks import Callbacks
from aiserver.jobs.deliveries import Deliveries, Sink
from aiserver.jobs.news import News
from aiserver.jobs.queue import Queue
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.schedule import Schedule
from aiserver.jobs.shown import RunningJob
from aiserver.jobs.status_handlers import StatusHandlers
from aiserver.jobs.store import Announce, Bounds, JobStore, Outbox
from aiserver.jobs.store.backlog import Backlog
from aiserver.jobs.sweeper import SWEEP_SECONDS, Sweeper
from aiserver.jobs.worker import HEARTBEAT_SECONDS, Worker
from aiserver.kit.background import Background
from aiserver.kit.clock import Clock
from aiserver.kit.ids import CallIds
from aiserver.kit.outbound import Outbound
from aiserver.settlement import Settlement
from aiserver.work.deferred import Deferred, Telling
from aiserver.work.links import Links
from aiserver.work.owner import dead_among, this_process
from aiserver.work.rooms import Rooms, Slots
from aiserver.work.runner import JobRunner
from aiserver.work.terms import Terms
from aiserver.work.twins import Placing, QueueHandlers
from aiserver.work.uploads import JobUploads

_PROGRESS_SECONDS = 0.25
_ARCHIVE_SECONDS = 60.0
_UPKEEP_SECONDS = 3600.0
_DISK_SECONDS = 6 * 3600.0
# A job that ended stays where it is found fastest for so long.
_ARCHIVE_AFTER = timedelta(minutes=5)
_FORGET_KEYS_AFTER = timedelta(days=1)
_FORGET_DELIVERIES_AFTER = timedelta(days=30)


class Stores(Protocol):
    """Opens what jobs are kept in; `close` of the database is its owner's."""

    @property
    def files(self) -> FileStore: ...

    def jobs(self, bounds: Bounds, announce: Announce) -> JobStore: ...

    def outbox(self) -> Outbox: ...


class Desk:
    """`sink` takes the callbacks that go to this server itself; `links` signs addresses."""

    def __init__(
        self,
        stores: Stores,
        secrets: CallbackSecrets,
        clock: Clock,
        terms: Terms,
        background: Background,
        *,
        sink: Sink,
        redact: Callable[[str], str],
        call_ids: CallIds,
        links: Links | None = None,
    ) -> None:
        self._clock = clock
        self._terms = terms
        self._background = background
        self._redact = redact
        self._call_ids = call_ids
        self._outbound = Outbound(terms.guard)
        self._addresses = ReplyAddresses(self._outbound, own=terms.own)
        self._links = links
        base = links.base if links is not None else next(iter(terms.own), "")
        callbacks = Callbacks(self._addresses, base=base)
        self._store = stores.jobs(terms.bounds, callbacks.of)
        self.queue = Queue(self._store)
        self._uploads = JobUploads(self.queue, stores.files)
        self._outbox = stores.outbox()
        self._secrets = secrets
        self._deliveries = Deliveries(
            self._outbox,
            self._addresses,
            self._secrets,
            self._outbound,
            clock,
            sink=sink,
            links=links,
        )
        self.schedule = Schedule(background, clock)
        self._worker: Worker | None = None

    def handlers(
        self,
        twins: Sequence[type[msgspec.Struct]],
        places: Mapping[str, Placing],
        tellings: Mapping[str, Telling],
    ) -> dict[type[msgspec.Struct], Handler]:
        """Those of queued calls, of jobs and of callbacks; of a room's own status calls not."""
        queued = QueueHandlers(
            self.queue,
            self._addresses,
            Backlog(self._outbox, self._clock),
            twins,
            places,
            self._clock,
            uploads=self._uploads,
        )
        self.deferred = Deferred(self.queue, queued, tellings, links=self._links)
        rooms = (
            queued,
            StatusHandlers(self.queue, self._clock, statuses=statuses_of(twins), links=self._links),
            AdminHandlers(
                self.queue, self._running, self.schedule, self._clock, tell=self._tell_progress
            ),
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
        runner = JobRunner(
            registry,
            settlement,
            self._clock,
            caller_of=caller_of,
            redact=self._redact,
            uploads=self._uploads.of,
            ids=self._call_ids,
        )
        worker = self._worker = Worker(
            self.queue,
            Rooms(slots),
            runner.run,
            self._clock,
            owner=this_process(),
            most=self._terms.most_running,
        )
        sweeper = Sweeper(self.queue, self._clock)
        self.queue.bell, self.queue.starter = _Bell(worker, self._deliveries, sweeper), worker
        self.queue.swept(await self._store.take_back(dead_among(await self._store.owners())))
        background = self._background
        news = News(self.queue, worker, self._deliveries.wake)
        listener = self._store.listener(news.heard, again=news.again)
        if listener is not None:
            background.run("job news", listener.run)
            background.run("job stops", news.run)
        background.run("jobs", worker.run)
        background.run("callbacks", self._deliveries.run)
        background.every(HEARTBEAT_SECONDS, "job leases", worker.beat)
        background.every(_PROGRESS_SECONDS, "job progress", worker.tell_progress)
        self.schedule.every(
            SWEEP_SECONDS, "Do what has fallen due", sweeper.round, soon=sweeper.soon
        )
        self.schedule.every(_ARCHIVE_SECONDS, "Archive finished jobs", self._archive)
        self.schedule.every(_UPKEEP_SECONDS, "Forget old jobs", self._forget)
        self.schedule.every(_UPKEEP_SECONDS, "Delete files without a job", self._uploads.sweep)
        self.schedule.every(_DISK_SECONDS, "Delete leftover files", self._uploads.sweep_disk)

    async def secret_of(self, key_id: int) -> str:
        """What the callbacks of a key's jobs are signed with. Raises StorageError."""
        return (await self._secrets.of(key_id)).current

    async def forget_secret(self, key_id: int) -> None:
        """For a key that was deleted. Raises StorageError."""
        await self._secrets.forget(key_id)

    def drain(self) -> None:
        """Begins no more jobs; those that run go on, and who waits for one may."""
        if self._worker is not None:
            self._worker.drain()

    def give_up(self) -> None:
        """Whoever waits for a job is told at once where it will be found."""
        self.queue.give_up()

    async def stop(self, *, grace: float) -> None:
        """Lets jobs end for so many seconds; the others go back to the queue."""
        if self._worker is not None:
            await self._worker.shut(grace=grace)

    async def close(self) -> None:
        """Finishes what was begun, once nothing of it is at work."""
        await self._store.close()
        await self._outbound.close()

    async def _tell_progress(self) -> None:
        if self._worker is not None:
            await self._worker.tell_progress()

    def _running(self) -> list[RunningJob]:
        running = self._worker.running if self._worker is not None else []
        return [
            RunningJob(
                msgspec.structs.replace(attempt.job, worker=attempt.worker),
                attempt.job.started or 0,
            )
            for attempt in running
        ]

    async def _archive(self) -> None:
        before = self._ago(_ARCHIVE_AFTER)
        while await self._store.archive(before):
            pass

    async def _forget(self) -> None:
        content = self._ago(timedelta(seconds=self._terms.content_seconds))
        more = True
        while more:
            blanked = await self._store.blank(content)
            await self._uploads.forget(blanked.files)
            more = blanked.more
        while await self._store.forget_keys(self._ago(_FORGET_KEYS_AFTER)):
            pass
        while await self._store.tidy():
            pass
        while await self._outbox.blank(content):
            pass
        while await self._outbox.prune(self._ago(_FORGET_DELIVERIES_AFTER)):
            pass
        await self._secrets.tidy()
        if self._terms.months > 0:
            await self._store.drop_months(_month_before(self._clock.now(), self._terms.months - 1))

    def _ago(self, time: timedelta) -> int:
        return int((self._clock.now() - time).timestamp() * 1000)


class _Bell:
    """Passes the news of the queue on to those who act on them."""

    def __init__(self, worker: Worker, deliveries: Deliveries, sweeper: Sweeper) -> None:
        self.ready = worker.ready
        self.stop = worker.stop
        self.called_back = deliveries.wake
        self.planned = sweeper.planned


def _month_before(now: datetime, count: int) -> str:
    year, index = divmod(now.astimezone(UTC).year * 12 + now.month - 1 - count, 12)
    return f"{year:04}-{index + 1:02}"
