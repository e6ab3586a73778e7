"""What a crash leaves on the disk: bytes that nobody's row names, and files half written."""

import os
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_LISTED = 500
# What the store of bytes calls a file that it has not written to the end.
_UNFINISHED = re.compile(r"#\d+$")


def old_paths(folder: Path, *, seconds: float) -> Iterator[list[str]]:
    """Relative paths of files that nobody wrote to for so long, by the hundreds; walks the disk."""
    before = time.time() - seconds
    found = _older(folder, before)
    while batch := list(islice(found, _LISTED)):
        yield batch


def finished(path: str) -> str:
    """The path that a file was written for."""
    return _UNFINISHED.sub("", path)


def remove(folder: Path, path: str) -> None:
    """For what the store itself does not show. Raises OSError."""
    (folder / path).unlink(missing_ok=True)


def _older(folder: Path, before: float) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                if path.lstat().st_mtime < before:
                    yield path.relative_to(folder).as_posix()
            except FileNotFoundError:
                continue
