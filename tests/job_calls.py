"""Calls to the handlers of the jobs room, as a door would make them."""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from aiserver.contract.caller import ADMINISTRATOR, Caller
from aiserver.contract.operation import Call, EventStream, Handler, JsonBytes, operation_of
from fakes.calls import ended_call

Pairs = Iterable[tuple[str, str]]
OWNER = Caller(key_id=1)
STRANGER = Caller(key_id=2)


class Room(Protocol):
    def handlers(self) -> dict[type[msgspec.Struct], Handler]: ...


async def answer_to(
    room: Room, request: msgspec.Struct, pairs: Pairs = (), *, caller: Caller = ADMINISTRATOR
) -> Any:
    """What the handler answers; `pairs` are what a query string holds."""
    call = Call(
        operation=operation_of(type(request)),
        caller=caller,
        request_id="r",
        trace=ended_call(),
        pairs=tuple(pairs),
    )
    return await room.handlers()[type(request)](request, call)


async def ask(
    room: Room, request: msgspec.Struct, pairs: Pairs = (), *, caller: Caller = ADMINISTRATOR
) -> Any:
    """The answer as it is on the wire."""
    answer = await answer_to(room, request, pairs, caller=caller)
    body = answer.body if isinstance(answer, JsonBytes) else msgspec.json.encode(answer)
    return msgspec.json.decode(body)


async def events(room: Room, request: msgspec.Struct, /, *, caller: Caller) -> EventStream:
    answer = await answer_to(room, request, caller=caller)
    assert isinstance(answer, EventStream)
    return answer
