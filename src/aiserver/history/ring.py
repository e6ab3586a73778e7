"""What waits to be written: a bounded ring, and counters that a killed process leaves behind."""

import mmap
import os
import random
from array import array
from collections import deque
from pathlib import Path
from typing import NamedTuple

from aiserver.contract.trace import Trace
from aiserver.kit import log

RECORDED, WRITTEN, DISCARDED = 2, 3, 4

_FORM = 1
_SIZE = 64
_log = log.get("history")


class LastRun(NamedTuple):
    run: int
    recorded: int
    written: int
    discarded: int


class Progress:
    """Counters of one run in a small file that outlives the process, if not the machine.

    `slots[RECORDED]` are the calls that were taken in, WRITTEN those in the files, DISCARDED those
    that can never be. `last_run` are the run before's number and its three counters, or None.
    """

    def __init__(self, path: Path) -> None:
        self._memory = _mapped(path)
        self.slots = memoryview(self._memory).cast("Q")
        form, *counters = self.slots[:5].tolist()
        self.last_run = LastRun(*counters) if form == _FORM else None
        self.run = random.getrandbits(62)
        for slot, value in enumerate((_FORM, self.run, 0, 0, 0)):
            self.slots[slot] = value

    def close(self) -> None:
        """The counters can still be read."""
        kept = array("Q", self.slots)
        self.slots.release()
        self.slots = memoryview(kept)
        self._memory.close()


class Ring:
    """Calls on their way to the writer; one that is full drops them and counts.

    `room` bounds the bytes of prompts and answers in it; past that a call is kept without them.
    """

    def __init__(self, counters: "memoryview[int]", *, bound: int, room: int, longest: int) -> None:
        self._counters = counters
        self._calls: deque[Trace] = deque()
        self._bound = bound
        self._room = room
        self._longest = longest
        self._put = 0
        self._taken = 0
        self.dropped = 0
        self.cut = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, trace: Trace) -> bool:
        """Whether there was a place for it."""
        if len(self._calls) >= self._bound:
            self.dropped += 1
            return False
        if trace.prompt is not None or trace.answer is not None:
            self._shorten(trace)
        # First counted, then kept: a process that is killed in between has lost it.
        self._counters[RECORDED] += 1
        self._calls.append(trace)
        return True

    def shut(self) -> None:
        """From now on everything is dropped."""
        self._bound = 0

    def take(self, most: int) -> list[Trace]:
        """The oldest, at most so many; for the writer's thread alone."""
        calls = self._calls
        taken = [calls.popleft() for _ in range(min(most, len(calls)))]
        self._taken += sum(map(_bytes, taken))
        return taken

    def _shorten(self, trace: Trace) -> None:
        for name in ("prompt", "answer"):
            content: bytes | None = getattr(trace, name)
            if content is not None and len(content) > self._longest:
                setattr(trace, name, content[: self._longest])
        size = _bytes(trace)
        if self._put - self._taken + size > self._room:
            trace.prompt = trace.answer = None
            self.cut += 1
        else:
            self._put += size


def _bytes(trace: Trace) -> int:
    return len(trace.prompt or b"") + len(trace.answer or b"")


def _mapped(path: Path) -> mmap.mmap:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(file).st_size < _SIZE:
                # Written, not only made longer: touching a page that a full disk has no room for
                # would end the process.
                os.write(file, bytes(_SIZE))
            return mmap.mmap(file, _SIZE)
        finally:
            os.close(file)
    except OSError as error:
        _log.warning("history_progress_not_kept", problem=str(error))
        return mmap.mmap(-1, _SIZE)
