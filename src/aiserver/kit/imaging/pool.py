"""A few children that work on pictures for the whole server, and the line in front of them."""

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from aiserver.kit import log
from aiserver.kit.imaging.errors import (
    ImageRefused,
    ImagingBusy,
    ImagingDiskFull,
    ImagingFailed,
    ImagingTimedOut,
)
from aiserver.kit.imaging.jobs import (
    Done,
    Faulted,
    Full,
    Job,
    Limits,
    Ready,
    Refused,
    Reply,
    Result,
)
from aiserver.kit.imaging.worker import ChildEnded, Worker
from aiserver.kit.process import Backoff

MOST_CHILDREN = 4
_STOPPED = "The server is stopping; try again shortly."
_jobs = msgspec.msgpack.Decoder(Job)
_log = log.get("imaging")


class ImagingPool:
    """Runs jobs in at most `children` children (the cores, at most 4), begun when needed.

    `queue` jobs wait for a child, each at most `wait` seconds. A child is replaced after
    `recycle_after` jobs, or once it holds more than `recycle_bytes` between them.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        children: int | None = None,
        queue: int = 64,
        wait: float = 15.0,
        recycle_after: int = 1000,
        recycle_bytes: int = 256 * 2**20,
        start_within: float = 30.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or Limits()
        self._most = children or min(MOST_CHILDREN, os.cpu_count() or 1)
        self._queue = queue
        self._wait = wait
        self._recycle_after = recycle_after
        self._recycle_bytes = recycle_bytes
        self._start_within = start_within
        self._backoff = backoff or Backoff(first=0.2, cap=5.0)
        self._clock = clock
        self._idle: list[Worker] = []
        self._workers: set[Worker] = set()
        self._busy = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._failures = 0
        self._not_before = 0.0
        self._stopping = asyncio.Event()
        self._stopping.set()

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def running(self) -> int:
        """Jobs that have a child now."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Jobs that wait for a child."""
        return sum(1 for turn in self._line if not turn.done())

    @property
    def pids(self) -> list[int]:
        """The children that are up."""
        return sorted(worker.pid for worker in self._workers if worker.alive)

    async def start(self) -> None:
        """From now on jobs are taken; children begin with the first ones."""
        self._stopping.clear()

    async def stop(self) -> None:
        """End every child; jobs that run or wait fail."""
        self._stopping.set()
        while self._line:
            _pass(self._line.popleft(), ImagingFailed(_STOPPED))
        self._idle.clear()
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*(worker.ended() for worker in self._workers))
        self._workers.clear()

    async def run(self, job: Job, *, timeout: float) -> Result:
        """What came of the job, which may take `timeout` seconds once it has a child.

        Raises ImageRefused, ImagingBusy, ImagingTimedOut and ImagingFailed. Who cancels it may
        remove the job's files at once: its child is ended.
        """
        frame = _encoded(job)
        async with self._turn(), self._worker() as worker:
            return _result(await self._answer(worker, job, frame, timeout))

    async def _answer(self, worker: Worker, job: Job, frame: bytes, timeout: float) -> Reply:
        try:
            async with asyncio.timeout(timeout):
                reply = await worker.ask(frame)
        except TimeoutError:
            _log.warning("image_job_timed_out", job=type(job).__name__, seconds=timeout)
            raise ImagingTimedOut from None
        except ChildEnded as ended:
            raise self._crashed(job, ended) from ended
        if isinstance(reply, Full):
            _log.error("image_disk_full", job=type(job).__name__)
        elif isinstance(reply, Faulted):
            _log.error("image_job_failed", job=type(job).__name__, reason=reply.message)
        elif not isinstance(reply, Ready):
            self._failures = 0
        worker.fit = self._fit(worker, reply)
        return reply

    def _crashed(self, job: Job, ended: ChildEnded) -> ImagingFailed:
        if self._stopping.is_set():
            return ImagingFailed(_STOPPED)
        _log.error("image_child_ended", job=type(job).__name__, reason=str(ended))
        if ended.by_signal == signal.SIGXCPU:
            return ImagingTimedOut()
        self._failed()
        return ImagingFailed()

    def _failed(self) -> None:
        """The first crash is made good at once; then each one in a row waits longer."""
        self._failures += 1
        if self._failures > 1:
            self._not_before = self._clock() + self._backoff.delay(self._failures - 1)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        self._refuse_stopped()
        if self._busy < self._most:
            self._busy += 1
        else:
            await self._in_line()
        try:
            yield
        finally:
            self._next()

    async def _in_line(self) -> None:
        if self.waiting >= self._queue:
            raise ImagingBusy
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self._wait):
                await turn
        except TimeoutError:
            self._leave(turn)
            raise ImagingBusy from None
        except BaseException:
            self._leave(turn)
            raise

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn in self._line:
            self._line.remove(turn)
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            # It was given the turn in the same moment.
            self._next()

    def _next(self) -> None:
        """Hand the turn to who waits longest."""
        while self._line:
            if _pass(self._line.popleft()):
                return
        self._busy -= 1

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncGenerator[Worker]:
        """A child for one job, ended if the job did not leave it fit for another."""
        worker = self._rested() or await self._begin()
        try:
            yield worker
        finally:
            if worker.fit:
                self._idle.append(worker)
            else:
                worker.kill()

    def _rested(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.kill()
        return None

    async def _begin(self) -> Worker:
        await self._until_due()
        try:
            worker = await Worker.launch()
        except ChildEnded as error:
            raise self._not_started(error) from error
        self._workers = {other for other in self._workers if not other.gone} | {worker}
        try:
            # Once more, since it may have been stopped meanwhile, and did not know this child.
            self._refuse_stopped()
            await worker.ready(self._limits, within=self._start_within)
        except (ChildEnded, TimeoutError) as error:
            worker.kill()
            self._refuse_stopped()
            raise self._not_started(error) from error
        except BaseException:
            worker.kill()
            raise
        return worker

    def _not_started(self, error: Exception) -> ImagingFailed:
        self._failed()
        _log.error("image_child_not_started", reason=str(error) or "it took too long")
        return ImagingFailed("The server cannot work on images now; its log says why.")

    def _refuse_stopped(self) -> None:
        if self._stopping.is_set():
            raise ImagingFailed(_STOPPED)

    async def _until_due(self) -> None:
        delay = self._not_before - self._clock()
        if delay <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        self._refuse_stopped()

    def _fit(self, worker: Worker, reply: Reply) -> bool:
        """Whether the child may go on, or has done enough or grown."""
        grown = not isinstance(reply, Ready) and reply.resident > self._recycle_bytes
        return not grown and worker.jobs < self._recycle_after and not self._stopping.is_set()


def _pass(turn: asyncio.Future[None], error: Exception | None = None) -> bool:
    if turn.done():
        return False
    if error is None:
        turn.set_result(None)
    else:
        turn.set_exception(error)
    return True


def _encoded(job: Job) -> bytes:
    """Raises ImageRefused where the job's values are out of range."""
    try:
        frame = msgspec.msgpack.encode(job)
        _jobs.decode(frame)
    except (ValueError, OverflowError) as error:
        raise ImageRefused(f"Invalid image options: {error}", code="InvalidOptions") from error
    return frame


def _result(reply: Reply) -> Result:
    match reply:
        case Done():
            return reply.result
        case Refused():
            raise ImageRefused(reply.message, code=reply.code, detail=reply.detail)
        case Full():
            raise ImagingDiskFull
        case _:
            raise ImagingFailed
