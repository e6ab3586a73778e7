"""Finds the job that a call names: for its owner and for administrators, for nobody else."""

from aiserver.contract.errors import InvalidRequest, NotFound, Unauthenticated
from aiserver.contract.operation import Call
from aiserver.jobs.job import LARGEST_ID, Job
from aiserver.jobs.queue import Queue


def key_of(call: Call) -> int:
    """The caller's key. Raises Unauthenticated for nobody."""
    if call.caller.key_id is None:
        raise Unauthenticated
    return call.caller.key_id


def scope_of(call: Call) -> int | None:
    """The key whose jobs the caller may see; None is all of them."""
    key = key_of(call)
    return None if call.caller.is_admin else key


def not_found() -> NotFound:
    return NotFound("Job not found.")


async def asked_for(queue: Queue, call: Call, *, id: int | None, ref_id: str | None) -> Job:
    """By `id`, or by `ref_id` where that is 0 or None. Raises NotFound."""
    scope = scope_of(call)
    if not id and not ref_id:
        raise InvalidRequest("Name the job: send its jobId or its refId.")
    job = await _by_id(queue, id, scope) if id else await _by_ref(queue, call, ref_id or "", scope)
    if job is None:
        raise not_found()
    return job


async def _by_id(queue: Queue, id: int, scope: int | None) -> Job | None:
    return None if id > LARGEST_ID else await queue.store.find(id=id, key_id=scope)


async def _by_ref(queue: Queue, call: Call, ref_id: str, scope: int | None) -> Job | None:
    # An administrator's own job first: another key may have taken the same refId since.
    own = await queue.store.find(ref_id=ref_id, key_id=key_of(call))
    if own is not None or scope is not None:
        return own
    return await queue.store.find(ref_id=ref_id)
