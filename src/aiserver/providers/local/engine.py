"""The embedded engine: llama.cpp in a supervised child, and how to reach it."""

import asyncio
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from aiserver.kit.process import Backoff, Launch, State, Supervised
from aiserver.providers.local.weights import Weight, WeightStore

NATIVE_PACKAGE = "xllamacpp"
CHILD = (sys.executable, "-m", "aiserver.providers.local.llama_child")

# The rest of the gateway's environment holds secrets that native code has no use for.
CHILD_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "TZ")


class EngineState(Enum):
    STOPPED = "stopped"
    ABSENT = "absent"
    UNSUPPORTED = "unsupported"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class EngineStatus(msgspec.Struct, frozen=True):
    state: EngineState
    reason: str | None
    model: str
    url: str | None


@dataclass(frozen=True)
class Endpoint:
    """Where the child listens; both parts change with every restart."""

    url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class Capacity:
    """What one child may use; the context is shared out evenly over the slots."""

    context: int = 8192
    slots: int = 2
    threads: int | None = None


class EngineUnavailable(Exception):
    """The embedded engine cannot answer now."""


class _Answer(msgspec.Struct):
    """The one line a child says: that it is up, or why it cannot be."""

    ready: bool
    url: str = ""
    reason: str | None = None


def native_package_installed() -> bool:
    """Whether llama.cpp can be loaded, found out without loading it into this process."""
    importlib.invalidate_caches()
    return importlib.util.find_spec(NATIVE_PACKAGE) is not None


class LocalEngine:
    """Serves one weight from the store; nothing here raises but `ready`."""

    def __init__(
        self,
        store: WeightStore,
        weight: Weight,
        *,
        on_line: Callable[[str], None],
        capacity: Capacity | None = None,
        installed: Callable[[], bool] = native_package_installed,
        command: tuple[str, ...] = CHILD,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._weight = weight
        self._capacity = capacity or Capacity()
        self._installed = installed
        self._command = command
        self._state = EngineState.STOPPED
        self._reason: str | None = None
        self._endpoint: Endpoint | None = None
        self._api_key = ""
        self._complaint: str | None = None
        self._tried: tuple[int, int] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()
        self._child = Supervised(
            self._launch,
            on_line=on_line,
            ready_when=self._accept,
            on_change=self._follow,
            backoff=backoff,
            clock=clock,
        )

    @property
    def status(self) -> EngineStatus:
        url = self._endpoint.url if self._endpoint else None
        return EngineStatus(self._state, self._reason, self._weight.id, url)

    async def start(self) -> None:
        """Begin to start the engine, unless it runs; `ready` tells when it is up."""
        async with self._gate:
            if self._state in (EngineState.STARTING, EngineState.READY):
                return
            self._become(EngineState.STARTING)
            self._opening = asyncio.create_task(self._open())

    async def stop(self, grace: float = 5.0) -> None:
        async with self._gate:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait({self._opening})
                self._opening = None
            await self._child.stop(grace)
            self._become(EngineState.STOPPED)

    async def recheck(self) -> None:
        """Look again, after somebody may have pulled the weight or installed the library."""
        changed = {
            EngineState.ABSENT: lambda: self._fingerprint() not in (None, self._tried),
            EngineState.UNSUPPORTED: self._installed,
            EngineState.FAILED: lambda: self._fingerprint() != self._tried,
        }.get(self._state)
        if changed is not None and changed():
            await self.start()

    async def ready(self, timeout: float) -> Endpoint:
        """The endpoint, waited for while the engine starts."""
        try:
            async with asyncio.timeout(timeout):
                while self._endpoint is None:
                    if self._state is not EngineState.STARTING:
                        raise EngineUnavailable(self._reason or self._advice())
                    await self._changed.wait()
                return self._endpoint
        except TimeoutError:
            last = f" Its last attempt: {self._reason}" if self._reason else ""
            raise EngineUnavailable(
                f"The embedded engine for {self._weight.id} was not up after {timeout:g} seconds; "
                f"try again in a moment.{last}"
            ) from None

    def _advice(self) -> str:
        return f"The embedded engine for {self._weight.id} is {self._state.value}; start it first."

    async def _open(self) -> None:
        if not self._installed():
            self._become(
                EngineState.UNSUPPORTED,
                f"The Python package {NATIVE_PACKAGE} is not installed; install ai-server "
                "with its extra `local` to answer from the embedded model.",
            )
            return
        self._tried = self._fingerprint()
        try:
            path = await asyncio.to_thread(self._store.path, self._weight)
        except OSError as error:
            self._become(EngineState.FAILED, f"The weight cannot be read: {error}")
            return
        if path is None:
            self._become(
                EngineState.ABSENT,
                f"The weight of {self._weight.id} is not in {self._store.folder}; "
                "run `ai-server models pull` to fetch it.",
            )
            return
        await self._child.start()

    def _launch(self) -> Launch:
        self._api_key = secrets.token_urlsafe(32)
        self._complaint = None
        capacity = self._capacity
        arguments = {
            "--model": str(self._store.location(self._weight)),
            "--alias": self._weight.id,
            "--threads": str(capacity.threads or _cores()),
            "--context": str(capacity.context),
            "--slots": str(capacity.slots),
        }
        return Launch(
            argv=(*self._command, *(word for pair in arguments.items() for word in pair)),
            env={name: os.environ[name] for name in CHILD_ENVIRONMENT if name in os.environ},
            stdin=f"{self._api_key}\n".encode(),
        )

    def _accept(self, line: str) -> bool:
        try:
            told = msgspec.json.decode(line, type=_Answer)
        except msgspec.MsgspecError:
            return False
        self._complaint = told.reason
        if told.ready:
            self._endpoint = Endpoint(told.url, self._api_key)
        return told.ready

    def _follow(self) -> None:
        reason = self._complaint or self._child.reason
        match self._child.state:
            case State.RUNNING:
                self._become(EngineState.READY)
            case State.STARTING:
                self._become(EngineState.STARTING, reason)
            case State.STOPPED:
                self._become(EngineState.STOPPED)
            case State.FAILED:
                self._become(
                    EngineState.FAILED,
                    f"The embedded engine for {self._weight.id} keeps failing ({reason}); "
                    "see the log, or pull the weight again and restart.",
                )

    def _become(self, state: EngineState, reason: str | None = None) -> None:
        self._state = state
        self._reason = reason
        if state is not EngineState.READY:
            self._endpoint = None
        # Those who wait hold the old event; whoever comes after needs one not yet set.
        self._changed.set()
        self._changed = asyncio.Event()

    def _fingerprint(self) -> tuple[int, int] | None:
        try:
            found = self._store.location(self._weight).stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


def _cores() -> int:
    # A container may be given fewer cores than the machine has.
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
