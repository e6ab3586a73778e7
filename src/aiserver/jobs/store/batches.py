"""Writes that meet share a transaction: what came while the last one was under way goes next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from aiserver.kit.db import StorageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WAITING = 20_000
MOST_A_WRITE = 500


class Batches(Generic[Item, Result]):
    """`write` answers one result, or the exception to raise, for each item, in their order.

    An exception of `write` itself that is no StorageError belongs to one of the items: each is
    then tried alone.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        most: int = MOST_A_WRITE,
        waiting: int = MOST_WAITING,
    ) -> None:
        self._write = write
        self._most = most
        self._bound = waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Result:
        """Returns once it is durable; who stops waiting for it does not undo it."""
        return await self.submit(item)

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """What `add` waits for; cancelled, it is written all the same."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= self._bound:
            future.set_exception(StorageError("Too many writes are waiting for the disk."))
            return future
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._flush())
        return future

    async def close(self) -> None:
        """Returns when all that was added is written or has failed."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _flush(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), self._most)
                batch = [self._waiting.popleft() for _ in range(count)]
                results = await self._results([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    _settle(future, result)
        finally:
            self._task = None

    async def _results(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            return await self._write(items)
        except StorageError as error:
            return [error] * len(items)
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [(await self._results([item]))[0] for item in items]


def _settle(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
