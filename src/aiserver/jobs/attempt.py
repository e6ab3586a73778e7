"""One attempt at a job in this process: where it runs, what it tells, how it is stopped."""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from aiserver.contract.trace import Trace
from aiserver.jobs.job import Fence, Job
from aiserver.jobs.queue import EarlyAnswer
from aiserver.jobs.store import Progress
from aiserver.kit.ledger import LedgerRow


class Slot(Protocol):
    """Room for one job where its work is done, at the provider `worker` if that is known.

    `release` again does nothing.
    """

    @property
    def worker(self) -> str | None: ...

    def give(self, trace: Trace) -> None:
        """The call of this trace goes on with it, and frees it."""
        ...

    def release(self) -> None: ...


class Stop(Enum):
    """Why an attempt is stopped from outside."""

    CANCELLED = "cancelled"
    LOST = "lost"
    STOPPING = "stopping"


class Attempt:
    """One attempt at work. The runner leaves in `ledger` and `worker` what stopping it cost.

    `told`: it said how far it is.
    """

    def __init__(
        self,
        job: Job,
        slot: Slot,
        tell: Callable[[Progress], None],
        answer: EarlyAnswer | None = None,
    ) -> None:
        self.job = job
        self.slot = slot
        self.ledger: LedgerRow | None = None
        self.worker = slot.worker
        self.stop: Stop | None = None
        self.task: asyncio.Task[None] | None = None
        self.working = False
        self.told = False
        self.answer = answer
        self._tell = tell

    @property
    def fence(self) -> Fence:
        return self.job.fence

    def report(
        self,
        *,
        progress: float | None = None,
        status: str | None = None,
        log: str | None = None,
        worker: str | None = None,
    ) -> None:
        """How far it is; written a few times a second, and before its end."""
        self.told = self.told or not (progress is status is log is None)
        self._tell(
            Progress(fence=self.fence, progress=progress, status=status, log=log, worker=worker)
        )

    def interrupt(self, why: Stop) -> None:
        """Before the work it will not begin; after it, its outcome is recorded all the same."""
        if self.stop is None:
            self.stop = why
            if self.working and self.task is not None:
                self.task.cancel()


def merged(updates: Sequence[Progress]) -> list[Progress]:
    """One update a job: the newest of each member, the log lines joined."""
    found: dict[Fence, Progress] = {}
    for new in updates:
        old = found.get(new.fence)
        found[new.fence] = new if old is None else _over(old, new)
    return list(found.values())


def _over(old: Progress, new: Progress) -> Progress:
    return Progress(
        fence=new.fence,
        progress=old.progress if new.progress is None else new.progress,
        status=old.status if new.status is None else new.status,
        log="".join(filter(None, (old.log, new.log))) or None,
        worker=old.worker if new.worker is None else new.worker,
    )
