"""Ids that nobody can guess."""

import os
import re
from datetime import UTC, datetime, timedelta

_COUNT_BITS = 21
_CALL_BITS = 8
_MOST_CALLS = 2**_CALL_BITS - 1
_MOST_NUMBERS = 2 ** (_COUNT_BITS - _CALL_BITS) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def random_hex(size: int = 16) -> str:
    """`size` random bytes as hex digits."""
    return os.urandom(size).hex()


def request_id(offered: str | None) -> str:
    """The caller's own id when it is short and plain, else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return random_hex()


class CallIds:
    """Numbers for calls: 63 bits that grow with time, each given once in an installation.

    42 bits are milliseconds since 1970, 13 tell `process` and the `kind` (0 or 1) of calls in it, 8
    count; what does not fit in a millisecond takes from the next one. Without a number of its own a
    process takes one by chance.
    """

    def __init__(self, process: int | None = None, kind: int = 0) -> None:
        number = int.from_bytes(os.urandom(2)) if process is None else process
        self._from = ((number << 1 | kind) & _MOST_NUMBERS) << _CALL_BITS
        self._last_ms = 0
        self._count = 0

    def next(self, now_ms: int) -> int:
        """Greater than every number before, even when the clock steps back."""
        if now_ms > self._last_ms:
            self._last_ms, self._count = now_ms, 0
        elif self._count < _MOST_CALLS:
            self._count += 1
        else:
            self._last_ms, self._count = self._last_ms + 1, 0
        return self._last_ms << _COUNT_BITS | self._from | self._count


def first_of(moment: datetime) -> int:
    """The smallest number that a call of this millisecond or later can have."""
    return max((moment - _EPOCH) // _MILLISECOND, 0) << _COUNT_BITS


def began_ms(call_id: int) -> int:
    """When a call began, by its number: milliseconds since 1970."""
    return call_id >> _COUNT_BITS


def moment_of(milliseconds: int) -> datetime:
    """That many after the beginning of 1970, in UTC."""
    return _EPOCH + milliseconds * _MILLISECOND
