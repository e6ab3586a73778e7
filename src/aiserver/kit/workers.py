"""Processes that serve side by side on the same sockets, each started again when it ends."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from aiserver.kit import log
from aiserver.kit.process import Backoff, killed_with_parent

_LOOK_SECONDS = 0.5
# After what a worker takes to drain, it takes this long to close its files.
_CLOSE_SECONDS = 10.0
_spawn = multiprocessing.get_context("spawn")
_log = log.get("workers")


class NoWorkers(Exception):
    """The workers cannot be started, or do not stay."""


@dataclass
class _Worker:
    process: BaseProcess
    word: Connection
    began: float
    ready: bool = False


class Workers:
    """`main(number, ready, *arguments)` runs in each process, which calls `ready()` once it serves.

    SIGTERM and SIGINT reach every worker; who has not ended after `grace` seconds is killed.
    """

    def __init__(
        self,
        count: int,
        main: Callable[..., None],
        arguments: tuple[Any, ...],
        *,
        grace: float,
        backoff: Backoff | None = None,
    ) -> None:
        self._count = count
        self._main = main
        self._arguments = arguments
        self._grace = grace
        self._backoff = backoff or Backoff()
        self._workers: dict[int, _Worker] = {}
        self._failures = dict.fromkeys(range(1, count + 1), 0)
        self._due = dict.fromkeys(range(1, count + 1), 0.0)
        self._signals = 0

    def run(self, announce: Callable[[], None]) -> None:
        """Until a stop signal; `announce` is called once all serve. Raises NoWorkers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            announced = False
            while not self._signals:
                self._start_due()
                self._look()
                if not announced and self._all_ready():
                    announce()
                    announced = True
        finally:
            self._end()

    def _stop(self, *_: object) -> None:
        self._signals += 1

    def _all_ready(self) -> bool:
        serving = [worker for worker in self._workers.values() if worker.ready]
        return len(serving) == self._count

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, due in self._due.items():
            if number not in self._workers and due <= now:
                ours, theirs = _spawn.Pipe(duplex=False)
                process = _spawn.Process(
                    target=_begin, args=(self._main, number, theirs, self._arguments)
                )
                process.start()
                theirs.close()
                self._workers[number] = _Worker(process, ours, now)

    def _look(self) -> None:
        """Waits a moment for news of the workers."""
        waiting = [worker.process.sentinel for worker in self._workers.values()]
        words = [worker.word for worker in self._workers.values() if not worker.ready]
        wait([*waiting, *words], _LOOK_SECONDS)
        for number, worker in list(self._workers.items()):
            if not worker.ready and worker.word.poll():
                worker.ready = _said_ready(worker.word)
            if worker.process.exitcode is not None:
                self._ended(number, worker)

    def _ended(self, number: int, worker: _Worker) -> None:
        code = worker.process.exitcode
        del self._workers[number]
        worker.word.close()
        if self._signals:
            return
        alive = time.monotonic() - worker.began
        healthy = worker.ready and alive >= self._backoff.healthy_after
        self._failures[number] = 1 if healthy else self._failures[number] + 1
        _log.error("worker_ended", worker=number, exit_code=code, after_seconds=round(alive, 1))
        if self._failures[number] >= self._backoff.give_up_after or (
            code and not worker.ready and not any(w.ready for w in self._workers.values())
        ):
            raise NoWorkers(f"Worker {number} does not stay up; its log lines say why.")
        self._due[number] = time.monotonic() + self._backoff.delay(self._failures[number])

    def _end(self) -> None:
        for worker in self._workers.values():
            worker.process.terminate()
        until = time.monotonic() + self._grace + _CLOSE_SECONDS
        told = self._signals
        for worker in self._workers.values():
            while worker.process.exitcode is None and time.monotonic() < until:
                worker.process.join(_LOOK_SECONDS)
                if self._signals > max(told, 1):
                    until = 0.0
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()


def _said_ready(word: Connection) -> bool:
    try:
        return bool(word.recv())
    except (EOFError, OSError):
        return False


def _begin(
    main: Callable[..., None], number: int, word: Connection, arguments: tuple[Any, ...]
) -> None:
    killed_with_parent()
    # Ctrl-C is for the parent, who passes it on once.
    os.setsid()

    def ready() -> None:
        word.send(True)
        word.close()

    try:
        main(number, ready, *arguments)
    except KeyboardInterrupt:
        sys.exit(130)
