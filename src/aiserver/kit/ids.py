"""Ids that nobody can guess."""

import os
import re

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def random_hex(size: int = 16) -> str:
    """`size` random bytes as hex digits."""
    return os.urandom(size).hex()


def request_id(offered: str | None) -> str:
    """The caller's own id when it is short and plain, else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return random_hex()
