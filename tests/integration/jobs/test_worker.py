"""The loop that claims and runs jobs: whoever interrupts it and when, slots and outcomes stay."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count

import pytest

from aiserver.contract.trace import Trace
from aiserver.jobs import worker as worker_module
from aiserver.jobs.admin_cancelling import cancel_all, cancel_ids
from aiserver.jobs.attempt import Attempt
from aiserver.jobs.event_stream import Teller
from aiserver.jobs.job import Completed, Fence, Outcome, State
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.worker import Worker
from aiserver.kit.db import StorageError
from aiserver.kit.ledger import LedgerRow
from job_stores import OWNER, Stores, new_job


class Slot:
    """One of a room's slots."""

    worker = "fake"

    def __init__(self, room: "Room") -> None:
        self._room: Room | None = room

    def give(self, trace: Trace) -> None: ...

    def release(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.taken -= 1
            freed, room.freed = room.freed, []
            for tell in freed:
                tell()


class Room:
    def __init__(self, slots: int = 4) -> None:
        self.slots, self.taken = slots, 0
        self.freed: list[Callable[[], None]] = []

    def reserve(self, kind: str, model: str, provider: str) -> Slot | None:
        if self.taken >= self.slots:
            return None
        self.taken += 1
        return Slot(self)

    def watch(self, names: Sequence[tuple[str, ...]], freed: Callable[[], None]) -> None:
        if names:
            self.freed.append(freed)


class Bell:
    """What the server joins: a worker hears of its queue."""

    def __init__(self, worker: Worker) -> None:
        self.ready, self.stop = worker.ready, worker.stop
        self.called_back: Callable[[], None] = lambda: None
        self.planned: Callable[[], None] = lambda: None


class Work:
    """One process over a store; `do` is the work of an attempt."""

    def __init__(self, stores: Stores, *, slots: int = 4) -> None:
        self.stores, self.room = stores, Room(slots)
        self.queue = Queue(stores.jobs)
        self.ran: list[int] = []
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.do: Callable[[Attempt], Awaitable[Outcome]] = self.wait
        self.worker = Worker(self.queue, self.room, self._run, stores.clock, owner=OWNER)
        self.queue.bell, self.queue.starter = Bell(self.worker), self.worker

    async def wait(self, attempt: Attempt) -> Outcome:
        await self.go.wait()
        return Completed(result=b"1", ledger=_row(attempt))

    async def states(self, ids: Sequence[int]) -> list[State]:
        return [(await self.stores.job(id)).state for id in ids]

    async def idle(self) -> None:
        """Once nothing runs here any more."""
        async with asyncio.timeout(10):
            while self.worker.running:
                await asyncio.sleep(0)

    async def _run(self, attempt: Attempt) -> Outcome:
        self.ran.append(attempt.job.id)
        self.began.set()
        return await self.do(attempt)


def _row(attempt: Attempt) -> LedgerRow:
    return LedgerRow(attempt.job.id, 1, 1, "fake", "model-a", 1, 1, 1, 0)


@pytest.fixture
async def work(store: Stores) -> AsyncGenerator[Work]:
    made = Work(store)
    yield made
    made.go.set()
    await made.worker.shut(grace=10)


async def test_job_cancelled_before_its_first_step_frees_its_slot(work: Work) -> None:
    accepted = await work.stores.put()
    assert await work.worker.claim() == 1
    # The attempt's task has not run yet.
    work.worker.stop([accepted.id])
    await work.idle()
    assert (work.ran, work.room.taken) == ([], 0)
    assert await work.states([accepted.id]) == [State.CANCELLED]


async def test_running_job_that_is_cancelled_stops(work: Work) -> None:
    accepted = await work.stores.put()
    await work.worker.claim()
    await work.began.wait()
    await work.queue.cancel([accepted.id])
    await work.idle()
    assert work.room.taken == 0
    assert await work.states([accepted.id]) == [State.CANCELLED]


async def test_outcome_that_is_being_recorded_is_not_interrupted(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, go_on = asyncio.Event(), asyncio.Event()
    finish = work.queue.finish

    async def slow(*given: object) -> object:
        recording.set()
        await go_on.wait()
        return await finish(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(work.queue, "finish", slow)
    accepted = await work.stores.put()
    await work.worker.claim()
    work.go.set()
    await recording.wait()
    work.worker.stop([accepted.id])
    go_on.set()
    await work.idle()
    assert await work.states([accepted.id]) == [State.COMPLETED]


async def refuse(*_: object, **__: object) -> object:
    raise StorageError("away")


async def test_result_is_recorded_however_long_the_store_was_away(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_RECORD_PAUSES", ())
    monkeypatch.setattr(worker_module, "_LONGEST_RECORD_PAUSE", 0.001)
    finish, tries, back = work.queue.finish, count(), asyncio.Event()

    async def away(fence: Fence, outcome: Outcome) -> object:
        if next(tries) < 50:
            raise StorageError("away")
        back.set()
        return await finish(fence, outcome)

    monkeypatch.setattr(work.queue, "finish", away)
    accepted = await work.stores.put()
    await work.worker.claim()
    work.go.set()
    await asyncio.wait_for(back.wait(), 10)
    assert [attempt.job.id for attempt in work.worker.running] == [accepted.id]
    await work.idle()
    assert await work.states([accepted.id]) == [State.COMPLETED]
    assert work.ran == [accepted.id]


async def test_stop_does_not_wait_for_a_store_that_is_away(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.queue, "finish", refuse)
    await work.stores.put()
    await work.worker.claim()
    work.go.set()
    await work.began.wait()
    await asyncio.wait_for(work.worker.shut(grace=0), 10)
    assert work.worker.running == []


async def test_nothing_begins_once_the_worker_drains(work: Work) -> None:
    running = await work.stores.put()
    await work.worker.claim()
    work.worker.drain()
    later = await work.queue.add(new_job())
    work.go.set()
    await work.idle()
    assert await work.states([running.id, later.id]) == [State.COMPLETED, State.QUEUED]


async def test_job_past_its_deadline_is_stopped_at_once(work: Work) -> None:
    accepted = await work.stores.put(deadline=work.stores.now + 1_000)
    await work.worker.claim()
    await work.began.wait()
    work.stores.tick(1_000)
    await work.queue.sweep()
    await work.idle()
    assert work.room.taken == 0
    job = await work.stores.job(accepted.id)
    assert (job.state, job.error_code) == (State.FAILED, "DeadlineExceeded")


async def test_job_that_comes_back_after_its_lease_is_not_run_twice_at_once(work: Work) -> None:
    accepted = await work.stores.put()
    await work.worker.claim()
    await work.began.wait()
    [first] = work.worker.running
    work.stores.tick(60_000)
    await work.queue.sweep()
    assert await work.worker.claim() == 1
    assert first.task is not None
    await asyncio.wait_for(first.task, 10)
    work.go.set()
    await work.idle()
    assert work.room.taken == 0
    job = await work.stores.job(accepted.id)
    assert (job.state, job.attempt) == (State.COMPLETED, 2)


async def test_claim_that_fails_frees_the_slots_it_had_reserved(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> object:
        raise StorageError("away")

    await work.stores.put()
    with monkeypatch.context() as broken:
        broken.setattr(work.stores.jobs, "claim", away)
        with pytest.raises(StorageError):
            await work.worker.claim()
    assert work.room.taken == 0
    assert await work.worker.claim() == 1


async def test_what_a_claim_brings_while_stopping_goes_back(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming, go_on = asyncio.Event(), asyncio.Event()
    claim = work.stores.jobs.claim

    async def slow(*given: object, **named: object) -> object:
        claiming.set()
        await go_on.wait()
        return await claim(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(work.stores.jobs, "claim", slow)
    accepted = await work.stores.put()
    running = asyncio.create_task(work.worker.claim())
    await claiming.wait()
    stopping = asyncio.create_task(work.worker.shut(grace=0))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(running, stopping)
    assert (work.ran, work.room.taken) == ([], 0)
    job = await work.stores.job(accepted.id)
    assert (job.state, job.max_attempts - job.attempt) == (State.QUEUED, 3)


async def test_models_of_one_provider_take_turns(store: Stores) -> None:
    work = Work(store, slots=1)
    first = [await store.put(model="model-a") for _ in range(4)]
    then = [await store.put(model=model) for model in ("model-b", "model-c", "model-b")]
    work.go.set()
    while await work.worker.claim():
        await work.idle()
    a, (b1, c, b2) = [accepted.id for accepted in first], [accepted.id for accepted in then]
    assert work.ran == [a[0], b1, c, a[1], b2, a[2], a[3]]


async def test_higher_priority_goes_first_among_models_too(store: Stores) -> None:
    work = Work(store, slots=1)
    usual = [await store.put(model="model-a") for _ in range(2)]
    urgent = await store.put(model="model-b", priority=5)
    last = await store.put(model="model-b", priority=-5)
    work.go.set()
    while await work.worker.claim():
        await work.idle()
    assert work.ran == [urgent.id, *(accepted.id for accepted in usual), last.id]


async def test_claims_reserve_no_more_than_may_run(store: Stores) -> None:
    work = Work(store, slots=100)
    work.worker = Worker(work.queue, work.room, work._run, store.clock, owner=OWNER, most=3)
    for model in ("model-a", "model-b"):
        for _ in range(4):
            await store.put(model=model)
    await work.worker.claim()
    assert (len(work.worker.running), work.room.taken) == (3, 3)
    work.go.set()
    await work.idle()


async def test_all_are_cancelled_in_the_middle_of_everything(store: Stores) -> None:
    work = Work(store, slots=8)
    turn = iter(range(10_000))

    async def brief(attempt: Attempt) -> Outcome:
        # Some end before they are cancelled, some while, some are still at it.
        for _ in range(next(turn) % 7):
            await asyncio.sleep(0)
        if attempt.job.id % 5 == 0:
            await work.go.wait()
        return Completed(result=b"1", ledger=_row(attempt))

    work.do = brief
    running = asyncio.create_task(work.worker.run())
    enqueued = asyncio.gather(*(store.put(reply_to="https://receiver.example") for _ in range(120)))
    try:
        cancelled: set[int] = set()
        async with asyncio.timeout(30):
            while len(ids := [a.id for a in await enqueued]) != 120 or not work.ran:
                await asyncio.sleep(0)
            while True:
                done = await cancel_all(work.queue)
                cancelled.update(done.ids)
                await work.worker.beat()
                work.worker.ready()
                if all(state.ended for state in await work.states(ids)):
                    break
            again = await cancel_ids(work.queue, ids)
        await work.idle()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    assert again.ids == []
    states = dict(zip(ids, await work.states(ids), strict=True))
    assert {State.CANCELLED} <= {*states.values()} <= {State.COMPLETED, State.CANCELLED}
    assert {id for id, state in states.items() if state is State.CANCELLED} <= cancelled
    # Each ended once: a ledger row for each that completed, a callback for each at all.
    completed = [id for id, state in states.items() if state is State.COMPLETED]
    assert await store.ledger() == sorted(completed)
    told = await store.rows("SELECT job_id, body FROM outbox ORDER BY job_id")
    assert [(id, bytes(body).decode()) for id, body in told] == sorted(
        (id, state.value) for id, state in states.items()
    )
    assert len(work.ran) == len({*work.ran})
    assert work.room.taken == 0


async def test_job_that_somebody_waits_for_begins_as_it_is_stored(work: Work) -> None:
    await work.worker.claim()
    answer = EarlyAnswer()
    accepted = await work.queue.add(new_job(), answer)
    assert (accepted.state, answer.expected) == (State.STARTED, True)
    await work.began.wait()
    work.go.set()
    job = await work.queue.ended(accepted.id, seconds=10, answer=answer)
    assert job is not None
    assert (job.state, job.result) == (State.COMPLETED, b"1")
    await work.idle()
    stored = await work.stores.job(accepted.id)
    assert (stored.state, stored.attempt) == (State.COMPLETED, 1)
    assert await work.stores.ledger() == [accepted.id]
    assert (work.ran, work.room.taken) == ([accepted.id], 0)


async def test_job_that_nobody_waits_for_begins_as_it_is_stored_too(work: Work) -> None:
    await work.worker.claim()
    accepted = await work.queue.add(new_job())
    assert accepted.state is State.STARTED
    work.go.set()
    job = await work.queue.ended(accepted.id, seconds=10)
    assert job is not None
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, b"1", 1)
    await work.idle()
    assert await work.stores.ledger() == [accepted.id]
    planned = await work.queue.add(new_job(run_after=work.stores.now + 60_000))
    assert planned.state is State.SCHEDULED


async def test_job_that_cannot_be_stored_leaves_its_slot(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("odd")

    await work.worker.claim()
    monkeypatch.setattr(work.queue.store, "start", fails)
    with pytest.raises(ValueError, match="odd"):
        await work.queue.add(new_job())
    assert work.room.taken == 0


async def test_job_does_not_begin_before_those_that_wait(work: Work) -> None:
    work.room.slots = 1
    first = await work.stores.put()
    answer = EarlyAnswer()
    second = await work.queue.add(new_job(), answer)
    assert (second.state, answer.expected) == (State.QUEUED, False)
    work.go.set()
    while await work.worker.claim() or work.worker.running:
        await asyncio.sleep(0)
    assert work.ran == [first.id, second.id]


async def test_job_without_a_free_slot_is_queued(work: Work) -> None:
    await work.worker.claim()
    work.room.slots = 0
    answer = EarlyAnswer()
    accepted = await work.queue.add(new_job(), answer)
    assert (accepted.state, answer.expected) == (State.QUEUED, False)
    assert await work.queue.ended(accepted.id, seconds=0, answer=answer) is None


async def test_repeated_call_begins_nothing_at_once(work: Work) -> None:
    await work.worker.claim()
    keyed = new_job(idempotency_key="k", body_hash=b"h")
    first = await work.queue.add(keyed, EarlyAnswer())
    again = await work.queue.add(keyed, EarlyAnswer())
    assert (again.id, again.replayed) == (first.id, True)
    work.go.set()
    await work.idle()
    assert (work.ran, work.room.taken) == ([first.id], 0)


async def test_caller_that_leaves_while_its_job_is_stored_leaves_it_running(work: Work) -> None:
    await work.worker.claim()
    calling = asyncio.create_task(work.queue.add(new_job(), EarlyAnswer()))
    await asyncio.sleep(0)
    calling.cancel()
    await work.began.wait()
    work.go.set()
    await work.idle()
    assert await work.states(work.ran) == [State.COMPLETED]
    assert work.room.taken == 0


async def test_cancelled_job_leaves_its_answer_to_the_store(work: Work) -> None:
    await work.worker.claim()
    answer = EarlyAnswer()
    accepted = await work.queue.add(new_job(), answer)
    await work.began.wait()
    await work.queue.cancel([accepted.id])
    job = await work.queue.ended(accepted.id, seconds=10, answer=answer)
    assert job is not None
    assert job.state is State.CANCELLED


async def test_what_a_job_says_just_before_its_end_is_kept(work: Work) -> None:
    async def last_words(attempt: Attempt) -> Outcome:
        attempt.report(progress=0.5, status="Working", log="first\n")
        attempt.report(progress=1.0, status="Storing", log="last\n")
        return Completed(result=b"1")

    work.do = last_words
    accepted = await work.stores.put()
    await work.worker.claim()
    teller, events = Teller(), b""
    async for job in work.queue.follow(accepted.id, seconds=10):
        events += b"".join(teller.tell(job, None))
    job = await work.stores.job(accepted.id)
    assert (job.state, job.progress, job.status) == (State.COMPLETED, 1.0, "Storing")
    assert job.logs == "first\nlast\n"
    assert events.count(b"first\\nlast\\n") == 1
    assert events.rpartition(b"event: ")[2].startswith(b"finished")
