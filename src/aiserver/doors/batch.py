"""Many calls in one request: made in turn, answered as one list, ended by their first error."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from aiserver.contract.errors import ApiError, InvalidRequest, MalformedBody
from aiserver.contract.operation import (
    Answer,
    Content,
    EventStream,
    JsonBytes,
    Operation,
    WithCookies,
    WithHeaders,
)
from aiserver.doors.cookies import set_cookie
from aiserver.doors.replies import Pairs, Reply
from aiserver.files.download import Download
from aiserver.work.deferred import Manner

_MOST = 1000
# No header can bring a line break, so that no caller's own key is that of an item.
_BEFORE_INDEX = "\n"
_COMPLETED = b"X-AutoBatch-Completed"

Run = Callable[[dict[str, Any], Manner | None], Awaitable[Answer]]


async def answer_batch(
    operation: Operation,
    items: list[dict[str, Any]] | None,
    manner: Manner | None,
    run: Run,
    reply: Reply,
) -> None:
    """`run` makes one call of it, by its members. Raises ApiError, with the item's index."""
    if items is None:
        raise MalformedBody("The body of a batch must be a JSON array of objects.")
    if len(items) > _MOST:
        raise InvalidRequest(f"A batch has at most {_MOST} requests.")
    prefers = manner is not None and (manner.respond_async or manner.wait is not None)
    if prefers and operation.queues is None:
        raise InvalidRequest(
            "A batch has one answer and knows no Prefer: leave it out, or make each call alone.",
            param="Prefer",
        )
    answers: list[Any] = []
    shared = _Shared()
    for index, members in enumerate(items):
        try:
            answers.append(_value(await run(members, _own(manner, index)), reply.headers, shared))
        except ApiError as error:
            error.meta["AutoBatchIndex"] = str(index)
            shared.bear(error.headers)
            error.headers = tuple(shared.headers)
            reply.headers.append((_COMPLETED, str(index).encode()))
            raise
    reply.headers += [*shared.headers, (_COMPLETED, str(len(items)).encode())]
    await reply.values(answers)


class _Shared:
    """The headers that every answer so far has: they are true of the batch."""

    def __init__(self) -> None:
        self.headers: Pairs = []
        self._first = True

    def bear(self, own: tuple[tuple[bytes, bytes], ...]) -> None:
        self.headers = [pair for pair in own if self._first or pair in self.headers]
        self._first = False


def _own(manner: Manner | None, index: int) -> Manner | None:
    """Each item is a request of its own, and the same one when the batch is sent again."""
    if manner is None or manner.job.idempotency_key is None:
        return manner
    key = f"{manner.job.idempotency_key}{_BEFORE_INDEX}{index}"
    return manner._replace(job=manner.job._replace(idempotency_key=key))


def _value(answer: Answer, cookies: Pairs, shared: _Shared) -> Any:
    """What stands in the list; what else an answer bears goes to the batch's headers."""
    own: tuple[tuple[bytes, bytes], ...] = ()
    match answer:
        case EventStream():
            answer.close()
            raise InvalidRequest("A request of a batch cannot be streamed.")
        case Download() | Content():
            raise InvalidRequest("A file cannot be asked for in a batch.")
        case WithCookies(answer=value, cookies=set_now):
            cookies.extend((b"Set-Cookie", set_cookie(cookie)) for cookie in set_now)
        case WithHeaders(answer=value, headers=own):
            pass
        case _:
            value = answer
    shared.bear(own)
    return msgspec.Raw(value.body) if isinstance(value, JsonBytes) else value
