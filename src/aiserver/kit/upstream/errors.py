"""What can go wrong between Chat and an upstream.

UpstreamError                `sent`: whether a byte of the request may have reached the upstream
├─ UpstreamRefused           no connection: refused, name not found, TLS
├─ UpstreamReset             the connection ended before a complete answer
│  └─ UpstreamTruncated      ... inside a body whose end was announced
├─ UpstreamTimeout           `phase` says which bound was passed
└─ UpstreamProtocolError     not HTTP, or over a limit
"""

from typing import Literal

Phase = Literal["connect", "first-byte", "gap", "total"]


class UpstreamError(Exception):
    """The upstream could not be used; try another one or try again later."""

    def __init__(self, message: str = "", *, sent: bool = True) -> None:
        super().__init__(message or type(self).__doc__)
        self.sent = sent


class UpstreamRefused(UpstreamError):
    """No connection to the upstream; check its address, its certificate and that it runs."""


class UpstreamReset(UpstreamError):
    """The upstream closed the connection before its answer was complete; try again."""


class UpstreamTruncated(UpstreamReset):
    """The upstream sent less than the body it announced; try again."""


class UpstreamTimeout(UpstreamError):
    """The upstream took too long; try again or allow more time"""

    def __init__(self, phase: Phase, *, sent: bool = True) -> None:
        super().__init__(f"{self.__doc__} ({phase}).", sent=sent)
        self.phase: Phase = phase


class UpstreamProtocolError(UpstreamError):
    """The upstream's answer is not HTTP/1.1 or is over a limit; check its address."""
