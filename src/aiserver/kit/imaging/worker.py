"""The server's end of one child: starts it, gives it a job, ends it."""

import asyncio
import os
import signal
import socket
import struct
import sys
from typing import cast

import msgspec

from aiserver.kit.imaging.jobs import Limits, Ready, Reply
from aiserver.kit.spawn import spawn

_LENGTH = struct.Struct(">I")
# A child that has met a hostile file is not trusted with the server's memory.
_LONGEST_REPLY = 64 * 1024
_KEPT_OUTPUT = 2000
_EXIT_SECONDS = 5.0
_replies = msgspec.msgpack.Decoder(Reply)


class ChildEnded(Exception):
    """The child ended before it answered; the message says how, `by_signal` by which."""

    def __init__(self, message: str, *, by_signal: int = 0) -> None:
        super().__init__(message)
        self.by_signal = by_signal


class Worker:
    """A child process; one job at a time. `fit` says whether it may be given another."""

    def __init__(self, process: "_Process", link: "_Link") -> None:
        self._process = process
        self._link = link
        self.jobs = 0
        self.fit = False

    @classmethod
    async def launch(cls) -> "Worker":
        """Raises ChildEnded."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        process = _Process()
        try:
            await spawn(
                lambda: process,
                *(sys.executable, "-I", "-m", "aiserver.kit.imaging.child"),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
            )
            ours.setblocking(False)
            _, link = await loop.create_connection(_Link, sock=ours)
        except BaseException as error:
            ours.close()
            process.kill()
            if isinstance(error, OSError):
                raise ChildEnded(f"it could not be started: {error.strerror}") from error
            raise
        finally:
            theirs.close()
        return cls(process, link)

    async def ready(self, limits: Limits, *, within: float) -> None:
        """Raises ChildEnded if it does not come up, TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            reply = await self._exchange(msgspec.msgpack.encode(limits))
        if not isinstance(reply, Ready):
            raise ChildEnded("it did not say that it is ready")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._link.lost and not self.gone

    @property
    def gone(self) -> bool:
        return self._process.exited.is_set()

    async def ask(self, job: bytes) -> Reply:
        """The answer to an encoded Job; raises ChildEnded.

        Who is cancelled here must kill the child: its answer is to come.
        """
        self.jobs += 1
        self.fit = False
        return await self._exchange(job)

    async def _exchange(self, frame: bytes) -> Reply:
        answer = await self._link.exchange(frame)
        if answer is None:
            self._process.kill()
            try:
                async with asyncio.timeout(_EXIT_SECONDS):
                    await self._process.exited.wait()
            except TimeoutError:
                raise ChildEnded("it does not end") from None
            raise ChildEnded(self._process.ending, by_signal=self._process.signal)
        try:
            return _replies.decode(answer)
        except msgspec.MsgspecError as error:
            raise ChildEnded(f"it answered nonsense: {error}") from error

    def kill(self) -> None:
        """End the child and all that it may have started; `ended` waits for it."""
        self._process.kill()
        self._link.close()

    async def ended(self) -> None:
        await self._process.exited.wait()


class _Link(asyncio.Protocol):
    """Frames over the socket: one out, one in."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._answer: asyncio.Future[bytes | None] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since the transports of uvloop are not instances of what they behave like.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) < _LENGTH.size:
            return
        (length,) = _LENGTH.unpack_from(self._data)
        if length > _LONGEST_REPLY or self._answer is None:
            self.close()
        elif len(self._data) >= _LENGTH.size + length:
            answer = bytes(self._data[_LENGTH.size : _LENGTH.size + length])
            self._data.clear()
            self._settle(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._settle(None)

    async def exchange(self, frame: bytes) -> bytes | None:
        """The answer to the frame; none if the connection is lost."""
        if self.lost or self._transport is None:
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(_LENGTH.pack(len(frame)) + frame)
        return await self._answer

    def close(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def _settle(self, answer: bytes | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
        self._answer = None


class _Process(asyncio.SubprocessProtocol):
    """Keeps the last words of a child, and how it ended."""

    def __init__(self) -> None:
        self._transport: asyncio.SubprocessTransport | None = None
        self._words = b""
        self.pid = 0
        self.exited = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._words = (self._words + data)[-_KEPT_OUTPUT:]

    def process_exited(self) -> None:
        self.exited.set()
        if self._transport is not None:
            self._transport.close()

    @property
    def signal(self) -> int:
        """The number of the signal that ended it; 0 for an exit."""
        code = self._transport.get_returncode() if self._transport else None
        return -code if code is not None and code < 0 else 0

    @property
    def ending(self) -> str:
        last = self._words.decode(errors="replace").strip().rpartition("\n")[2]
        if self.signal:
            how = f"it was ended by signal {self.signal} ({signal.strsignal(self.signal)})"
        else:
            how = "it exited"
        return f"{how}: {last}" if last else how

    def kill(self) -> None:
        if self.pid and not self.exited.is_set():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                # macOS answers EPERM for a group in which only a zombie is left.
                return


def _environment() -> dict[str, str]:
    """Nothing of the server's own, which has secrets."""
    passed = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME")
    return {
        **{name: os.environ[name] for name in passed if name in os.environ},
        "LANG": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "VIPS_CONCURRENCY": "1",
        # Pictures stay in memory, which has a limit, and never spill into temporary files.
        "VIPS_DISC_THRESHOLD": "1000g",
    }
