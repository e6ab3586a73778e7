"""What a Prometheus scraper reads: for administrators, a token of its own, or this machine."""

import hmac
import ipaddress
from collections.abc import Callable

from starlette.datastructures import Headers

from aiserver.contract.errors import Unauthenticated
from aiserver.doors.gateway import Page, Scope, credentials_of
from aiserver.doors.replies import Pairs, Send, send_bytes
from aiserver.keys.access import Credentials
from aiserver.kit.telemetry import Telemetry
from aiserver.settings.casts import Secret

_FRESH = (b"Cache-Control", b"no-store")
# Of several processes at one address the next scrape shall find any.
_LAST = (b"Connection", b"close")
# What proxies add; and Origin, since a browser on this machine shows pages from anywhere.
_NOT_FROM_HERE = frozenset({"forwarded", "via", "x-real-ip", "origin"})
# Under another name it came through a proxy, or through a name that a web page points here.
_HERE = frozenset({"localhost", "127.0.0.1", "[::1]"})
_FORWARDED = "x-forwarded-"


class Metrics:
    """`is_admin` says whether credentials are an administrator's; it may refuse them."""

    def __init__(
        self, telemetry: Telemetry, *, token: Secret | None, is_admin: Callable[[Credentials], bool]
    ) -> None:
        self._telemetry = telemetry
        self._token = token.reveal().encode() if token is not None else b""
        self._is_admin = is_admin

    def pages(self) -> dict[str, Page]:
        return {"/metrics": self.scrape}

    async def scrape(self, scope: Scope, send: Send, headers: Pairs) -> None:
        """Raises Unauthenticated for anyone else."""
        asked = Headers(scope=scope)
        known = self._has_token(asked) or from_here(scope, asked)
        if not known and not self._is_admin(credentials_of(asked)):
            raise Unauthenticated(
                "Not Authenticated. Send METRICS_TOKEN or the administrator's secret: "
                "Authorization: Bearer ..."
            )
        body, content_type = await self._telemetry.page(asked.get("accept", ""))
        about = [(b"Content-Type", content_type.encode()), _FRESH, _LAST]
        await send_bytes(send, 200, [*headers, *about], body)

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if not self._token or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(shown.strip().encode(), self._token)


def from_here(scope: Scope, headers: Headers) -> bool:
    """Whether a request came from this machine, and not through a proxy on it."""
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address is None or not address.is_loopback or _host(headers) not in _HERE:
        return False
    return not any(name in _NOT_FROM_HERE or name.startswith(_FORWARDED) for name in headers)


def _host(headers: Headers) -> str:
    """The name that the server was called by, without its port."""
    host = headers.get("host", "").lower()
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
