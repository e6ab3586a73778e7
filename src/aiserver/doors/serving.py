"""Runs the HTTP server from its sockets to its last call."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn

from aiserver.doors.lifecycle import Lifecycle
from aiserver.doors.server import Config
from aiserver.kit import log

# So long before the end of the grace time callers of jobs are told where these are found.
_MOST_FOR_ANSWERS = 1.0
_SHARE_FOR_ANSWERS = 0.25
_LAST_ANSWERS_SECONDS = 0.1
_CUT_OFF_SECONDS = 1.0
_log = log.get("doors")


class Work(Protocol):
    """What is done beside the calls."""

    def drain(self) -> None:
        """Begins nothing more."""
        ...

    def give_up(self) -> None:
        """Nobody waits for it any longer; more than once is as good as once."""
        ...


class Server(uvicorn.Server):
    """Stops in steps: not ready while running calls finish, then who waits is told, then closed."""

    def __init__(
        self, config: Config, lifecycle: Lifecycle, work: Work, listening: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._work = work
        self._lane = config.lane
        self._listening = listening
        self._for_answers = min(_MOST_FOR_ANSWERS, lifecycle.grace * _SHARE_FOR_ANSWERS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._lifecycle.draining:
            self._lifecycle.hurry()
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    def drain(self) -> None:
        """Takes no new calls; ends when the running ones are done or the grace time is over."""
        self._lifecycle.drain()
        # A signal may come in the midst of what the loop does to the same things.
        asyncio.get_running_loop().call_soon_threadsafe(self._work.drain)
        grace = self._lifecycle.grace
        _log.info("stopping", running_calls=self._running(), grace_seconds=grace)

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.draining:
            left = self._lifecycle.left
            if left <= self._for_answers:
                self._work.give_up()
            if left == 0.0 or not self._running():
                self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._running():
            await self._cut_off()
        await super().shutdown(sockets)

    async def _cut_off(self) -> None:
        """Tells whoever still waits that the server stops, and closes what had begun."""
        self._work.give_up()
        await self._ended(_LAST_ANSWERS_SECONDS)
        self._lifecycle.over = True
        cut = self._running()
        for task in self.server_state.tasks:
            task.cancel()
        if self._lane is not None:
            self._lane.cut_off()
        await self._ended(_CUT_OFF_SECONDS)
        _log.info("calls_cut_off", calls=cut)

    async def _ended(self, seconds: float) -> None:
        tasks = set(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _running(self) -> int:
        return len(self.server_state.tasks) + (len(self._lane.running) if self._lane else 0)
