"""One operation, declared once: the class is the request, the decorator says the rest."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import Enum
from types import ModuleType
from typing import Any, Protocol, TypeVar

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.trace import Trace
from aiserver.contract.uploads import FileField

GET = ("GET",)
POST = ("POST",)
PUT = ("PUT",)
PATCH = ("PATCH",)
DELETE = ("DELETE",)

Request = TypeVar("Request", bound=msgspec.Struct)


class Access(Enum):
    """Who may call an operation; the catalogue is open or wants a key, by a setting."""

    OPEN = "open"
    CATALOGUE = "catalogue"
    KEY = "key"
    ADMIN = "admin"


class Route(msgspec.Struct, frozen=True):
    """A path beside /api/{Name}; `{Name}` is one segment, `{Name*}` the rest of the path."""

    path: str
    verbs: tuple[str, ...]


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """How an operation is queued: its twin Queue{Name} is made from this (contract.twins).

    `into` is what the twin answers, `kind` the kind of job, `status` names the operation that tells
    how far it is. `nested`: the call lies whole in the member `request`, of this type. `renamed`
    gives members of the original that the twin has under another name, `without` those that mean
    nothing to a job; both by wire name. `waited`: a direct call is a job too, and waits for it.
    `only`: the operation queues itself, has no twin, and its request takes a twin's Wishes too.
    """

    into: type[msgspec.Struct]
    kind: str
    status: str
    nested: type[msgspec.Struct] | None = None
    renamed: dict[str, str] = {}
    without: tuple[str, ...] = ()
    waited: bool = False
    only: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an operation.

    `keeps_members`: the handler also gets the members as they were sent. `ends_with_caller`: it is
    cancelled when its caller hangs up. `twin_of`: the operation that this one queues.
    """

    name: str
    request: type[msgspec.Struct]
    returns: type[msgspec.Struct] | None
    verbs: tuple[str, ...]
    access: Access
    tag: str
    summary: str
    routes: tuple[Route, ...] = ()
    files: tuple[FileField, ...] = ()
    keeps_members: bool = False
    ends_with_caller: bool = False
    beyond_contract: bool = False
    queued: Queued | None = None
    twin_of: "Operation | None" = None

    @property
    def queues(self) -> "Operation | None":
        """Whose work a call leaves to a job: that of its original, or its own."""
        return self if self.queued is not None and self.queued.only else self.twin_of


class Report(Protocol):
    """Tells how far a job is: `progress` is 0 to 1, `status` what it does just now."""

    def __call__(self, *, progress: float | None = None, status: str | None = None) -> None: ...


class AsJob(msgspec.Struct, frozen=True):
    """The job that a call is run by."""

    id: int
    ref_id: str
    report: Report


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an operation: who asked, under which id, and the members as they were sent.

    `pairs` are, for a query, all that was sent, as text: its conditions may bear any name. `trace`
    is what the history will say of this run. `base` is scheme and host as its caller wrote them,
    `accept` the media types that they take.
    """

    operation: Operation
    caller: Caller
    request_id: str
    trace: Trace
    members: dict[str, Any] = {}
    reset: frozenset[str] = frozenset()
    pairs: tuple[tuple[str, str], ...] = ()
    address: str = ""
    session: str | None = None
    files: dict[str, Any] = {}
    base: str = ""
    accept: str = ""
    job: AsJob | None = None


class JsonBytes(msgspec.Struct, frozen=True):
    """An answer that is JSON already."""

    body: bytes


class Content(msgspec.Struct, frozen=True):
    """An answer that is a file: its bytes, what they are, and headers of its own."""

    body: bytes
    media_type: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Cookie(msgspec.Struct, frozen=True):
    """A cookie for the caller, HttpOnly and of this site only; `max_age` in seconds, 0 clears."""

    name: str
    value: str
    max_age: int


class WithCookies(msgspec.Struct, frozen=True):
    """An answer that also changes the caller's cookies."""

    answer: msgspec.Struct
    cookies: tuple[Cookie, ...]


class WithHeaders(msgspec.Struct, frozen=True):
    """An answer with headers of its own, and another status than 200 where that is given."""

    answer: msgspec.Struct | JsonBytes
    headers: tuple[tuple[bytes, bytes], ...]
    status: int = 200


class StreamForm(Enum):
    """How the pieces of a stream are told apart: server-sent events, or a line of JSON each."""

    SSE = "text/event-stream; charset=utf-8"
    NDJSON = "application/x-ndjson; charset=utf-8"


class EventStream(msgspec.Struct, frozen=True):
    """An answer that comes in pieces, each holding whole events of `form`; `headers` of its own.

    `close` frees what the stream holds and is called once, however the stream ends.
    """

    events: AsyncGenerator[bytes]
    close: Callable[[], None]
    form: StreamForm = StreamForm.SSE
    headers: tuple[tuple[bytes, bytes], ...] = ()


Answer = msgspec.Struct | JsonBytes | Content | EventStream | None
Handler = Callable[[Any, Call], Awaitable[Answer]]

_DECLARATION = "__operation__"


def operation(
    *,
    tag: str,
    verbs: tuple[str, ...],
    access: Access,
    returns: type[msgspec.Struct] | None,
    routes: tuple[Route, ...] = (),
    files: tuple[FileField, ...] = (),
    keeps_members: bool = False,
    ends_with_caller: bool = False,
    beyond_contract: bool = False,
    queued: Queued | None = None,
) -> Callable[[type[Request]], type[Request]]:
    """Declares a Struct an operation: its name is the wire name, its docstring the summary."""

    def declare(request: type[Request]) -> type[Request]:
        declaration = Operation(
            name=request.__name__,
            request=request,
            returns=returns,
            verbs=verbs,
            access=access,
            tag=tag,
            summary=inspect.cleandoc(request.__dict__.get("__doc__") or ""),
            routes=routes,
            files=files,
            keeps_members=keeps_members,
            ends_with_caller=ends_with_caller,
            beyond_contract=beyond_contract,
            queued=queued,
        )
        attach(declaration)
        return request

    return declare


def attach(declaration: Operation) -> None:
    """Makes the request type the operation that is declared here."""
    setattr(declaration.request, _DECLARATION, declaration)


def operation_of(request: type[msgspec.Struct]) -> Operation:
    """The declaration of a request type; TypeError when there is none."""
    declared = request.__dict__.get(_DECLARATION)
    if not isinstance(declared, Operation):
        raise TypeError(f"{request.__name__} is not declared with @operation")
    return declared


def declared_in(module: ModuleType) -> list[type[msgspec.Struct]]:
    """The operations that a room's module declares."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
        and _DECLARATION in value.__dict__
    ]
