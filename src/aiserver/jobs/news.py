"""Passes on what other processes, on one database with this one, did to its jobs."""

import asyncio
from collections.abc import Callable

from aiserver.jobs.queue import Queue
from aiserver.jobs.store import Word
from aiserver.jobs.worker import Worker


class News:
    """`heard` and `again` are for a store's listener; `run` is a loop for `Background`."""

    def __init__(self, queue: Queue, worker: Worker, wake_deliveries: Callable[[], None]) -> None:
        self._queue = queue
        self._worker = worker
        self._wake_deliveries = wake_deliveries
        self._look = asyncio.Event()

    def heard(self, word: Word, named: list[str]) -> None:
        match word:
            case Word.READY:
                self._worker.ready()
            case Word.DELIVER:
                self._wake_deliveries()
            case Word.ENDED:
                self._queue.ended_elsewhere([int(id) for id in named])
            case Word.STOP if not named or self._worker.owner in named:
                self._look.set()
            case Word.STOP:
                pass

    def again(self) -> None:
        """Something may have been missed."""
        for word in Word:
            self.heard(word, [])

    async def run(self) -> None:
        """Never returns: asks which of the running jobs are to stop, as soon as one may be."""
        while True:
            await self._look.wait()
            self._look.clear()
            await self._worker.beat()
