"""The hot lane: chats relayed between two sockets without a task, by the slow path's own rules.

It takes what it can carry byte for byte. Everything else goes to the slow path with its bytes:
other dialects, whatever must wait, and every failure before the model's first word.
"""

from typing import Any, NamedTuple, Protocol

import msgspec

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.openai import OpenAiAdapter, adds_usage, with_usage
from aiserver.chat.flavours import PLAIN, flavour_of
from aiserver.chat.outcomes import Tries
from aiserver.chat.parameters import Parameters
from aiserver.chat.upstreams import headers_of, target_of
from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Operation
from aiserver.contract.trace import Trace
from aiserver.dispatch import Dispatch
from aiserver.doors.body import BodyReader
from aiserver.doors.heads import Asked, Heads
from aiserver.doors.lane_call import Client, LaneCall
from aiserver.doors.lane_files import FileLane
from aiserver.doors.replies import Pairs
from aiserver.doors.wanted import Wanted, read_members, read_wanted, write_wanted
from aiserver.keys.access import Credentials
from aiserver.kit.ids import request_id
from aiserver.kit.redact import Redactor
from aiserver.kit.upstream import Connection, Target, Timeouts, UpstreamPool, request_head
from aiserver.kit.writes import Writes
from aiserver.providers.endpoints import Endpoint, Endpoints
from aiserver.providers.pool import Lease, NobodyLeft, ProviderPool
from aiserver.settlement import Settlement

