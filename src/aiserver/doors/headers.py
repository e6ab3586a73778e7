"""Header names as clients that compare them letter by letter expect: Content-Type."""

from functools import lru_cache

_ODD = {
    b"etag": b"ETag",
    b"te": b"TE",
    b"www-authenticate": b"WWW-Authenticate",
    b"x-xss-protection": b"X-XSS-Protection",
}


@lru_cache(maxsize=1024)
def canonical(name: bytes) -> bytes:
    lowered = name.lower()
    return _ODD.get(lowered) or b"-".join(part.capitalize() for part in lowered.split(b"-"))
