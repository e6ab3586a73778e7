"""The twin of an operation that can be queued: Queue{Name}, made from its declaration."""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import quote

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

from aiserver.contract.operation import POST, Operation, Queued, attach, operation_of
from aiserver.contract.responses import Wire

Members = dict[str, Any]
Request = type[msgspec.Struct]

# A store of text may refuse control characters, and nobody means them.
_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*\Z"
_Label = Annotated[str, Meta(max_length=200, pattern=_NO_CONTROLS)]
_REQUEST = "request"
# What the call itself also understands, so that its trace bears the same names.
_SHARED = ("refId", "provider", "tag")

_SUMMARY = """Queues {name}: answers at once with the ids of a job, which does the work.

`replyTo` is sent the outcome, with `state` in it; a verb may stand before the address. `refId` is
unique among the caller's jobs. Of waiting jobs those of higher `priority` go first; `runAfter` is
when the job may begin.
"""


class Wishes(Wire, kw_only=True):
    """What a caller asks of the queue beside the call itself; every twin takes all of it."""

    ref_id: _Label | None = None
    provider: _Label | None = None
    reply_to: Annotated[str, Meta(max_length=2000, pattern=_NO_CONTROLS)] | None = None
    tag: _Label | None = None
    state: Annotated[str, Meta(max_length=4000)] | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    run_after: datetime | None = None


class Split(NamedTuple):
    """A queued request apart: the members of the call to make, as sent, and the wishes."""

    members: Members
    wishes: Wishes


_WISHES = msgspec.structs.fields(Wishes)


def twin_of(request: Request) -> Request | None:
    """The Queue{Name} of an operation, always the same type; None where it cannot be queued.

    Raises TypeError for a declaration that does not fit its members.
    """
    queued = operation_of(request).queued
    return _made(request) if queued is not None and not queued.only else None


def twins_of(requests: Iterable[Request]) -> list[Request]:
    """The twins of all operations among these that can be queued."""
    return [twin for request in requests if (twin := twin_of(request)) is not None]


def statuses_of(twins: Iterable[Request]) -> dict[str, str]:
    """By the name of an operation, the call that tells of its jobs."""
    originals = [operation_of(twin).queues for twin in twins]
    return {each.name: each.queued.status for each in originals if each and each.queued}


def split(request: msgspec.Struct, members: Members) -> Split:
    """The two halves of what is queued. `members` are as sent, and stay as they are."""
    original = operation_of(type(request)).queues
    if original is None or original.queued is None:
        raise TypeError(f"{type(request).__name__} queues no operation")
    wishes = _wishes(request)
    ours = _of_call(original.queued, members)
    asked = msgspec.to_builtins(wishes)
    known = {field.encode_name for field in msgspec.structs.fields(original.request)}
    return Split({**ours, **{n: asked[n] for n in _SHARED if n in asked and n in known}}, wishes)


def status_url(original: Operation, ref_id: str) -> str:
    """Where the job can be asked after, relative to the server."""
    if original.queued is None:
        raise TypeError(f"{original.name} cannot be queued")
    return f"/api/{original.queued.status}?RefId={quote(ref_id, safe='')}"


def _wishes(request: msgspec.Struct) -> Wishes:
    given = {field.name: getattr(request, field.name) for field in _WISHES}
    return Wishes(**{name: value for name, value in given.items() if value not in (None, "")})


def _of_call(queued: Queued, members: Members) -> Members:
    """The call's own members, under the names that the original has."""
    if queued.nested is not None:
        inner = members.get(_REQUEST)
        held = cast("Members", inner) if isinstance(inner, dict) else {}
        return {name: value for name, value in held.items() if name not in queued.without}
    left_out = {field.encode_name for field in _WISHES} | {*queued.without, *queued.renamed}
    back = {twin: original for original, twin in queued.renamed.items()}
    return {back.get(name, name): value for name, value in members.items() if name not in left_out}


@cache
def _made(request: Request) -> Request:
    """Cached, because every part of the server must mean the same type."""
    original = operation_of(request)
    queued = cast(Queued, original.queued)
    fields = [*_fields_of_call(original, queued), *(_field(each) for each in _WISHES)]
    summary = _SUMMARY.format(name=original.name).strip()
    twin = msgspec.defstruct(
        f"Queue{original.name}",
        fields,
        bases=(Wire,),
        module=request.__module__,
        namespace={"__doc__": summary},
        kw_only=True,
    )
    attach(
        Operation(
            name=twin.__name__,
            request=twin,
            returns=queued.into,
            verbs=POST,
            access=original.access,
            tag=original.tag,
            summary=summary,
            files=original.files,
            keeps_members=True,
            beyond_contract=original.beyond_contract,
            twin_of=original,
        )
    )
    return twin


def _fields_of_call(original: Operation, queued: Queued) -> list[tuple[str, Any, Any]]:
    own = {field.encode_name: field for field in msgspec.structs.fields(original.request)}
    unknown = sorted({*queued.renamed, *queued.without} - own.keys())
    if unknown:
        raise TypeError(f"{original.name} has no member {', '.join(unknown)} to queue otherwise")
    if queued.nested is not None:
        return [(_REQUEST, queued.nested, msgspec.field())]
    wishes = {field.encode_name for field in _WISHES}
    left = [own[name] for name in own if name not in wishes and name not in queued.without]
    names = [queued.renamed.get(field.encode_name, field.encode_name) for field in left]
    taken = {*own} & wishes - {*_SHARED, "replyTo"}
    taken |= {name for name in names if name in wishes or names.count(name) > 1}
    if taken:
        raise TypeError(f"The twin of {original.name} would have {', '.join(sorted(taken))} twice")
    return [_field(field, name) for field, name in zip(left, names, strict=True)]


def _field(field: FieldInfo, wire: str | None = None) -> tuple[str, Any, Any]:
    """As defstruct takes it; one that is renamed is known by its new name alone."""
    name = wire or field.encode_name
    attribute = field.name if name == field.encode_name else name
    if field.required:
        return attribute, field.type, msgspec.field(name=name)
    if field.default_factory is not msgspec.NODEFAULT:
        return (
            attribute,
            field.type,
            msgspec.field(name=name, default_factory=field.default_factory),
        )
    return attribute, field.type, msgspec.field(name=name, default=field.default)
