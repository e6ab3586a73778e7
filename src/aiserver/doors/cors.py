"""Which browser pages of other origins may call, as CORS_ORIGINS says."""

from collections.abc import Iterable

from starlette.datastructures import Headers

from aiserver.doors.replies import Pairs

_VARIES = (b"Vary", b"Origin")
_PREFLIGHT: Pairs = [
    (b"Access-Control-Allow-Methods", b"GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD"),
    (
        b"Access-Control-Allow-Headers",
        b"Content-Type, Authorization, X-Api-Key, X-Request-Id, Idempotency-Key, Prefer, "
        b"Job-Deadline, Job-Run-After, Job-Priority",
    ),
    (b"Access-Control-Max-Age", b"600"),
]


class Cors:
    """Cookies are never allowed across origins; a page of another origin sends a key."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._named = self._origins - {"*"}

    def names(self, request: Headers) -> bool:
        """Whether the page that this comes from is listed by its own origin; `*` lists nobody."""
        return request.get("origin") in self._named

    def headers(self, request: Headers) -> Pairs:
        """What every answer to this request carries."""
        if not self._origins:
            return []
        origin = request.get("origin", "")
        if "*" in self._origins:
            return [(b"Access-Control-Allow-Origin", b"*"), _EXPOSED]
        if origin not in self._origins:
            return [_VARIES]
        return [(b"Access-Control-Allow-Origin", origin.encode("latin-1")), _VARIES, _EXPOSED]

    def preflight(self, request: Headers) -> Pairs:
        """What an OPTIONS request learns besides; nothing for an origin that is not allowed."""
        granted = any(n == b"Access-Control-Allow-Origin" for n, _ in self.headers(request))
        return _PREFLIGHT if granted else []


_EXPOSED = (b"Access-Control-Expose-Headers", b"X-Request-Id, Retry-After, Location")
