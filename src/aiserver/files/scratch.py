"""A folder for the time of one call, gone afterwards whatever happens."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from aiserver.contract.errors import StorageUnavailable
from aiserver.kit import log

_log = log.get("files")


@asynccontextmanager
async def scratch_folder() -> AsyncGenerator[Path]:
    """Raises StorageUnavailable where it cannot be made or has no room."""
    try:
        held = await asyncio.to_thread(tempfile.TemporaryDirectory[str], prefix="ai-server-")
        try:
            yield Path(held.name)
        finally:
            await asyncio.shield(asyncio.to_thread(held.cleanup))
    except OSError as error:
        _log.error("scratch_failed", problem=str(error))
        raise StorageUnavailable(
            "The server cannot write to its temporary folder, which may be full; nothing was kept "
            "of this call. Try again later, or ask your administrator to make room.",
            reason="storage_full",
            retry_after=60,
        ) from error
