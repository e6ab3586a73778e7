"""The addresses of files: what callers may write for one, and the one that the server writes."""

import unicodedata
from functools import lru_cache
from urllib.parse import quote

from aiserver.contract.errors import NotFound

LONGEST_PATH = 600
UPLOADS = ("pub", "secure")
_MOST_READ = 4096
_PREFIXES = ("artifacts/", "uploads/", "files/")
_UNSEEN = frozenset({"Cc", "Cf", "Cs"})


def absent() -> NotFound:
    """What everybody hears of files that are not there or not theirs."""
    return NotFound("Artifact not found")


@lru_cache(_MOST_READ)
def stored_path(sent: str) -> str:
    """The path in the table that this one means, `/artifacts/` and the like left out.

    Raises NotFound for what can name no file: it never becomes a path on the disk.
    """
    path = sent.removeprefix("/")
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            path = path.removeprefix(prefix)
            break
    if not path or len(path) > LONGEST_PATH or "\\" in path:
        raise absent()
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise absent()
    if has_unseen(path):
        raise absent()
    return path


def has_unseen(text: str) -> bool:
    """Whether there are characters in it that no name of a file keeps."""
    if text.isascii():
        return not text.isprintable()
    return any(unicodedata.category(letter) in _UNSEEN for letter in text)


def address(path: str) -> str:
    """Where a file is read, without scheme and host; a stored path goes in."""
    root = "uploads" if path.partition("/")[0] in UPLOADS else "artifacts"
    return f"/{root}/{quote(path)}"


def owner_in(path: str) -> int | None:
    """The key that a stored path names: its last folder but one."""
    folder = path.split("/")[-2:-1]
    named = folder[0] if folder else ""
    return int(named) if named.isascii() and named.isdigit() and len(named) < 10 else None
