"""Opens the server's data for one command, beside a running server or without one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from aiserver.cli.options import load
from aiserver.data import Data, open_data
from aiserver.kit.clock import SystemClock
from aiserver.kit.redact import Redactor

T = TypeVar("T")


def with_data(data: Path | None, file: Path | None, work: Callable[[Data], Awaitable[T]]) -> T:
    """Runs `work` on the data. A running server sees what it wrote within a second."""

    async def run() -> T:
        opened = await open_data(load(data, file), SystemClock(), Redactor())
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())
