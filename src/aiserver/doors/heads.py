"""Heads of requests that were read before: a client says the same one call after call."""

import re
from typing import NamedTuple

from aiserver.keys.access import Credentials

_MOST = 1024
_LONGEST = 4096
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d{1,9})\r\n")
_NAME = b"content-length"


class Asked(NamedTuple):
    """A request without its body, as the parser read it."""

    url: bytes
    headers: list[tuple[bytes, bytes]]
    fields: dict[bytes, bytes]
    keep_alive: bool
    credentials: Credentials
    path: str

    def measured(self, length: int) -> "Asked":
        """The same of a body of so many bytes."""
        value = b"%d" % length
        headers = [(name, value if name == _NAME else said) for name, said in self.headers]
        return self._replace(headers=headers, fields=dict(headers))


class Heads:
    """At most 1024 heads of 4 kB, by their bytes but for the digits of the body's length.

    What the parser has taken once need not be parsed again: the same bytes mean the same.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: dict[bytes, Asked] = {}

    def keep(self, request: bytes, asked: Asked) -> None:
        """`request` is a whole one, from its first byte to its last, that the parser has read."""
        end = request.find(_END)
        length = _LENGTH.search(request, 0, end + 2)
        if length is None or end > _LONGEST or end + 4 + int(length[1]) != len(request):
            return
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[request[: length.start(1)] + request[length.end(1) : end]] = asked

    def find(self, data: bytes) -> tuple[Asked, bytes] | None:
        """The head and the body of a whole request, if the head is known and nothing follows."""
        length = _LENGTH.search(data, 0, _LONGEST)
        if length is None:
            return None
        first, last = length.span(1)
        end = data.find(_END, last)
        size = int(data[first:last])
        if end + 4 + size != len(data):
            return None
        asked = self._known.get(data[:first] + data[last:end])
        return None if asked is None else (asked, data[end + 4 :])
