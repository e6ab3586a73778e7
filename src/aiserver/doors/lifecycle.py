"""Where a server is on the way from its first call to its last."""

import time
from collections.abc import Callable

from aiserver.contract.errors import Unavailable


class Stopping(Unavailable):
    """The server is stopping; call again shortly."""

    def __init__(self) -> None:
        super().__init__(retry_after=2)


class Lifecycle:
    """Whether the server takes new calls; doors and the health page look here.

    `draining`: only those under way go on, for `grace` seconds. `over`: they do not either.
    """

    def __init__(self, *, grace: float, now: Callable[[], float] = time.monotonic) -> None:
        self.grace = grace
        self.draining = False
        self.over = False
        self._now = now
        self._deadline = 0.0

    def drain(self) -> None:
        self.draining = True
        self._deadline = self._now() + self.grace

    def hurry(self) -> None:
        """Nothing is waited for any more."""
        self._deadline = self._now()

    @property
    def left(self) -> float:
        """Seconds of the grace time; before anybody stopped the server, all of it."""
        return max(0.0, self._deadline - self._now()) if self.draining else self.grace
