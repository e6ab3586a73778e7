"""Starts child processes on any event loop, with nothing of Python between fork and exec.

uvloop runs Python's own fork handlers in the child. Where another thread holds a lock of the
interpreter just then, as threads of extensions do, the child waits for it for ever, and the whole
server for the child.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import TypeVar

Protocol = TypeVar("Protocol", bound=asyncio.SubprocessProtocol)


async def spawn(
    protocol_factory: Callable[[], Protocol],
    *argv: str,
    stdin: int = DEVNULL,
    stdout: int = PIPE,
    stderr: int = PIPE,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> tuple["Spawned", Protocol]:
    """As the loop's own, in a session of its own. Raises OSError.

    To be called on the main thread: on Linux the child may be set to end with its thread.
    """
    # Not pipes: uvloop closes a pipe's number twice, and it may be another thread's by then.
    pairs = {
        fd: socket.socketpair() for fd, how in enumerate((stdin, stdout, stderr)) if how == PIPE
    }
    ends = {fd: theirs.fileno() for fd, (_, theirs) in pairs.items()}
    try:
        # It returns once the program has begun, which takes a millisecond or two.
        process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: ASYNC220
            argv,
            stdin=ends.get(0, stdin),
            stdout=ends.get(1, stdout),
            stderr=ends.get(2, stderr),
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except BaseException:
        for ours, _ in pairs.values():
            ours.close()
        raise
    finally:
        for _, theirs in pairs.values():
            theirs.close()
    protocol = protocol_factory()
    spawned = Spawned(process, protocol, {fd: ours for fd, (ours, _) in pairs.items()})
    protocol.connection_made(spawned)
    try:
        await spawned.connect()
    except BaseException:
        spawned.close()
        raise
    finally:
        spawned.watch()
    return spawned, protocol


class Spawned(asyncio.SubprocessTransport):
    """A child that was started; its protocol is told of what it writes and of its end."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        protocol: asyncio.SubprocessProtocol,
        sockets: Mapping[int, socket.socket],
    ) -> None:
        super().__init__()
        self._process = process
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._pipes: dict[int, asyncio.BaseTransport] = {}
        self._sockets = sockets
        self._open = set(sockets)
        self._returncode: int | None = None

    async def connect(self) -> None:
        """Its pipes, to the loop."""
        for fd, ours in self._sockets.items():
            ours.setblocking(False)
            wired = await self._loop.create_connection(partial(_Pipe, self, fd), sock=ours)
            self._pipes[fd] = wired[0]

    def watch(self) -> None:
        """From here on its end is told."""
        try:
            handle = _end_of(self._process.pid)
        except OSError:
            threading.Thread(target=self._await_end, daemon=True).start()
        else:
            self._loop.add_reader(handle, self._ended, handle)

    def get_pid(self) -> int:
        return self._process.pid

    def get_returncode(self) -> int | None:
        return self._returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self._pipes.get(fd)

    def kill(self) -> None:
        if self._returncode is None:
            self._process.kill()

    def close(self) -> None:
        """Kills the child if it lives still, and closes its pipes."""
        self.kill()
        for fd, ours in self._sockets.items():
            (self._pipes.get(fd) or ours).close()

    def received(self, fd: int, data: bytes) -> None:
        self._protocol.pipe_data_received(fd, data)

    def lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        self._protocol.pipe_connection_lost(fd, exc)
        self._finish()

    def _await_end(self) -> None:
        self._process.wait()
        # The loop may be closed by then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self, handle: int | None = None) -> None:
        if handle is not None:
            self._loop.remove_reader(handle)
            os.close(handle)
        self._returncode = self._process.wait()
        if 0 in self._pipes:
            self._pipes[0].close()
        self._protocol.process_exited()
        self._finish()

    def _finish(self) -> None:
        if self._returncode is not None and not self._open:
            self._protocol.connection_lost(None)


class _Pipe(asyncio.Protocol):
    """One pipe of a child."""

    def __init__(self, child: Spawned, fd: int) -> None:
        self._child = child
        self._fd = fd

    def data_received(self, data: bytes) -> None:
        if self._fd:
            self._child.received(self._fd, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._child.lost(self._fd, exc)


def _end_of(pid: int) -> int:
    """What can be read from once this child has ended. Raises OSError where there is no such."""
    if sys.platform != "linux":
        raise OSError("only Linux has these")
    return os.pidfd_open(pid)
