"""Where a request goes, how long it may take, and the head it is sent with."""

from collections.abc import Iterable
from typing import Self
from urllib.parse import urlsplit

import msgspec

Origin = tuple[str, int, bool]
_OUR_HEADERS = frozenset(
    b"connection content-length expect keep-alive te trailer transfer-encoding upgrade".split()
)


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds; `gap` is between two reads of a body, `total` covers everything."""

    connect: float = 10
    first_byte: float = 300
    gap: float = 120
    total: float = 900


class Target(msgspec.Struct, frozen=True):
    host: str
    port: int
    tls: bool
    path: str

    def __repr__(self) -> str:
        # Without the path: some providers take their key in the query.
        return f"Target({self.host}:{self.port}, tls={self.tls})"

    @property
    def origin(self) -> Origin:
        return self.host, self.port, self.tls

    @classmethod
    def parse(cls, url: str) -> Self:
        parts = urlsplit(url)
        tls, port = parts.scheme == "https", parts.port
        # urlsplit silently removes line breaks, so the address is checked as it was given.
        if not all("!" <= letter <= "~" for letter in url) or "@" in parts.netloc:
            raise ValueError("an upstream address is printable ASCII and holds no password")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("write an upstream address as http(s)://host[:port]/path")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)


def request_head(
    target: Target, method: bytes, headers: Iterable[tuple[bytes, bytes]], length: int
) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    if target.port != (443 if target.tls else 80):
        host = f"{host}:{target.port}"
    ours = {b"host": host.encode(), b"accept-encoding": b"identity"}
    if length or method not in (b"GET", b"HEAD"):
        ours[b"content-length"] = b"%d" % length
    lines = [b"%b %b HTTP/1.1" % (method, target.path.encode())]
    for name, value in headers:
        lowered = name.lower()
        if lowered not in _OUR_HEADERS:
            ours.pop(lowered, None)
            lines.append(b"%b: %b" % (name, value))
    lines.extend(b"%b: %b" % item for item in ours.items())
    head, breaks = b"\r\n".join(lines), len(lines) - 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise ValueError("a header or a path of a request holds a line break or a NUL")
    return head + b"\r\n\r\n"
