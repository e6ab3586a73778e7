"""Reads history in a thread of its own, so that a slow question never holds up the calls."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from aiserver.contract.errors import TooBusy, Unavailable
from aiserver.history.archive import Archive, NewerFile, NotBegun
from aiserver.kit.db import DriverError, Raw, StorageError

T = TypeVar("T")

_MOST_OPEN = 4
_MOST_WAITING = 16
_SECONDS = 10.0
_STEPS_A_LOOK = 100_000


class Shelf:
    """The months that can be read; for the reader's thread alone.

    `until`, on the monotonic clock, is when a question has taken too long; `last` the file that was
    looked at last.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._open: OrderedDict[str, tuple[Raw, int]] = OrderedDict()
        self.until = 0.0
        self.last = ""

    def months(self) -> list[str]:
        """Oldest first."""
        return self._archive.months()

    def open(self, month: str) -> Raw | None:
        """None where there is no such month yet, or only a newer version can read it.

        Raises StorageError or DriverError.
        """
        path = self._archive.path(month)
        self.last = path.name
        try:
            inode = path.stat().st_ino
        except OSError:
            inode = 0
        held = self._open.pop(month, None)
        if held is not None and held[1] != inode:
            # Dropped, or set aside and begun anew.
            held[0].close()
            held = None
        if not inode:
            return None
        if held is None:
            try:
                held = (self._archive.reader(month), inode)
            except (NewerFile, NotBegun):
                return None
            held[0].set_progress_handler(self._overdue, _STEPS_A_LOOK)
        self._open[month] = held
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1][0].close()
        return held[0]

    def close(self) -> None:
        for connection, _ in self._open.values():
            with suppress(DriverError):
                connection.close()
        self._open.clear()

    def _overdue(self) -> bool:
        return time.monotonic() > self.until


class Reader:
    """One question at a time, each for a few seconds at most, few of them waiting."""

    def __init__(
        self, archive: Archive, *, seconds: float = _SECONDS, waiting: int = _MOST_WAITING
    ) -> None:
        self._shelf = Shelf(archive)
        self._seconds = seconds
        self._most = waiting
        self._asked = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history-read")

    async def run(self, work: Callable[[Shelf], T]) -> T:
        """What `work` answers. Raises TooBusy, Unavailable when it takes long, or StorageError."""
        if self._asked >= self._most:
            raise TooBusy("Too many questions about the history at once; ask again shortly.")
        self._asked += 1
        try:
            done = self._thread.submit(self._within_time, work)
            return await asyncio.wrap_future(done)
        finally:
            self._asked -= 1

    def _within_time(self, work: Callable[[Shelf], T]) -> T:
        self._shelf.until = time.monotonic() + self._seconds
        try:
            return work(self._shelf)
        except DriverError as error:
            if time.monotonic() > self._shelf.until:
                raise Unavailable(
                    f"The history took longer than {self._seconds:g} seconds to answer; ask for "
                    "a shorter time, or by id.",
                    reason="too_slow",
                ) from error
            raise StorageError(f"Cannot read {self._shelf.last}: {error}.") from error

    def close(self) -> None:
        """Ends the question that is being answered."""
        self._shelf.until = 0.0
        self._thread.shutdown(cancel_futures=True)
        self._shelf.close()
