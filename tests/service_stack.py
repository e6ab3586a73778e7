"""ServiceStack's client for Python, which blocks, called from a test's loop."""

import asyncio
from collections.abc import Callable
from typing import Any

from servicestack import JsonServiceClient

from gateway import TestGateway


async def ask(server: TestGateway, key: str, work: Callable[[Any], Any], *, seconds: float) -> Any:
    """What `work` gets of a client with this key, within so long."""

    def call() -> Any:
        client: Any = JsonServiceClient(server.url)
        client.bearer_token = key
        try:
            return work(client)
        finally:
            client._session.close()

    async with asyncio.timeout(seconds):
        return await asyncio.to_thread(call)
