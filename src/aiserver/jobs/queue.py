"""The queue as callers meet it: jobs go in, and who waits for one hears what becomes of it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager
from typing import Protocol

from aiserver.jobs.job import Fence, Job, NewJob, Outcome, State
from aiserver.jobs.store import (
    Accepted,
    CancelOutcome,
    CancelResult,
    Changed,
    JobStore,
    Progress,
    Swept,
)

# Another process may have ended a job without our hearing of it.
_LOOK_AGAIN_SECONDS = 2.0


class Bell(Protocol):
    """What must hear of work: `ready` jobs may be claimed, `stop` is asked of running ones."""

    def ready(self) -> None: ...

    def stop(self, ids: Sequence[int]) -> None: ...

    def called_back(self) -> None: ...

    def planned(self) -> None:
        """A job has a time of its own to begin or to end."""
        ...


# From a future to who waits in a task for `asyncio.wait` of it.
_TURNS_TO_WAKE = 3


class EarlyAnswer:
    """What a job that began as it was stored came to, before that is on disk too."""

    def __init__(self) -> None:
        self._job: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self.expected = False

    def give(self, job: Job | None) -> None:
        """None: what became of it is for the store to say."""
        if not self._job.done():
            self._job.set_result(job)

    async def taken(self) -> None:
        """Lets who waits for it go on first: a write would take the interpreter from them."""
        for _ in range(_TURNS_TO_WAKE):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> Job | None:
        if not self._job.done():
            await asyncio.wait({self._job}, timeout=seconds)
        return self._job.result() if self._job.done() else None


class Starter(Protocol):
    """Begins a job as it is stored, where that is fair and there is room; None where not."""

    async def start(self, new: NewJob, answer: EarlyAnswer | None) -> Accepted | None: ...


class Silent:
    """For a process that runs no jobs."""

    def ready(self) -> None: ...

    def stop(self, ids: Sequence[int]) -> None: ...

    def called_back(self) -> None: ...

    def planned(self) -> None: ...


class Queue:
    """Over a store, which several processes may share; the news of this one come at once."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.bell: Bell = Silent()
        self.starter: Starter | None = None
        self._followers: dict[int, list[asyncio.Event]] = {}
        self._answers: set[EarlyAnswer] = set()
        self._given_up = False

    async def add(self, job: NewJob, answer: EarlyAnswer | None = None) -> Accepted:
        """As `JobStore.enqueue`, begun in one if it can be; `answer` is for a caller that waits."""
        if self.starter is not None:
            accepted = await self.starter.start(job, answer)
            if accepted is not None:
                return accepted
        accepted = await self.store.enqueue(job)
        if not accepted.replayed:
            self.bell.ready()
            if job.run_after is not None or job.deadline is not None:
                self.bell.planned()
        return accepted

    def started(self, job: Job) -> None:
        """An attempt at it begins in this process."""
        self._notify(job.id)

    async def finish(self, fence: Fence, outcome: Outcome) -> Changed | None:
        """As `JobStore.finish`."""
        changed = await self.store.finish(fence, outcome)
        if changed is not None:
            self.tell([changed])
        return changed

    async def progress(self, updates: Sequence[Progress]) -> list[Fence]:
        """As `JobStore.progress`."""
        lost = await self.store.progress(updates)
        for update in updates:
            self._notify(update.fence.job_id)
        return lost

    async def cancel(self, ids: Sequence[int], *, key_id: int | None = None) -> CancelResult:
        """As `JobStore.cancel`; what runs here is stopped at once."""
        result = await self.store.cancel(ids, key_id=key_id)
        self.tell(result.ended)
        asked = [id for id, outcome in result.outcomes.items() if outcome is CancelOutcome.ASKED]
        if asked:
            self.bell.stop(asked)
        return result

    async def sweep(self, *, spare_leases: bool = False) -> Swept:
        """As `JobStore.sweep`."""
        swept = await self.store.sweep(spare_leases=spare_leases)
        self.swept(swept)
        return swept

    def swept(self, swept: Swept) -> None:
        """What a round of the store's upkeep changed."""
        self.tell(swept.ended)
        if swept.ended:
            # One that runs here past its deadline has lost its lease: what it does is in vain.
            self.bell.stop([changed.id for changed in swept.ended])
        if swept.ready:
            self.bell.ready()

    def ended_elsewhere(self, ids: Sequence[int]) -> None:
        """Another process ended these, or some that it does not name."""
        for id in ids or list(self._followers):
            self._notify(id)

    def tell(self, changes: Sequence[Changed]) -> None:
        """Wakes whoever follows these jobs."""
        for changed in changes:
            self._notify(changed.id)
            if changed.called_back:
                self.bell.called_back()
            if changed.state is State.QUEUED:
                self.bell.ready()
            elif changed.state is State.SCHEDULED:
                self.bell.planned()

    async def ended(
        self, id: int, *, seconds: float, answer: EarlyAnswer | None = None
    ) -> Job | None:
        """The job once it has ended, or has its `answer`; None when that takes longer."""
        if answer is not None and answer.expected and not self._given_up:
            began = time.monotonic()
            self._answers.add(answer)
            try:
                job = await answer.wait(seconds)
            finally:
                self._answers.discard(answer)
            if job is not None:
                return job
            seconds -= time.monotonic() - began
        async with aclosing(self.follow(id, seconds=seconds)) as news:
            async for job in news:
                if job.state.ended:
                    return job
        return None

    @property
    def given_up(self) -> bool:
        return self._given_up

    def give_up(self) -> None:
        """Nobody waits any longer: who does, and who comes, gets a job as it stands."""
        self._given_up = True
        for answer in self._answers:
            answer.give(None)
        for id in self._followers:
            self._notify(id)

    async def follow(self, id: int, *, seconds: float) -> AsyncGenerator[Job]:
        """The job as it stands, then each time it may have changed, until it ends or time does."""
        until = time.monotonic() + seconds
        with self._following(id) as news:
            while (job := await self.store.find(id=id)) is not None:
                yield job
                left = until - time.monotonic()
                if job.state.ended or left <= 0 or self._given_up:
                    return
                try:
                    async with asyncio.timeout(min(left, _LOOK_AGAIN_SECONDS)):
                        await news.wait()
                except TimeoutError:
                    continue
                finally:
                    news.clear()

    @contextmanager
    def _following(self, id: int) -> Generator[asyncio.Event]:
        news = asyncio.Event()
        followers = self._followers.setdefault(id, [])
        followers.append(news)
        try:
            yield news
        finally:
            followers.remove(news)
            if not followers:
                self._followers.pop(id, None)

    def _notify(self, id: int) -> None:
        for news in self._followers.get(id, ()):
            news.set()
