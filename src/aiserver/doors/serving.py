"""Runs the HTTP server from its sockets to its last call."""

import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from aiserver.doors.server import Config
from aiserver.kit import log

_log = log.get("doors")


class Lifecycle:
    """Whether the server takes new calls; doors and the health page look here."""

    def __init__(self) -> None:
        self.draining = False


class Server(uvicorn.Server):
    """Stops in two steps: not ready while running calls finish, then closed."""

    def __init__(self, config: Config, lifecycle: Lifecycle, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._lane = config.lane
        self._listening = listening
        self._grace = config.limits.grace_seconds
        self._deadline = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    def drain(self) -> None:
        """Takes no new calls; ends when the running ones are done or the grace time is over."""
        self._lifecycle.draining = True
        self._deadline = time.monotonic() + self._grace
        running = self._running()
        _log.info("stopping", running_calls=running, grace_seconds=self._grace)

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.draining and (not self._running() or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    def _running(self) -> int:
        return len(self.server_state.tasks) + (len(self._lane.running) if self._lane else 0)
