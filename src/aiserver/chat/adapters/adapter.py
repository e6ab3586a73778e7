"""The shape of an adapter: translates one dialect, byte for byte, and touches no socket.

Between dialects there is one normal form, OpenAI's chat completion; what an OpenAI-compatible
upstream says goes through unread but for what the gateway must know.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec

from aiserver.chat.failures import ErrorAnswer, Failure
from aiserver.contract.trace import Usage
from aiserver.providers.endpoints import Endpoint


class Chat(msgspec.Struct, kw_only=True, gc=False):
    """One chat as its caller asked for it, in the normal form, without the gateway's own members.

    `wants_usage`: the caller asked for a usage chunk in its stream. `created` is in seconds since
    1970. `request_id` names the call at the upstream too. `only` is the one dialect that can carry
    all of it, None when any can.
    """

    members: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    request_id: str
    created: int
    only: str | None = None


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """What goes upstream: the path after the endpoint's root, the body, headers beside its own."""

    path: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A whole answer in the normal form, as JSON."""

    body: bytes
    usage: Usage | None


class Loaded(msgspec.Struct, frozen=True):
    """Where an upstream tells which models it has in memory: the path after its root.

    `names` reads what it answers, and raises msgspec.MsgspecError.
    """

    path: str
    names: Callable[[bytes], Collection[str]]


class StreamReader(Protocol):
    """Reads one streamed answer; what it gives out are whole server-sent events, [DONE] included.

    `native`: it gives out the upstream's own dialect instead, because its caller speaks it too.
    `begun`: something that the model said has been given out, so another provider must not be asked
    any more. `finished`: the upstream ended its answer in the way of its dialect. After `failure`
    is set, nothing more is fed.
    """

    native: bool
    begun: bool
    finished: bool
    usage: Usage | None
    failure: Failure | None

    def feed(self, data: bytes) -> bytes:
        """Events for the caller, complete ones only; b"" while there is none. Never raises."""
        ...

    def end(self) -> bytes:
        """The last events once the upstream closed; sets `failure` when it broke off. Once."""
        ...


class Adapter(Protocol):
    """One for all upstreams of a dialect; it keeps nothing of a call."""

    def request(self, chat: Chat, endpoint: Endpoint, *, model: str, provider: str) -> Outgoing:
        """`model` as the upstream knows it. Raises InvalidRequest for what it cannot carry."""
        ...

    def answer(self, body: bytes, chat: Chat, *, provider: str) -> Answered:
        """A body of status 200. Raises Failure for an error inside or an unreadable one."""
        ...

    def reader(self, chat: Chat, endpoint: Endpoint, *, provider: str) -> StreamReader: ...

    def error(self, body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
        """An error body in this dialect; one that cannot be read has no words. Never raises."""
        ...

    def listing(self) -> str:
        """The path after the endpoint's root that lists models, cheap and free of charge."""
        ...

    def models(self, body: bytes) -> list[str]:
        """The names in that list. Raises msgspec.MsgspecError."""
        ...
