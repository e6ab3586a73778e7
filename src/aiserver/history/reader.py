"""Reads history in a thread of its own, so that a slow question never holds up the calls."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiserver.contract.errors import TooBusy, Unavailable
from aiserver.history.archive import Archive, Shelf, TooSlow
from aiserver.kit.db import DriverError, StorageError

T = TypeVar("T")

_MOST_WAITING = 16
_SECONDS = 10.0


class Reader:
    """One question at a time, each for a few seconds at most, few of them waiting."""

    def __init__(
        self, archive: Archive, *, seconds: float = _SECONDS, waiting: int = _MOST_WAITING
    ) -> None:
        self._shelf = archive.shelf()
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
        self._shelf.begin(time.monotonic() + self._seconds)
        try:
            return work(self._shelf)
        except (DriverError, TooSlow) as error:
            if isinstance(error, TooSlow) or self._shelf.overdue():
                raise Unavailable(
                    f"The history took longer than {self._seconds:g} seconds to answer; ask for "
                    "a shorter time, or by id.",
                    reason="too_slow",
                ) from error
            raise StorageError(f"Cannot read {self._shelf.last}: {error}.") from error

    def close(self) -> None:
        """Ends the question that is being answered."""
        self._shelf.cancel()
        self._thread.shutdown(cancel_futures=True)
        self._shelf.close()
