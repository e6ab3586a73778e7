"""Runs one program to its end: bounded in time, in what it may use and in what it may say."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import cast

import msgspec

from aiserver.kit.limits import ProcessLimits, limited
from aiserver.kit.spawn import Spawned, spawn

DRAIN_SECONDS = 2.0
# Nothing of the server's environment: it may hold secrets, and libraries obey some of it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "AV_LOG_FORCE_NOCOLOR": "1"}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended: `code` as Popen has it; `said` is the end of its standard error."""

    code: int
    said: str
    timed_out: bool = False


class Child:
    """One run. `on_output` gets standard output as it comes; `tail` bytes of the other are kept.

    `told` is for a program that reads its standard input.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: ProcessLimits,
        folder: Path,
        on_output: Callable[[bytes], None],
        tail: int = 8192,
        told: bool = False,
    ) -> None:
        self._argv = limited(argv, limits)
        self._folder = folder
        self._on_output = on_output
        self._tail = tail
        self._stdin = PIPE if told else DEVNULL

    async def run(self, seconds: float) -> Ended:
        """Waits for its end, at most so long. However this ends, its whole group is gone."""
        async with self.begun() as running:
            return await running.ended(seconds)

    @asynccontextmanager
    async def begun(self) -> AsyncGenerator["Running"]:
        """Started for the time of the block; after it its whole group is gone."""
        process, heard = await spawn(
            lambda: _Heard(self._on_output, self._tail),
            *self._argv,
            stdin=self._stdin,
            env=ENVIRONMENT,
            cwd=self._folder,
        )
        running = Running(process, heard)
        try:
            yield running
        finally:
            await running.close()


class Running:
    """A child that was started."""

    def __init__(self, process: Spawned, heard: "_Heard") -> None:
        self._process = process
        self._heard = heard

    @property
    def alive(self) -> bool:
        return self._process.get_returncode() is None

    def tell(self, data: bytes) -> None:
        """All that its standard input will ever hold."""
        pipe = cast("asyncio.WriteTransport", self._process.get_pipe_transport(0))
        if not pipe.is_closing():
            pipe.write(data)
            pipe.write_eof()

    async def ended(self, seconds: float) -> Ended:
        """Its end, which comes within so long."""
        timed_out = False
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._heard.silent)
        except TimeoutError:
            timed_out = True
        await self.close()
        said = self._heard.said.decode(errors="replace").strip()
        return Ended(code=self._process.get_returncode() or 0, said=said, timed_out=timed_out)

    async def close(self) -> None:
        _kill(self._process)
        # Whoever left the group may hold the pipes open.
        await asyncio.wait({self._heard.silent}, timeout=DRAIN_SECONDS)
        self._process.close()
        await self._heard.exited.wait()


class _Heard(asyncio.SubprocessProtocol):
    """What a child says; `silent` is done once it has ended and nobody can write any more."""

    def __init__(self, on_output: Callable[[bytes], None], tail: int) -> None:
        self._on_output = on_output
        self._tail = tail
        self.said = b""
        self.exited = asyncio.Event()
        self.silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.said = (self.said + data)[-self._tail :]
            return
        try:
            self._on_output(data)
        except Exception as error:
            # It is for who waits for the child, not for the loop.
            if not self.silent.done():
                self.silent.set_exception(error)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.silent.done():
            self.silent.set_result(None)


def _kill(process: Spawned) -> None:
    if process.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.get_pid(), signal.SIGKILL)