_PATH = "/chat/completions"
# Stand in a request's head for what is filled in call by call.
_ID, _LENGTH = "request-id-of-the-call", 987_654_321
# A page of some site, an odd body, one that asks to be a job: the slow path knows them.
_ELSEWHERE = frozenset(
    (
        *(b"origin", b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"),
        *(b"prefer", b"idempotency-key"),
    )
)


class Stoppable(Protocol):
    """Says whether the server takes new calls."""

    draining: bool


class _Way(NamedTuple):
    """How an upstream is asked: `head` is its request's, but for what differs from call to call."""

    endpoint: Endpoint
    target: Target
    head: bytes
    plain: bool


class Lane:
    """`operation` is the chat that is served here."""

    def __init__(
        self,
        *,
        operation: Operation,
        dispatch: Dispatch,
        pool: ProviderPool,
        endpoints: Endpoints,
        connections: UpstreamPool,
        parameters: Parameters,
        timeouts: Timeouts,
        settlement: Settlement,
        bodies: BodyReader,
        lifecycle: Stoppable,
        redact: Redactor,
    ) -> None:
        self.paths = frozenset(route.path.encode() for route in operation.routes)
        self._operation = operation
        self._dispatch = dispatch
        self._pool = pool
        self._endpoints = endpoints
        self._connections = connections
        self._parameters = parameters
        self._timeouts = timeouts
        self.settlement = settlement
        self.redact = redact
        self.running: set[LaneCall] = set()
        self._bodies = bodies
        self._lifecycle = lifecycle
        self._adapter = OpenAiAdapter()
        self.heads = Heads()
        self.writes = Writes()
        self.files = FileLane(dispatch, settlement, self.writes)
        self._ways: dict[int, _Way] = {}
        self._dated: tuple[Pairs | None, bytes] = (None, b"")

    def taken(self, url: bytes, headers: Pairs, *, keep_alive: bool) -> Asked | None:
        """A request that is for the lane by its headers; their names are in lower case."""
        fields = dict(headers)
        length = fields.get(b"content-length", b"")
        if (
            not length.isdigit()
            or not (b"authorization" in fields or b"x-api-key" in fields)
            or not _ELSEWHERE.isdisjoint(fields)
            or self._lifecycle.draining
            or not self._bodies.room_for(int(length))
        ):
            return None
        path, credentials = url.decode("ascii"), credentials_of(fields)
        return Asked(url, headers, fields, keep_alive, credentials, path)

    def known(self, data: bytes) -> tuple[Asked, bytes] | None:
        """A whole request with a head that was taken before, its body held."""
        found = self.heads.find(data)
        if found is None or self._lifecycle.draining or not self._bodies.room_for(len(found[1])):
            return None
        self._bodies.held += len(found[1])
        return found

    def answered(self, client: Client, data: bytes) -> bool:
        """Whether this was a request for a file, answered now as it was before."""
        if self._lifecycle.draining:
            return False
        return self.files.serve(client, data, self.date(client.date))

    def cut_off(self) -> None:
        """Ends the calls that are under way, each with an answer."""
        for call in list(self.running):
            call.cut_off()

    def hold(self, pieces: list[bytes], piece: bytes) -> None:
        pieces.append(piece)
        self._bodies.held += len(piece)

    def free(self, size: int) -> None:
        """So many bytes are held no more."""
        self._bodies.held -= size

    def serve(self, client: Client, asked: Asked, body: bytes) -> LaneCall | None:
        """Begins a call; None when the slow path has taken it."""
        begun = self._begin(client, asked, body)
        if isinstance(begun, LaneCall):
            return begun
        self.free(len(body))
        client.lane_declined(body, begun)
        return None

    def _begin(self, client: Client, asked: Asked, body: bytes) -> LaneCall | Trace | None:
        """A call at work, or as much of one as could be begun."""
        try:
            wanted = read_wanted(body)
            caller = self._dispatch.admitted(self._operation, asked.credentials)
            if caller is None or not caller.may_use(wanted.model):
                return None
            lease = self._pool.choose(wanted.model)
        except (msgspec.MsgspecError, ValueError, RecursionError, ApiError, NobodyLeft):
            # The slow path finds the same, and answers it.
            return None
        if lease is None:
            return None
        offered = asked.fields.get(b"x-request-id")
        trace = self._dispatch.begin(
            self._operation,
            caller,
            request_id=request_id(offered.decode("latin-1")) if offered else None,
            address=client.client[0] if client.client else "",
            method="POST",
            path=asked.path,
        )
        way = self._way(lease)
        connection = self._connections.kept(way.target.origin) if way is not None else None
        if way is None or connection is None:
            # Another dialect, or no connection that is open: the slow path goes on with this slot.
            tries = Tries(trace)
            tries.interrupted = (lease, None)
            trace.left = tries
            return trace
        return self._send(client, trace, wanted, body, lease, way, connection)

    def _send(
        self,
        client: Client,
        trace: Trace,
        wanted: Wanted,
        body: bytes,
        lease: Lease,
        way: _Way,
        connection: Connection,
    ) -> LaneCall:
        chat = Chat(
            members={} if wanted.whole else _members(wanted, body),
            model=wanted.model,
            stream=bool(wanted.stream),
            wants_usage=bool((wanted.stream_options or {}).get("include_usage")),
            request_id=trace.request_id,
            created=int(trace.at),
        )
        sent = self._written(wanted, chat, lease, way.endpoint)
        call = LaneCall(self, client, trace, chat, body, lease, connection)
        if chat.stream:
            call.reader = self._adapter.reader(chat, way.endpoint, provider=lease.provider.name)
        head = way.head % (trace.request_id.encode(), len(sent))
        call.begin(head, sent, self._timeouts)
        return call

    def _written(self, wanted: Wanted, chat: Chat, lease: Lease, endpoint: Endpoint) -> bytes:
        if not wanted.whole:
            name = lease.provider.name
            return self._adapter.request(chat, endpoint, model=lease.api_model, provider=name).body
        wanted.model = lease.api_model
        if adds_usage(chat, endpoint):
            wanted.stream_options = with_usage(wanted.stream_options)
        return write_wanted(wanted)

    def date(self, headers: Pairs) -> bytes:
        """The header lines that every answer of this second bears."""
        known, lines = self._dated
        if known is not headers:
            lines = b"".join(b"%b: %b\r\n" % (name.title(), value) for name, value in headers)
            self._dated = (headers, lines)
        return lines

    def _way(self, lease: Lease) -> _Way | None:
        provider = lease.provider
        endpoint = self._endpoints.known(provider)
        if endpoint is None:
            return None
        way = self._ways.get(provider.id)
        if way is None or way.endpoint is not endpoint:
            way = self._ways[provider.id] = _way_to(endpoint)
        if not way.plain:
            return None
        return way if self._parameters.none_for(provider, lease.api_model) else None


def _members(wanted: Wanted, body: bytes) -> dict[str, Any]:
    members: dict[str, Any] = read_members(body)
    if wanted.stream_options is not None:
        members["stream_options"] = wanted.stream_options
    return members


def credentials_of(headers: dict[bytes, bytes]) -> Credentials:
    scheme, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
    bearer = token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
    key = headers.get(b"x-api-key", b"").decode("latin-1")
    return Credentials(bearer=bearer or None, api_key=key or None)


def _way_to(endpoint: Endpoint) -> _Way:
    target = target_of(endpoint, _PATH)
    head = request_head(target, b"POST", (*headers_of(_ID), *endpoint.headers), _LENGTH)
    return _Way(
        endpoint=endpoint,
        target=target,
        head=_template(head),
        plain=endpoint.type.dialect == "openai" and flavour_of(endpoint.type.wire.id) is PLAIN,
    )


def _template(head: bytes) -> bytes:
    escaped = head.replace(b"%", b"%%")
    identified = escaped.replace(b"X-Request-Id: " + _ID.encode(), b"X-Request-Id: %b", 1)
    return identified.replace(b"content-length: %d" % _LENGTH, b"content-length: %d", 1)
