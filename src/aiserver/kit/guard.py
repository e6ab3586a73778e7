"""Which addresses the server calls for somebody else: public ones, and those an operator names."""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST_URL = 2048
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
# Resolvers read a host that ends in a number as IPv4, in forms such as 127.1 and 0x7f000001.
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\.?")

# Listed here because what Python calls global differs between its patch releases.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # A cloud's metadata service on an address that is otherwise public.
        "168.63.129.16/32",
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20")
)
_6TO4 = ipaddress.IPv6Network("2002::/16")
_MAPPED = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96"))
_ISATAP = (0x00005EFE, 0x02005EFE)


class OutboundError(Exception):
    """The call to this address failed; try again later."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or type(self).__doc__)


class AddressRefused(OutboundError):
    """This is not an address that the server calls; use a public http(s) address."""


class Destination(msgspec.Struct, frozen=True):
    """Where a call goes; `host` in small letters, an IPv6 address without brackets."""

    url: str
    host: str
    port: int

    def __repr__(self) -> str:
        # Without path and query: they may hold a secret.
        return f"Destination({self.host}:{self.port})"

    @property
    def literal(self) -> bool:
        """Whether the host is an address, which no resolver is asked for."""
        return _address(self.host) is not None


class _Allowed(msgspec.Struct, frozen=True):
    name: str | None
    network: Network | None
    port: int | None


def parse(url: str) -> Destination:
    """Reads an address strictly, so that no two readers can see two hosts in it.

    Raises AddressRefused with what to write instead.
    """
    if len(url) > LONGEST_URL:
        raise AddressRefused(f"The address is longer than {LONGEST_URL} characters.")
    if not all("!" <= letter <= "~" for letter in url) or "\\" in url:
        raise AddressRefused(
            "The address holds spaces or letters outside ASCII; percent-encode them, "
            "and write an international host name as xn--…"
        )
    try:
        parts = urlsplit(url)
        port = parts.port or (0 if parts.port == 0 else _PORTS.get(parts.scheme, 0))
    except ValueError:
        raise AddressRefused("Write the address as http(s)://host[:port]/path.") from None
    if "@" in parts.netloc:
        raise AddressRefused("The address holds a user name or password; leave it out.")
    host = parts.hostname or ""
    bracketed = "[" in parts.netloc
    if parts.scheme not in _PORTS or not port or not _is_host(host) or bracketed != (":" in host):
        raise AddressRefused("Write the address as http(s)://host[:port]/path.")
    return Destination(url.partition("#")[0], host, port)


def is_public(address: str) -> bool:
    """Whether this address belongs to the internet; False for what is no address at all."""
    ip = _address(address)
    return ip is not None and _is_public(ip)


class Guard:
    """`allow` is a comma list of hosts, host:port, addresses and CIDRs that are called as well."""

    def __init__(self, allow: str = "") -> None:
        """Raises ValueError naming the item that cannot be read."""
        self._allowed = tuple(_allowed(item) for item in re.split(r"[,\s]+", allow) if item)

    def check(self, destination: Destination, addresses: Iterable[str]) -> None:
        """Raises AddressRefused unless each of these addresses of it may be called."""
        found = [_address(text) for text in addresses]
        if self._named(destination):
            return
        if not found or not all(self._may_call(ip, destination.port) for ip in found):
            raise AddressRefused(
                f"{destination.host} is not a public address that this server may call. Use a "
                "public one, or ask the administrator to name it in OUTBOUND_ALLOW."
            )

    def _named(self, destination: Destination) -> bool:
        name = destination.host.rstrip(".")
        return any(
            item.name == name and item.port in (None, destination.port) for item in self._allowed
        )

    def _may_call(self, ip: Ip | None, port: int) -> bool:
        if ip is None:
            return False
        return _is_public(ip) or any(
            item.network is not None and ip in item.network and item.port in (None, port)
            for item in self._allowed
        )


def _is_host(host: str) -> bool:
    if _address(host) is not None:
        return "%" not in host
    return bool(_HOST.fullmatch(host)) and not _NUMBER.fullmatch(
        host.rstrip(".").rpartition(".")[2]
    )


def _address(text: str) -> Ip | None:
    """The address; an IPv4 address written as IPv6 as the IPv4 address that it stands for."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _MAPPED):
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip in _6TO4:
            return ipaddress.IPv4Address(int(ip) >> 80 & 0xFFFFFFFF)
    return ip


def _is_public(ip: Ip) -> bool:
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _REFUSED_V4)
    if ip not in _PUBLIC_V6 or any(ip in network for network in _REFUSED_V6):
        return False
    tunnelled = int(ip) >> 32 & 0xFFFFFFFF in _ISATAP
    return not tunnelled or _is_public(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))


def _allowed(item: str) -> _Allowed:
    text = item.lower()
    try:
        return _Allowed(None, ipaddress.ip_network(text.strip("[]")), None)
    except ValueError:
        pass
    host, _, port = text.rpartition(":") if re.search(r"[^:]:\d+$", text) else (text, "", "")
    number = int(port) if port else None
    if number is not None and not 0 < number < 65536:
        raise ValueError(f"OUTBOUND_ALLOW: {item} has no possible port")
    ip = _address(host.strip("[]"))
    if ip is not None:
        return _Allowed(None, ipaddress.ip_network(ip), number)
    if not _is_host(host):
        raise ValueError(f"OUTBOUND_ALLOW: {item} is none of host, host:port, address, 10.0.0.0/8")
    return _Allowed(host.rstrip("."), None, number)
