"""Makes the callback of a job that ended: its answer, and beside it which job this was."""

from typing import Any

import msgspec

from aiserver.contract.errors import InvalidRequest
from aiserver.contract.responses import ResponseStatus
from aiserver.jobs.callback_outputs import outputs_of
from aiserver.jobs.job import Job, State
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import NewDelivery
from aiserver.kit import log
from aiserver.kit.ids import random_hex

_log = log.get("callbacks")
# Text that is no UTF-8 and JSON that is nested too deep are errors of their own.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def new_message_id() -> str:
    """The webhook-id of a callback."""
    return f"msg_{random_hex(16)}"


class Callbacks:
    """`of` is the store's Announce; `base` is the address that others reach this server by."""

    def __init__(self, addresses: ReplyAddresses, *, base: str = "") -> None:
        self._addresses = addresses
        self._base = base

    def of(self, job: Job) -> NewDelivery | None:
        """The callback of a job as it ended; None when nobody asked for one."""
        if job.reply_to is None:
            return None
        try:
            reply_to = self._addresses.read(job.reply_to)
        except InvalidRequest as error:
            # Admitted under other settings; a job must end whatever became of its address.
            _log.warning("callback_impossible", job=job.id, reason=error.message)
            return None
        return NewDelivery(
            id=new_message_id(),
            job_id=job.id,
            key_id=job.key_id,
            url=reply_to.url,
            receiver=reply_to.receiver,
            verb=reply_to.verb,
            body=body_of(job, base=self._base),
            due=job.ended or job.created,
        )


def body_of(job: Job, *, base: str = "") -> bytes:
    """The answer's own members, and `refId`, `jobId`, `jobState`, `state`, `responseStatus`.

    These win over members of the answer with the same name in any case, since typed receivers do
    not tell them apart. Files and texts that were made are in `outputs` and `textOutputs`.
    """
    ours: dict[str, Any] = {
        "refId": job.ref_id,
        "jobId": job.id,
        "jobState": job.state.shown,
    }
    if job.echo is not None:
        ours["state"] = job.echo
    failure = _failure(job)
    if failure is not None:
        ours["responseStatus"] = failure
    taken = {name.lower() for name in ours}
    answer = _members(job.result)
    if isinstance(results := answer.get("results"), msgspec.Raw):
        made = outputs_of(results, base=base)
        if made is not None:
            answer = {**{n: value for n, value in answer.items() if n != "results"}, **made}
    kept = {name: value for name, value in answer.items() if name.lower() not in taken}
    return msgspec.json.encode({**kept, **ours})


def example_body(message_id: str) -> bytes:
    """What a test of an address sends: a finished job that never was."""
    return msgspec.json.encode(
        {"refId": message_id, "jobId": 0, "jobState": State.COMPLETED, "test": True}
    )


def _members(result: bytes | None) -> dict[str, Any]:
    if not result:
        return {}
    try:
        return dict(msgspec.json.decode(result, type=dict[str, msgspec.Raw]))
    except _UNREADABLE:
        pass
    try:
        return {"result": msgspec.json.decode(result)}
    except _UNREADABLE:
        return {"result": result.decode(errors="replace")}


def _failure(job: Job) -> ResponseStatus | None:
    if job.state is State.COMPLETED:
        return None
    cancelled = job.state is State.CANCELLED
    return ResponseStatus(
        error_code=job.error_code or ("Cancelled" if cancelled else "InternalServerError"),
        message=job.error_message or ("The job was cancelled." if cancelled else "The job failed."),
    )
