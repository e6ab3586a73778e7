"""Loops that run beside the calls: each is watched, and all of them end together."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiserver.kit import log
from aiserver.kit.db import StorageError

_log = log.get("background")
_AGAIN_SECONDS = 1.0

Loop = Callable[[], Awaitable[None]]


class Background:
    """Owns every loop it starts; `stop` ends them."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def every(
        self, seconds: float, name: str, step: Loop, *, soon: asyncio.Event | None = None
    ) -> None:
        """Runs `step` again and again with a pause between, which `soon` ends; a failure is logged,
        not fatal.
        """
        wanted = soon or asyncio.Event()

        async def loop() -> None:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await wanted.wait()
                wanted.clear()
                await step()

        self.run(name, loop)

    def run(self, name: str, loop: Loop) -> None:
        """Runs a loop that never returns; one that fails is logged and started again."""

        async def watched() -> None:
            while True:
                try:
                    await loop()
                except StorageError as error:
                    _log.warning("loop_failed", loop=name, reason=str(error))
                except Exception:  # a loop must outlive whatever one round of it met
                    _log.exception("loop_failed", loop=name)
                await asyncio.sleep(_AGAIN_SECONDS)

        self._tasks.append(asyncio.create_task(watched(), name=name))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
