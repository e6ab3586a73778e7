"""One server per data folder: a second one would write the same files."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another server uses this data folder."""


@contextmanager
def exclusive(path: Path) -> Generator[None]:
    """Holds the lock file for the block; the system frees it even after kill -9."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(
                f"Another server runs on {path.parent}. Stop it, or use another folder: "
                "APP_DATA or --data."
            ) from None
        yield
    finally:
        os.close(handle)
