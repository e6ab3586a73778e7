"""Answers every Queue{Name}: checks the call as its operation would, and stores it as a job."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.binding import binder_of
from aiserver.contract.errors import ApiError, InvalidRequest
from aiserver.contract.operation import Call, Handler, Operation, Queued
from aiserver.contract.twins import Members, Wishes, split
from aiserver.jobs.job import NewJob
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import BackgroundJobState, acknowledgement
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import Accepted


class Place(NamedTuple):
    """What a job is claimed by; `provider` is the caller's wish."""

    model: str = ""
    provider: str = ""


# The model and provider that a bound request asks for. Raises ApiError for what no retry can mend.
Placing = Callable[[Any, Call], tuple[str, str]]


class QueueHandlers:
    """`places` are by the name of the original operation; one without a model needs none."""

    def __init__(
        self,
        queue: Queue,
        addresses: ReplyAddresses,
        twins: Iterable[type[msgspec.Struct]],
        places: Mapping[str, Placing],
    ) -> None:
        self._queue = queue
        self._addresses = addresses
        self._twins = tuple(twins)
        self._places = places

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return dict.fromkeys(self._twins, self.put)

    async def put(self, request: msgspec.Struct, call: Call) -> msgspec.Struct:
        original = call.operation.twin_of
        if original is None or original.queued is None:
            raise ApiError(f"{call.operation.name} queues no operation.")
        members, wishes = split(request, call.members)
        job = await self._job(original, original.queued, members, call, wishes)
        accepted = await self._stored(job, call)
        return acknowledgement(
            call.operation,
            job_id=accepted.id,
            ref_id=accepted.ref_id,
            state=BackgroundJobState(accepted.state.shown),
        )

    async def defer(
        self,
        original: Operation,
        members: Members,
        call: Call,
        *,
        idempotency_key: str | None = None,
        body_hash: bytes | None = None,
    ) -> Accepted:
        """Stores a call of an operation that was not made through its twin. Raises ApiError."""
        if original.queued is None:
            raise ApiError(f"{original.name} cannot be queued.")
        job = await self._job(original, original.queued, members, call, _wishes_in(members))
        job = msgspec.structs.replace(job, idempotency_key=idempotency_key, body_hash=body_hash)
        return await self._stored(job, call)

    async def _job(
        self, original: Operation, queued: Queued, members: Members, call: Call, wishes: Wishes
    ) -> NewJob:
        place = self._placed(original, members, call)
        call.trace.model, call.trace.tag = place.model or None, wishes.tag
        if wishes.reply_to:
            await self._addresses.admit(wishes.reply_to)
        return NewJob(
            operation=original.name,
            kind=queued.kind,
            key_id=call.caller.key_id or 0,
            request=msgspec.json.encode(members),
            model=place.model,
            provider=place.provider,
            ref_id=wishes.ref_id,
            priority=_priority(wishes, call),
            run_after=_moment(wishes.run_after),
            tag=wishes.tag,
            reply_to=wishes.reply_to,
            echo=wishes.state,
            request_id=call.request_id,
        )

    async def _stored(self, job: NewJob, call: Call) -> Accepted:
        accepted = await self._queue.add(job)
        call.trace.ref_id = accepted.ref_id
        return accepted

    def _placed(self, original: Operation, members: Members, call: Call) -> Place:
        # Respells them in place, so that the job is stored as its operation will read it.
        bound = binder_of(original.request).bind(members)
        placing = self._places.get(original.name)
        return Place(*placing(bound, call)) if placing is not None else Place()


def _wishes_in(members: Members) -> Wishes:
    """What a call that is no twin's says to the queue; its binder checks the rest of it."""
    said = {name: members.get(name) for name in ("refId", "tag", "replyTo")}
    try:
        return msgspec.convert({name: text for name, text in said.items() if text}, Wishes)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The call cannot be queued: {error}") from None


def _priority(wishes: Wishes, call: Call) -> int:
    """Only an administrator's jobs go ahead of other keys'; anybody's may stand back."""
    return wishes.priority if call.caller.is_admin else min(wishes.priority, 0)


def _moment(at: datetime | None) -> int | None:
    if at is None:
        return None
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)
