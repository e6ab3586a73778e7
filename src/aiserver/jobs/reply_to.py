"""Reads `replyTo`: where a caller wants the callback of a job to go."""

from collections.abc import Collection
from urllib.parse import urlsplit

import msgspec

from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.kit.outbound import AddressRefused, Destination, Outbound, parse

OWN_PATH = "/dummyreplyto"
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
    """`own` are the base URLs that this server is reached by; only its sink is called there."""

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

    async def admit(self, text: str) -> ReplyTo:
        """Before a job is stored: as `read`, and its host must be one that the server calls."""
        reply_to = self.read(text)
        if not reply_to.own:
            try:
                await self._outbound.check(reply_to.url)
            except AddressRefused as error:
                raise _refused(str(error)) from None
        return reply_to

    def _is_own(self, found: Destination) -> bool:
        path = urlsplit(found.url).path
        bases = [base for receiver, base in self._own if receiver == _receiver(found)]
        if bases and not any(path == base + OWN_PATH for base in bases):
            raise _refused(f"of this server's own addresses only {OWN_PATH} takes callbacks.")
        return bool(bases)


def _own(url: str) -> tuple[str, str]:
    try:
        return _receiver(parse(url)), urlsplit(url).path.rstrip("/")
    except AddressRefused as error:
        raise ValueError(f"PUBLIC_URL: {error}") from None


def _receiver(found: Destination) -> str:
    scheme = found.url.partition(":")[0].lower()
    host = found.host.rstrip(".")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{found.port}"


def _refused(message: str) -> InvalidRequest:
    field = FieldError(
        error_code="ArgumentException", field_name="ReplyTo", message=f"replyTo: {message}"
    )
    return InvalidRequest.of([field], param="replyTo")
