"""Claims the jobs that this process has room for, runs them, and holds their leases meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import chain, repeat
from typing import Protocol

from msgspec.structs import replace

from aiserver.jobs.attempt import Attempt, Slot, Stop, merged
from aiserver.jobs.job import (
    Cancelled,
    Completed,
    Failed,
    FailureKind,
    Job,
    JobError,
    NewJob,
    Outcome,
    Released,
    Retry,
    State,
    begun,
    with_error,
)
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.store import Accepted, Progress, Want
from aiserver.jobs.turns import Name, Turns
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError

LEASE_SECONDS = 15.0
HEARTBEAT_SECONDS = 5.0
MOST_AT_ONCE = 256
_LOOK_AGAIN_SECONDS = 2.0
_RECORD_PAUSES = (0.1, 0.5, 2.0)
_LONGEST_RECORD_PAUSE = 5.0
_RETRY_MS = 2_000
_log = log.get("jobs")


class Room(Protocol):
    """Who knows where jobs can run."""

    def reserve(self, kind: str, model: str, provider: str) -> Slot | None:
        """None while everybody who could do it is busy or out of service."""
        ...

    def watch(self, names: Sequence[Name], freed: Callable[[], None]) -> None:
        """`freed` is called once `reserve` may have more for one of these, the most urgent first.

        What was asked before is forgotten.
        """
        ...


# Does the work of one attempt; it may be cancelled.
Run = Callable[[Attempt], Awaitable[Outcome]]


class Worker:
    """`run`, `beat` and `tell_progress` are loops for Background; one Worker a process."""

    def __init__(
        self,
        queue: Queue,
        room: Room,
        run: Run,
        clock: Clock,
        *,
        owner: str,
        most: int = MOST_AT_ONCE,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._queue = queue
        self._store = queue.store
        self._room = room
        self._do = run
        self._clock = clock
        self._owner = owner
        self._most = most
        self._lease = int(lease_seconds * 1000)
        self._running: dict[int, Attempt] = {}
        self._updates: list[Progress] = []
        self._woken = asyncio.Event()
        self._stopping = False
        self._left = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._nobody_waits = False
        self._heard = 0
        self._starting: set[asyncio.Future[Accepted]] = set()
        self._turns = Turns()

    def ready(self) -> None:
        self._nobody_waits = False
        self._heard += 1
        self._woken.set()

    def stop(self, ids: Sequence[int]) -> None:
        for id in ids:
            if (attempt := self._running.get(id)) is not None:
                attempt.interrupt(Stop.CANCELLED)

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def running(self) -> list[Attempt]:
        return list(self._running.values())

    async def run(self) -> None:
        """Never returns: claims whenever there may be work and room for it."""
        while True:
            self._woken.clear()
            if not self._stopping and await self.claim():
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await self._woken.wait()

    async def start(self, new: NewJob, answer: EarlyAnswer | None) -> Accepted | None:
        """Stores a job and begins it in one, where nobody waits and there is a slot; else None.

        Raises as `JobStore.enqueue`.
        """
        planned = new.run_after is not None or new.deadline is not None
        if self._stopping or planned or self._space <= 0 or not self._nobody_waits:
            return None
        slot = self._room.reserve(new.kind, new.model, new.provider)
        if slot is None:
            return None
        now = self._now()
        until = now + self._lease
        try:
            stored = self._store.start(new, owner=self._owner, until=until)
        except BaseException:
            slot.release()
            raise
        # Who stops waiting for it must not leave a job that nobody runs.
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Accepted] = loop.create_future()
        job = cache(partial(begun, new, owner=self._owner, now=now, until=until))
        stored.add_done_callback(partial(self._started, job, slot, answer, told))
        self._starting.add(stored)
        # Made while the disk is at work.
        loop.call_soon(job)
        return await told

    async def claim(self) -> int:
        """Begins what can be begun now; how many jobs. Raises StorageError."""
        space, heard = self._space, self._heard
        groups = await self._store.groups() if space > 0 else []
        self._nobody_waits = space > 0 and not groups and heard == self._heard
        reserved, blocked = self._turns.share(groups, space, self._room.reserve)
        self._room.watch(() if self._stopping else blocked, self.ready)
        wants = [Want(*name, len(slots)) for name, slots in reserved.items()]
        if not wants:
            return 0
        try:
            async with self._claiming:
                until = self._now() + self._lease
                jobs = await self._store.claim(self._owner, wants, until=until, most=space)
                for job in jobs:
                    self._turns.began(job.key_id)
                    self._begin(job, reserved[job.kind, job.model, job.provider].pop())
            return len(jobs)
        finally:
            for slot in [slot for slots in reserved.values() for slot in slots]:
                slot.release()

    async def beat(self) -> None:
        """Extends the leases of what runs here, and stops what was cancelled or lost."""
        held = [attempt.fence for attempt in self._running.values()]
        if not held:
            return
        try:
            until = self._now() + self._lease
            beat = await self._store.heartbeat(self._owner, held, until=until)
        except StorageError as error:
            _log.warning("leases_not_extended", jobs=len(held), reason=str(error))
            return
        for fences, why in ((beat.lost, Stop.LOST), (beat.cancelled, Stop.CANCELLED)):
            for fence in fences:
                attempt = self._running.get(fence.job_id)
                if attempt is not None and attempt.fence == fence:
                    attempt.interrupt(why)

    async def tell_progress(self) -> None:
        """Writes what was reported since the last time."""
        async with self._telling:
            updates, self._updates = self._updates, []
            if updates:
                with suppress(StorageError):
                    await self._queue.progress(merged(updates))

    def drain(self) -> None:
        """Begins nothing more; what runs goes on."""
        self._stopping = True
        self._room.watch((), self.ready)

    async def shut(self, *, grace: float) -> None:
        """Drains; what still runs after `grace` seconds goes back to the queue."""
        self.drain()
        await asyncio.gather(*self._starting, return_exceptions=True)
        tasks = [attempt.task for attempt in self.running if attempt.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        # What a claim under way brings goes back too, and is waited for.
        async with self._claiming:
            attempts = self.running
        self._left.set()
        for attempt in attempts:
            attempt.interrupt(Stop.STOPPING)
        rest = [attempt.task for attempt in attempts if attempt.task is not None]
        await asyncio.gather(*rest, return_exceptions=True)

    @property
    def _space(self) -> int:
        return self._most - len(self._running) - len(self._starting)

    def _started(
        self,
        job: Callable[[], Job],
        slot: Slot,
        answer: EarlyAnswer | None,
        told: asyncio.Future[Accepted],
        stored: asyncio.Future[Accepted],
    ) -> None:
        self._starting.discard(stored)
        failure = stored.exception()
        if failure is not None or stored.result().replayed:
            slot.release()
        else:
            if answer is not None:
                answer.expected = True
            accepted = stored.result()
            self._begin(replace(job(), id=accepted.id, ref_id=accepted.ref_id), slot, answer)
        if told.done():
            return
        if failure is not None:
            told.set_exception(failure)
        else:
            told.set_result(stored.result())

    def _begin(self, job: Job, slot: Slot, answer: EarlyAnswer | None = None) -> None:
        attempt = Attempt(job, slot, lambda told: self._updates.append(told), answer)
        if (lost := self._running.get(job.id)) is not None:
            lost.interrupt(Stop.LOST)
        self._running[job.id] = attempt
        if self._stopping:
            attempt.interrupt(Stop.STOPPING)
        attempt.task = asyncio.create_task(self._attempt(attempt), name=f"job {job.id}")

    async def _attempt(self, attempt: Attempt) -> None:
        try:
            self._queue.started(attempt.job)
            if attempt.worker is not None:
                attempt.report(worker=attempt.worker)
            outcome = await self._outcome(attempt)
            attempt.slot.release()
            if outcome is not None:
                await self._answer(attempt, outcome)
                if attempt.told:
                    # After its end nothing is written of an attempt any more.
                    await self.tell_progress()
                await self._record(attempt, outcome)
        finally:
            attempt.slot.release()
            if attempt.answer is not None:
                attempt.answer.give(None)
            if self._running.get(attempt.job.id) is attempt:
                del self._running[attempt.job.id]
            self._woken.set()

    async def _outcome(self, attempt: Attempt) -> Outcome | None:
        if attempt.stop is not None:
            return _stopped(attempt)
        attempt.working = True
        try:
            return await self._do(attempt)
        except asyncio.CancelledError:
            return _stopped(attempt)
        except Exception:
            # Where a job ends: its owner gets a word, the log has the rest.
            _log.exception("job_failed", job=attempt.job.id, operation=attempt.job.operation)
            error = JobError(
                code="InternalServerError",
                message=f"The server failed; its log has the details of job {attempt.job.id}.",
                status=500,
                kind=FailureKind.SERVER,
            )
            return Retry(at=self._now() + _RETRY_MS, error=error, ledger=attempt.ledger)
        finally:
            attempt.working = False

    async def _answer(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.answer is None:
            return
        job = replace(attempt.job, ended=self._now(), worker=attempt.worker)
        if isinstance(outcome, Completed):
            job = replace(job, state=State.COMPLETED, result=outcome.result)
        elif isinstance(outcome, Failed):
            job = with_error(replace(job, state=State.FAILED), outcome.error)
        else:
            return
        attempt.answer.give(job)
        await attempt.answer.taken()

    async def _record(self, attempt: Attempt, outcome: Outcome) -> None:
        """Keeps trying while the store is away: what was done must not be done again."""
        fence = attempt.fence
        for pause in chain(_RECORD_PAUSES, repeat(_LONGEST_RECORD_PAUSE)):
            try:
                if await self._queue.finish(fence, outcome) is None:
                    _log.warning("job_lease_lost", job=fence.job_id, attempt=fence.attempt)
                return
            except StorageError as error:
                if self._left.is_set() or attempt.stop is Stop.LOST:
                    _log.error("job_not_recorded", job=fence.job_id, reason=str(error))
                    return
                _log.warning("job_not_recorded_yet", job=fence.job_id, reason=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._left.wait()

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _stopped(attempt: Attempt) -> Outcome | None:
    match attempt.stop:
        case Stop.CANCELLED:
            return Cancelled(worker=attempt.worker, ledger=attempt.ledger)
        case Stop.LOST:
            return None
        case _:
            return Released(ledger=attempt.ledger)
