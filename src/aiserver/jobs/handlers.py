"""Answers the operations about callbacks."""

from collections.abc import Mapping

import msgspec

from aiserver.contract.errors import NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.jobs.operations import DummyReplyTo, DummyReplyToResponse, HasDummyReplyTo

# Anyone may call the sink, so it remembers no more than the newest of these.
MOST_REMEMBERED = 100


class _Callback(msgspec.Struct, rename="camel"):
    ref_id: str | None = None


class CallbackSink:
    """Remembers the refIds of callbacks in memory."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {DummyReplyTo: self.take, HasDummyReplyTo: self.has}

    async def take(self, request: DummyReplyTo, call: Call) -> DummyReplyToResponse:
        self._remember(request.ref_id)
        return DummyReplyToResponse(ref_id=request.ref_id)

    async def deliver(self, headers: Mapping[str, str], body: bytes) -> int:
        """A callback to this server's own address, without a way through its own door."""
        try:
            self._remember(msgspec.json.decode(body, type=_Callback).ref_id)
        except msgspec.MsgspecError:
            return 400
        return 200

    async def has(self, request: HasDummyReplyTo, call: Call) -> None:
        if (request.ref_id or "") not in self._seen:
            raise NotFound("RefId not found.")
        del self._seen[request.ref_id or ""]

    def _remember(self, ref_id: str | None) -> None:
        if ref_id:
            self._seen.pop(ref_id, None)
            self._seen[ref_id] = None
            if len(self._seen) > MOST_REMEMBERED:
                del self._seen[next(iter(self._seen))]
