"""Headers of a request, found by name, and names as clients expect them: Content-Type."""

from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any, TypeVar, overload

from starlette.datastructures import Headers

T = TypeVar("T")

_ODD = {
    b"etag": b"ETag",
    b"te": b"TE",
    b"www-authenticate": b"WWW-Authenticate",
    b"x-xss-protection": b"X-XSS-Protection",
}


class RequestHeaders(Headers):
    """Looked up once for all names; of a name that comes twice, the first counts."""

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        super().__init__(scope=scope)
        # Names come in small letters.
        self._first = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(self._list)
        }

    @overload
    def get(self, key: str, default: None = None, /) -> str | None: ...
    @overload
    def get(self, key: str, default: str | T, /) -> str | T: ...
    def get(self, key: str, default: Any = None, /) -> Any:
        return self._first.get(key.lower(), default)


@lru_cache(maxsize=1024)
def canonical(name: bytes) -> bytes:
    """A name with its capitals."""
    lowered = name.lower()
    return _ODD.get(lowered) or b"-".join(part.capitalize() for part in lowered.split(b"-"))
