"""Answers what queues: checks the call as its operation would, and stores it as a job."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.binding import binder_of
from aiserver.contract.errors import ApiError, Forbidden, InvalidRequest
from aiserver.contract.operation import Answer, Call, Handler, Operation, WithHeaders
from aiserver.contract.twins import Members, Wishes, split
from aiserver.jobs.job import NewJob
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.records import BackgroundJobState, acknowledgement
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import Accepted
from aiserver.jobs.store.backlog import Backlog
from aiserver.kit.clock import Clock, SystemClock
from aiserver.work.asked import NOTHING, Asked, planned
from aiserver.work.uploads import JobUploads


class Place(NamedTuple):
    """What a job is claimed by; `provider` is the caller's wish."""

    model: str = ""
    provider: str = ""


_STREAMED = ("stream", "stream_options")
_REPLAYED = (b"Idempotency-Replayed", b"true")

# The model and provider that a bound request asks for. Raises ApiError for what no retry can mend.
Placing = Callable[[Any, Call], tuple[str, str]]


class QueueHandlers:
    """`places` are by the name of the original operation; one without a model needs none."""

    def __init__(
        self,
        queue: Queue,
        addresses: ReplyAddresses,
        backlog: Backlog,
        twins: Iterable[type[msgspec.Struct]],
        places: Mapping[str, Placing],
        clock: Clock | None = None,
        *,
        uploads: JobUploads | None = None,
    ) -> None:
        self._queue = queue
        self._uploads = uploads
        self._clock = clock or SystemClock()
        self._addresses = addresses
        self._backlog = backlog
        self._twins = tuple(twins)
        self._places = places

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return dict.fromkeys(self._twins, self.put)

    async def put(self, request: msgspec.Struct, call: Call) -> Answer:
        return await self._put(request, call, NOTHING)

    def asked(self, asked: Asked) -> Handler:
        """As `put`, for a call whose headers ask for this."""

        async def put(request: Any, call: Call) -> Answer:
            return await self._put(request, call, asked)

        return put

    async def _put(self, request: msgspec.Struct, call: Call, asked: Asked) -> Answer:
        original = call.operation.queues
        if original is None:
            raise ApiError(f"{call.operation.name} queues no operation.")
        members, wishes = split(request, call.members)
        hashed = _hash(original, call.members, asked)
        accepted = await self._accepted(original, members, call, wishes, asked, hashed)
        answer = acknowledgement(
            call.operation,
            job_id=accepted.id,
            ref_id=accepted.ref_id,
            state=BackgroundJobState(accepted.state.shown),
        )
        return WithHeaders(answer, replayed(accepted)) if accepted.replayed else answer

    async def defer(
        self,
        original: Operation,
        members: Members,
        call: Call,
        asked: Asked = NOTHING,
        answer: EarlyAnswer | None = None,
    ) -> Accepted:
        """Stores a call of an operation that was not made through its twin. Raises ApiError."""
        wishes, hashed = _wishes_in(members), _hash(original, members, asked)
        # The answer is stored whole; who wants a stream is told it as one.
        members = {name: value for name, value in members.items() if name not in _STREAMED}
        return await self._accepted(original, members, call, wishes, asked, hashed, answer)

    async def _accepted(
        self,
        original: Operation,
        members: Members,
        call: Call,
        wishes: Wishes,
        asked: Asked,
        body_hash: bytes | None,
        answer: EarlyAnswer | None = None,
    ) -> Accepted:
        call.trace.tag = wishes.tag
        try:
            job = await self._job(original, members, call, wishes, asked, body_hash)
        except Forbidden:
            raise
        except ApiError:
            # What was taken once is answered again, though its model or its time may be over.
            first = await self._first(call, asked, body_hash)
            if first is None:
                raise
            return first
        return await self._stored(job, call, answer)

    async def _first(self, call: Call, asked: Asked, body_hash: bytes | None) -> Accepted | None:
        """The job of a call that is repeated, found without looking at what it asks for."""
        if asked.idempotency_key is None or body_hash is None:
            return None
        if self._uploads is not None:
            body_hash = await self._uploads.body_hash(body_hash, call.files)
        key_id = call.caller.key_id or 0
        first = await self._queue.store.replay(key_id, asked.idempotency_key, body_hash)
        if first is not None:
            call.trace.ref_id = first.ref_id
        return first

    async def _job(
        self,
        original: Operation,
        members: Members,
        call: Call,
        wishes: Wishes,
        asked: Asked,
        body_hash: bytes | None,
    ) -> NewJob:
        if original.queued is None:
            raise ApiError(f"{original.name} cannot be queued.")
        now = int(self._clock.now().timestamp() * 1000)
        plan = planned(asked, wishes, call.caller, now=now)
        place = self._placed(original, members, call)
        call.trace.model = place.model or None
        if wishes.reply_to:
            key_id = call.caller.key_id or 0
            await self._addresses.admit(wishes.reply_to, key_id=key_id)
            await self._backlog.admit(key_id)
        return NewJob(
            operation=original.name,
            kind=original.queued.kind,
            key_id=call.caller.key_id or 0,
            request=msgspec.json.encode(members),
            model=place.model,
            provider=place.provider,
            ref_id=wishes.ref_id,
            priority=plan.priority,
            run_after=plan.run_after,
            deadline=plan.deadline,
            tag=wishes.tag,
            reply_to=wishes.reply_to,
            echo=wishes.state,
            request_id=call.request_id,
            idempotency_key=asked.idempotency_key,
            body_hash=body_hash,
        )

    async def _stored(self, job: NewJob, call: Call, answer: EarlyAnswer | None = None) -> Accepted:
        if self._uploads is not None:
            accepted = await self._uploads.add(job, call.files, answer)
        else:
            accepted = await self._queue.add(job, answer)
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


def replayed(accepted: Accepted) -> tuple[tuple[bytes, bytes], ...]:
    """The header that tells a repeated call so."""
    return (_REPLAYED,) if accepted.replayed else ()


def _hash(original: Operation, members: Members, asked: Asked) -> bytes | None:
    """Of what was asked, however its members were ordered, where it must be told apart."""
    if asked.idempotency_key is None:
        return None
    said = msgspec.json.encode(members, order="sorted")
    return hashlib.sha256(original.name.encode() + b"\n" + said).digest()
