"""Reads `replyTo`: where a caller wants the callback of a job to go."""

import posixpath
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

import msgspec

from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.kit.outbound import AddressRefused, Destination, Outbound, parse

OWN_PATH = "/dummyreplyto"
# How often proxies in a row may decode a path.
_DECODED = 3
VERBS = ("POST", "PUT", "PATCH")


class ReplyTo(msgspec.Struct, frozen=True):
    """`receiver` is scheme, host and port: what shares a line. `own`: this server's own sink."""

    verb: str
    url: str
    receiver: str
    own: bool

    def __repr__(self) -> str:
        return f"ReplyTo({self.verb}, {self.receiver})"


class ReplyAddresses:
    """`own` are the base URLs that this server is reached by; of these only the sink is called."""

    def __init__(self, outbound: Outbound, *, own: Collection[str] = ()) -> None:
        """Raises ValueError for an address of its own that cannot be one."""
        self._outbound = outbound
        self._own = tuple(_own(url) for url in own)

    def read(self, text: str) -> ReplyTo:
        """`[VERB ]URL`; no look-up is made. Raises InvalidRequest."""
        verb, _, url = text.strip().rpartition(" ")
        verb = verb.strip().upper() or "POST"
        if verb not in VERBS:
            raise _refused(f"write it as URL or VERB URL, with one of {', '.join(VERBS)}.")
        try:
            found = parse(url)
        except AddressRefused as error:
            raise _refused(str(error)) from None
        return ReplyTo(verb, found.url, _receiver(found), self._is_own(found))

    async def admit(self, text: str, *, key_id: int | None = None) -> ReplyTo:
        """Before a job of this key is stored: as `read`, and its host must be one that the server
        calls.
        """
        reply_to = self.read(text)
        if not reply_to.own:
            try:
                await self._outbound.check(reply_to.url, caller=key_id)
            except AddressRefused as error:
                raise _refused(str(error)) from None
        return reply_to

    def _is_own(self, found: Destination) -> bool:
        path = urlsplit(found.url).path
        bases = [
            base
            for receiver, base in self._own
            if receiver == _receiver(found) and _is_below(path, base)
        ]
        if bases and not any(path == base + OWN_PATH for base in bases):
            raise _refused(f"of this server's own addresses only {OWN_PATH} takes callbacks.")
        return bool(bases)


def _own(url: str) -> tuple[str, str]:
    try:
        return _receiver(parse(url)), urlsplit(url).path.rstrip("/")
    except AddressRefused as error:
        raise ValueError(f"PUBLIC_URL: {error}") from None


def _is_below(path: str, base: str) -> bool:
    """As written or as any proxy on the way may read it, which is to refuse rather too much."""
    start = _plain(base).rstrip("/") + "/"
    return any(f"{read}/".startswith(start) for read in (path, _plain(path)))


def _plain(path: str) -> str:
    """Without percent-encoding, dots and doubled slashes."""
    for _ in range(_DECODED):
        path = unquote(path)
    return posixpath.normpath("/" + path.replace("\\", "/").lstrip("/"))


def _receiver(found: Destination) -> str:
    scheme = found.url.partition(":")[0].lower()
    host = found.host.rstrip(".")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{found.port}"


def _refused(message: str) -> InvalidRequest:
    field = FieldError(
        error_code="ArgumentException", field_name="ReplyTo", message=f"replyTo: {message}"
    )
    return InvalidRequest.of([field], param="replyTo")
