"""A child process that is kept running, and that ends with the one who runs it."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import cast

from aiserver.kit.spawn import spawn

LINE_LIMIT = 4096
DRAIN_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


class State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(frozen=True)
class Launch:
    """One start of the child; `stdin` is written first and may hold a secret."""

    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    stdin: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a restart, and after how many quick failures to give up."""

    first: float = 0.5
    cap: float = 30.0
    give_up_after: int = 5
    healthy_after: float = 30.0

    def delay(self, failures: int) -> float:
        return min(self.cap, self.first * 2 ** (failures - 1))


class Supervised:
    """Runs a command in a process group of its own and starts it again when it ends.

    With `ready_when` the child counts as running once a line of its standard output satisfies
    it, and that line is not passed on; without it, from its start. A child that is not ready
    within `ready_within` seconds is ended, and started again.
    """

    def __init__(
        self,
        launch: Callable[[], Launch],
        *,
        on_line: Callable[[str], None],
        ready_when: Callable[[str], bool] | None = None,
        ready_within: float = 120.0,
        on_change: Callable[[], None] = lambda: None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launch = launch
        self._on_line = on_line
        self._ready_when = ready_when
        self._ready_within = ready_within
        self._on_change = on_change
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._state = State.STOPPED
        self._reason: str | None = None
        self._pid: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()
        self._stopping = asyncio.Event()

    @property
    def state(self) -> State:
        return self._state

    @property
    def reason(self) -> str | None:
        """Why the child last ended; none while it runs."""
        return self._reason

    @property
    def pid(self) -> int | None:
        return self._pid

    async def start(self) -> None:
        """Begin to keep the child running; returns before it is up."""
        async with self._gate:
            if self._task is not None and not self._task.done():
                return
            self._stopping.clear()
            self._become(State.STARTING)
            self._task = asyncio.create_task(self._supervise())

    async def stop(self, grace: float) -> None:
        """End the child's whole group: politely, and by force once `grace` seconds are over."""
        async with self._gate:
            if self._task is not None:
                self._stopping.set()
                self._signal(signal.SIGTERM)
                done, _ = await asyncio.wait({self._task}, timeout=grace)
                if not done:
                    self._signal(signal.SIGKILL)
                    await asyncio.wait({self._task})
                self._task = None
            if self._state is not State.STOPPED:
                self._become(State.STOPPED)

    async def _supervise(self) -> None:
        try:
            await self._keep_running()
        except Exception as error:
            # The task ends here; whoever waits for the child must learn of it.
            self._become(State.FAILED, f"it could not be supervised: {error!r}")

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            began = self._clock()
            reason = await self._run_once()
            if self._stopping.is_set():
                return
            healthy = self._clock() - began >= self._backoff.healthy_after
            failures = 1 if healthy else failures + 1
            if failures >= self._backoff.give_up_after:
                self._become(State.FAILED, reason)
                return
            self._become(State.STARTING, reason)
            try:
                async with asyncio.timeout(self._backoff.delay(failures)):
                    await self._stopping.wait()
                return
            except TimeoutError:
                continue

    async def _run_once(self) -> str:
        loop = asyncio.get_running_loop()
        launch = self._launch()
        output = _Output(self._on_line, self._is_ready)
        try:
            transport, _ = await spawn(
                lambda: output, *launch.argv, stdin=asyncio.subprocess.PIPE, env=launch.env
            )
        except OSError as error:
            return f"{launch.argv[0]} could not be started: {error.strerror}"
        self._pid = transport.get_pid()
        try:
            # The pipe stays open for the child's life: its end is how the child sees ours.
            # A cast, since the pipes of uvloop are not instances of what they behave like.
            into = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
            if not into.is_closing():
                into.write(launch.stdin)
            if self._stopping.is_set():
                self._signal(signal.SIGKILL)
            elif self._ready_when is None:
                self._become(State.RUNNING)
            overdue = loop.call_later(self._ready_within, self._end_overdue, output)
            try:
                await output.exited.wait()
            finally:
                overdue.cancel()
            # Grandchildren left behind hold the pipes open, and would outlive a restart.
            self._signal(signal.SIGKILL)
            self._pid = None
            await asyncio.wait({output.closed}, timeout=DRAIN_SECONDS)
            return _ending(transport.get_returncode(), output.last_line)
        finally:
            self._signal(signal.SIGKILL)
            self._pid = None
            transport.close()

    def _is_ready(self, line: str) -> bool:
        if self._ready_when is None or self._state is not State.STARTING:
            return False
        if self._stopping.is_set() or not self._ready_when(line):
            return False
        self._become(State.RUNNING)
        return True

    def _end_overdue(self, output: "_Output") -> None:
        if self._state is State.STARTING:
            output.last_line = f"it was not ready after {self._ready_within:g} seconds"
            self._signal(signal.SIGKILL)

    def _become(self, state: State, reason: str | None = None) -> None:
        self._state = state
        self._reason = reason
        self._on_change()

    def _signal(self, number: signal.Signals) -> None:
        if self._pid is not None:
            try:
                os.killpg(self._pid, number)
            except (ProcessLookupError, PermissionError):
                # macOS answers EPERM for a group in which only a zombie is left.
                return


class _Output(asyncio.SubprocessProtocol):
    """Cuts what the child writes into lines of bounded length."""

    def __init__(self, on_line: Callable[[str], None], is_ready: Callable[[str], bool]) -> None:
        self._on_line = on_line
        self._is_ready = is_ready
        self._rest: dict[int, bytes] = {1: b"", 2: b""}
        self.last_line = ""
        self.exited = asyncio.Event()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, rest = (self._rest[fd] + data).split(b"\n")
        # One byte over the limit is kept so that a cut line is known to be cut.
        self._rest[fd] = rest[: LINE_LIMIT + 1]
        for line in lines:
            self._line(fd, line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if rest := self._rest.get(fd):
            self._rest[fd] = b""
            self._line(fd, rest)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def _line(self, fd: int, line: bytes) -> None:
        text = line[:LINE_LIMIT].decode(errors="replace").rstrip()
        if len(line) > LINE_LIMIT:
            text += " […]"
        if fd == 1 and self._is_ready(text):
            return
        if text:
            self.last_line = text
            self._on_line(text)


def _ending(code: int | None, last_line: str) -> str:
    if code is not None and code < 0:
        how = f"ended by signal {-code} ({signal.strsignal(-code)})"
    else:
        how = f"exited with code {code}"
    return f"{how}: {last_line}" if last_line else how


def die_with_parent() -> None:
    """For the main of a supervised child: end when the parent does, even if that was killed."""
    killed_with_parent()
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()


def killed_with_parent() -> None:
    """Where the system can: this process never outlives the one that began it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)
