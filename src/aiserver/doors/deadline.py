"""A deadline that moves with every step of a connection, on one timer."""

import asyncio
from collections.abc import Callable


class Deadline:
    """When something must have happened on a connection: set at every step, at almost no cost.

    One timer serves all steps: it fires at least every `tick` seconds, no more than any of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: float) -> None:
        self._loop = loop
        self._tick = tick
        self._at = 0.0
        self._action: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float, action: Callable[[], None]) -> None:
        self._at, self._action = self._loop.time() + seconds, action
        if self._timer is None:
            self._timer = self._loop.call_later(min(seconds, self._tick), self._check)

    def clear(self) -> None:
        self._action = None

    def close(self) -> None:
        self._action = None
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        action = self._action
        if action is None:
            return
        left = self._at - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(min(left, self._tick), self._check)
        else:
            self._action = None
            action()
