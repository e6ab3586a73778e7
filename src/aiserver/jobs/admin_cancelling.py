"""Cancels and requeues many jobs at once."""

from collections.abc import Collection, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from aiserver.contract.errors import InvalidRequest
from aiserver.jobs.admin_queries import states_of
from aiserver.jobs.job import LARGEST_ID, WAITING, State
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import BackgroundJobState
from aiserver.jobs.store import MOST_ROWS, CancelOutcome, CancelResult, Filter, Order

LIVE = WAITING | {State.STARTED}
# With MOST_ROWS in each round, more than a full queue holds by default.
MOST_ROUNDS = 200
_UNKNOWN = "Job not found."


class Done(msgspec.Struct):
    """`errors` say why, by id as text."""

    ids: list[int]
    errors: dict[str, str]

    def add(self, other: "Done") -> None:
        self.ids = list(dict.fromkeys([*self.ids, *other.ids]))
        self.errors.update(other.errors)


async def cancel_ids(queue: Queue, ids: Iterable[int]) -> Done:
    """Those that wait are cancelled, those that run are told to stop."""
    possible, done = _possible(ids)
    if not possible:
        return done
    result = await queue.cancel(possible)
    for id in possible:
        match result.outcomes.get(id):
            case None:
                done.errors[str(id)] = _UNKNOWN
            case CancelOutcome.ENDED:
                done.errors[str(id)] = "The job has ended and stays as it is."
            case _:
                done.ids.append(id)
    return done


async def cancel_all(
    queue: Queue,
    *,
    worker: str | None = None,
    shown: BackgroundJobState | None = None,
    here: Iterable[int] = (),
) -> Done:
    """All jobs of a provider, in a state, or both, as they are found now.

    A provider's are those that run or ran last there, and those that wait for it alone. `here` are
    the ids of those that run there in this process. Another process writes down which provider a
    job runs at four times a second: one that began in its last 250 ms may be missed.
    """
    states: Collection[State] = LIVE if shown is None else states_of(shown)
    if not LIVE.issuperset(states):
        raise InvalidRequest("Only jobs that are Queued or Started can be cancelled.")
    newest, done = await _newest(queue), Done([], {})
    if State.STARTED in states:
        done.add(Done(await _cancel_here(queue, list(here)), {}))
    wanted = [Filter(states=states, worker=worker)]
    if worker is not None:
        # Those that wait for this provider alone would run nowhere else.
        wanted.append(Filter(states=WAITING.intersection(states), provider=worker))
    for filter in wanted:
        done.add(Done(await _cancel_found(queue, filter, newest), {}))
    return done


async def _cancel_here(queue: Queue, running: Sequence[int]) -> list[int]:
    """The ids of those that are told to stop."""
    stopping: list[int] = []
    for start in range(0, len(running), MOST_ROWS):
        ids = running[start : start + MOST_ROWS]
        result = await queue.cancel(ids)
        stopping += [id for id in ids if _stopping(result, id)]
    return stopping


async def _cancel_found(queue: Queue, filter: Filter, newest: int) -> list[int]:
    """The ids of those that are cancelled or told to stop."""
    stopping: list[int] = []
    seen: set[int] = set()
    skip = 0
    for _ in range(MOST_ROUNDS):
        page = replace(filter, order=Order.ID, descending=False, skip=skip, take=MOST_ROWS)
        found, _ = await queue.store.jobs(page)
        ids = [job.id for job in found if job.id <= newest and job.id not in seen]
        if ids:
            result = await queue.cancel(ids)
            stopping += [id for id in ids if _stopping(result, id)]
            # Those that were only told to stop are found again; the others made room.
            seen.update(ids)
            skip = 0
        elif len(found) < MOST_ROWS:
            break
        else:
            skip += MOST_ROWS
    return stopping


async def requeue_ids(queue: Queue, ids: Iterable[int]) -> Done:
    """Failed and cancelled jobs wait again."""
    possible, done = _possible(ids)
    if not possible:
        return done
    result = await queue.store.requeue(possible)
    if result.ids:
        queue.bell.ready()
    done.ids = result.ids
    done.errors.update({str(id): error for id, error in result.errors.items()})
    for id in {*possible} - {*result.ids} - result.errors.keys():
        done.errors[str(id)] = _UNKNOWN
    return done


async def _newest(queue: Queue) -> int:
    """Jobs that come while others are cancelled are left alone."""
    found, _ = await queue.store.jobs(Filter(take=1))
    return found[0].id if found else 0


def _possible(ids: Iterable[int]) -> tuple[Sequence[int], Done]:
    """The ids that a job can have, each once; the others as not found."""
    given = list(dict.fromkeys(ids))
    possible = [id for id in given if 0 < id <= LARGEST_ID]
    rest = {str(id): _UNKNOWN for id in given if id not in possible}
    return possible, Done([], rest)


def _stopping(result: CancelResult, id: int) -> bool:
    return result.outcomes.get(id, CancelOutcome.ENDED) is not CancelOutcome.ENDED
