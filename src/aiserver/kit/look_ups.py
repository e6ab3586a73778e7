"""Looks up host names that callers chose, where a name without an answer holds up nobody else."""

import asyncio
import concurrent.futures
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakValueDictionary

import msgspec

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class NotLookedUp(OSError):
    """The host's name server is slow, or too many names are being looked up; try again later."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`most` names at a time, `per_line` of them for one caller; each waits `wait` seconds for
    room. A name that takes longer than `slow` is not waited for, nor asked for `remembered`
    seconds after it failed; `names` such names are kept.
    """

    most: int = 32
    per_line: int = 4
    wait: float = 1.0
    slow: float = 5.0
    remembered: float = 30.0
    names: int = 1024


class _Running(msgspec.Struct, frozen=True):
    task: asyncio.Task[Sequence[str]]
    began: float


def threaded(ask: Callable[[str, int], Sequence[str]]) -> Resolve:
    """A look-up that blocks, each time in a thread that keeps no process from ending."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        found = concurrent.futures.Future[Sequence[str]]()
        # Before a cancellation can come, which would leave nobody to take the thread's answer.
        found.set_running_or_notify_cancel()

        def run() -> None:
            # Raised where the answer is awaited, or nobody would hear of it.
            try:
                found.set_result(ask(host, port))
            except Exception as error:
                found.set_exception(error)

        try:
            # The pool of asyncio is joined at exit, that of uvloop has four threads for everybody.
            threading.Thread(target=run, name="look-up", daemon=True).start()
        except RuntimeError:
            raise NotLookedUp from None
        return await asyncio.wrap_future(found)

    return resolve


def _ask_system(host: str, port: int) -> list[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


# The addresses of a host as this machine knows them. Raises OSError.
system_resolve: Resolve = threaded(_ask_system)


class LookUps:
    """One look-up at a time for a name, which all who ask for it share."""

    def __init__(
        self,
        resolve: Resolve = system_resolve,
        *,
        limits: Limits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._limits = limits or Limits()
        self._monotonic = monotonic
        self._running: dict[str, _Running] = {}
        self._slow: dict[str, float] = {}
        self._room = asyncio.Semaphore(self._limits.most)
        self._lines = WeakValueDictionary[int | str, asyncio.Semaphore]()

    async def find(self, host: str, port: int, *, caller: int | None = None) -> Sequence[str]:
        """Addresses; names of one `caller` share a line, without one those of one domain.

        Raises NotLookedUp, or the OSError of the look-up.
        """
        name = host.lower()
        self._refuse_slow(name)
        if name not in self._running:
            line = await self._enter(_domain(name) if caller is None else caller)
            if name in self._running:
                self._leave(line)
            else:
                self._begin(name, port, line)
        # Whoever stops waiting does not end it for the others.
        return await asyncio.shield(self._running[name].task)

    async def close(self) -> None:
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _refuse_slow(self, name: str) -> None:
        now = self._monotonic()
        running = self._running.get(name)
        if running is not None and now - running.began >= self._limits.slow:
            raise NotLookedUp
        if self._slow.get(name, now) > now:
            raise NotLookedUp

    async def _enter(self, caller: int | str) -> asyncio.Semaphore:
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = asyncio.Semaphore(self._limits.per_line)
        try:
            async with asyncio.timeout(self._limits.wait):
                await line.acquire()
                try:
                    await self._room.acquire()
                except BaseException:
                    line.release()
                    raise
        except TimeoutError:
            raise NotLookedUp from None
        return line

    def _leave(self, line: asyncio.Semaphore) -> None:
        self._room.release()
        line.release()

    def _begin(self, name: str, port: int, line: asyncio.Semaphore) -> None:
        began = self._monotonic()

        async def look_up() -> Sequence[str]:
            return await self._resolve(name, port)

        def ended(task: asyncio.Task[Sequence[str]]) -> None:
            del self._running[name]
            self._leave(line)
            failed = task.cancelled() or task.exception() is not None
            self._remember(name, slow=failed and self._monotonic() - began >= self._limits.slow)

        task = asyncio.create_task(look_up(), name="look-up")
        self._running[name] = _Running(task, began)
        task.add_done_callback(ended)

    def _remember(self, name: str, *, slow: bool) -> None:
        self._slow.pop(name, None)
        if slow:
            self._slow[name] = self._monotonic() + self._limits.remembered
            if len(self._slow) > self._limits.names:
                del self._slow[next(iter(self._slow))]


def _domain(name: str) -> str:
    return ".".join(name.rstrip(".").split(".")[-2:])
