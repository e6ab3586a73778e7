"""Ids that nobody can guess."""

import os
import re
from datetime import UTC, datetime, timedelta

_COUNT_BITS = 21
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
    """Numbers for calls: 63 bits that grow with time, each given once by this process.

    42 bits are milliseconds since 1970, the rest counts from a random start, so that the numbers of
    two processes hardly ever meet.
    """

    def __init__(self) -> None:
        self._last = 0
        self._start = int.from_bytes(os.urandom(2)) << 3

    def next(self, now_ms: int) -> int:
        """Greater than every number before, even when the clock steps back."""
        floor = now_ms << _COUNT_BITS
        if floor > self._last:
            self._last = floor | self._start
        else:
            self._last += 1
        return self._last


def first_of(moment: datetime) -> int:
    """The smallest number that a call of this millisecond or later can have."""
    return max((moment - _EPOCH) // _MILLISECOND, 0) << _COUNT_BITS


def began_ms(call_id: int) -> int:
    """When a call began, by its number: milliseconds since 1970."""
    return call_id >> _COUNT_BITS


def moment_of(milliseconds: int) -> datetime:
    """That many after the beginning of 1970, in UTC."""
    return _EPOCH + milliseconds * _MILLISECOND
