"""Answers the operations about callbacks."""

import msgspec

from aiserver.contract.errors import NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.jobs.operations import DummyReplyTo, DummyReplyToResponse, HasDummyReplyTo

# Anyone may call the sink, so it remembers no more than the newest of these.
MOST_REMEMBERED = 100


class CallbackSink:
    """Remembers the refIds of callbacks in memory."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {DummyReplyTo: self.take, HasDummyReplyTo: self.has}

    async def take(self, request: DummyReplyTo, call: Call) -> DummyReplyToResponse:
        if request.ref_id:
            self._seen.pop(request.ref_id, None)
            self._seen[request.ref_id] = None
            if len(self._seen) > MOST_REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return DummyReplyToResponse(ref_id=request.ref_id)

    async def has(self, request: HasDummyReplyTo, call: Call) -> None:
        if (request.ref_id or "") not in self._seen:
            raise NotFound("RefId not found.")
        del self._seen[request.ref_id or ""]
