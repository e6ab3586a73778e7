"""Runs one program to its end: bounded in time, in what it may use and in what it may say."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from aiserver.kit.limits import ProcessLimits, limited

CHUNK = 16 * 1024
DRAIN_SECONDS = 2.0
# Nothing of the server's environment: it may hold secrets, and libraries obey some of it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "AV_LOG_FORCE_NOCOLOR": "1"}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended: `code` as Popen has it; `said` is the end of its standard error."""

    code: int
    said: str
    timed_out: bool = False


class Child:
    """One run. `on_output` gets standard output as it comes; `tail` bytes of the other are kept."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: ProcessLimits,
        folder: Path,
        on_output: Callable[[bytes], None],
        tail: int = 8192,
    ) -> None:
        self._argv = limited(argv, limits)
        self._folder = folder
        self._on_output = on_output
        self._tail = tail
        self._said = b""

    async def run(self, seconds: float) -> Ended:
        """Waits for its end, at most so long. However this ends, its whole group is gone."""
        process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=ENVIRONMENT,
            cwd=self._folder,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        readers = asyncio.gather(
            _pour(process.stdout, self._on_output), _pour(process.stderr, self._keep)
        )
        timed_out = False
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(readers)
                await process.wait()
        except TimeoutError:
            timed_out = True
        finally:
            _kill(process)
            await _settled(process, readers)
        said = self._said.decode(errors="replace").strip()
        return Ended(code=process.returncode or 0, said=said, timed_out=timed_out)

    def _keep(self, data: bytes) -> None:
        self._said = (self._said + data)[-self._tail :]


async def _pour(stream: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
    while data := await stream.read(CHUNK):
        take(data)


async def _settled(
    process: asyncio.subprocess.Process, readers: "asyncio.Future[tuple[None, None]]"
) -> None:
    with contextlib.suppress(Exception):
        # What a reader raised is known by then; here the pipes are to be closed.
        await asyncio.wait_for(readers, DRAIN_SECONDS)
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
