"""Whatever happens in whatever order, a job does what a few lines of rules say, and ends once."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiserver.jobs.admin_handlers import AdminHandlers
from aiserver.jobs.admin_operations import AdminCancelJobs
from aiserver.jobs.job import (
    Cancelled,
    Completed,
    Failed,
    Fence,
    Job,
    Outcome,
    Released,
    Retry,
    State,
)
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import BackgroundJobState
from aiserver.jobs.schedule import Schedule
from aiserver.jobs.store import CancelOutcome, Progress, Want
from aiserver.kit.background import Background
from job_calls import ask
from job_stores import BROKEN, LEASE, Stores, new_job, opener, settled

OWNERS = ("host:1:100:aa", "host:2:200:bb")
TABLES = "jobs, job_summary, outbox, outbox_attempts, fair, job_waiting, ledger"
PROVIDERS = ("here", "there")
KINDS = ("completed", "failed", "retry now", "retry later", "cancelled", "released")
WAITING = (State.QUEUED, State.SCHEDULED)


@dataclass
class Known:
    """What the rules say of a job."""

    max_attempts: int
    deadline: int | None
    due: int
    state: State
    called_back: bool
    provider: str = ""
    worker: str | None = None
    attempt: int = 0
    owner: str | None = None
    lease: int = 0
    asked: bool = False
    ends: list[State] = field(default_factory=list[State])

    def holds(self, fence: Fence) -> bool:
        held = (self.state, self.owner, self.attempt)
        return held == (State.STARTED, fence.owner, fence.attempt)

    def wait(self, due: int, now: int) -> None:
        self.state = State.SCHEDULED if due > now else State.QUEUED
        self.due = due
        self.owner = None

    def cancel(self) -> None:
        if self.state is State.STARTED:
            self.asked = True
        else:
            self.end(State.CANCELLED)

    def end(self, state: State) -> None:
        self.state = state
        self.owner = None
        self.ends.append(state)

    def retry(self, at: int, now: int) -> None:
        if self.asked:
            self.end(State.CANCELLED)
        elif self.attempt >= self.max_attempts or (self.deadline and at >= self.deadline):
            self.end(State.FAILED)
        else:
            self.wait(at, now)

    def lose(self, now: int) -> None:
        if self.asked:
            self.end(State.CANCELLED)
        elif self.attempt >= self.max_attempts:
            self.end(State.FAILED)
        else:
            self.wait(now, now)


class JobLife(RuleBasedStateMachine):
    """Two processes and one store."""

    def __init__(self, runner: asyncio.Runner, stores: Stores) -> None:
        super().__init__()
        self._runner = runner
        self._stores = stores
        self._known: dict[int, Known] = {}
        self._fences: list[Fence] = []
        self._ledger: list[int] = []
        self._lost = 0
        schedule = Schedule(Background(), stores.clock)
        self._room = AdminHandlers(Queue(stores.jobs), lambda: [], schedule, stores.clock)

    @rule(
        count=st.integers(1, 3),
        max_attempts=st.integers(1, 2),
        delay=st.sampled_from((0, 0, 3_000)),
        limit=st.sampled_from((None, None, 2_000, 20_000)),
        called_back=st.booleans(),
        provider=st.sampled_from(("", "", *PROVIDERS)),
    )
    def enqueue(
        self,
        count: int,
        max_attempts: int,
        delay: int,
        limit: int | None,
        called_back: bool,
        provider: str,
    ) -> None:
        now = self._stores.now
        deadline = None if limit is None else now + limit
        state = State.SCHEDULED if delay else State.QUEUED
        job = new_job(
            max_attempts=max_attempts,
            run_after=now + delay if delay else None,
            deadline=deadline,
            reply_to="https://receiver.example" if called_back else None,
            provider=provider,
        )
        for _ in range(count):
            accepted = self._runner.run(self._stores.jobs.enqueue(job))
            assert accepted.state is state
            assert accepted.id not in self._known
            known = Known(max_attempts, deadline, now + delay, state, called_back, provider)
            self._known[accepted.id] = known

    @rule(
        owner=st.sampled_from(OWNERS),
        count=st.integers(1, 3),
        provider=st.sampled_from(("", "", *PROVIDERS)),
    )
    def claim(self, owner: str, count: int, provider: str) -> None:
        now = self._stores.now
        wants = [Want("chat", "model-a", provider, count)]
        claim = self._stores.jobs.claim(owner, wants, until=now + LEASE)
        jobs = self._runner.run(claim)
        ready = [known for known in self._known.values() if self._ready(known, provider)]
        assert len(jobs) == min(count, len(ready))
        for job in jobs:
            known = self._known[job.id]
            assert self._ready(known, provider)
            known.state, known.owner = State.STARTED, owner
            known.attempt += 1
            known.lease = now + LEASE
            assert job.attempt == known.attempt
            self._fences.append(job.fence)

    @precondition(lambda self: self._fences)
    @rule(data=st.data(), kind=st.sampled_from(KINDS))
    def finish(self, data: st.DataObject, kind: str) -> None:
        held_ones = [f for f in self._fences if self._known[f.job_id].holds(f)]
        fence = data.draw(st.sampled_from(held_ones * 3 + self._fences))
        known, now = self._known[fence.job_id], self._stores.now
        held = known.holds(fence)
        outcome = self._outcome(kind, fence)
        changed = self._runner.run(self._stores.jobs.finish(fence, outcome))
        assert (changed is not None) is held
        if changed is None:
            return
        if outcome.ledger is not None:
            self._ledger.append(outcome.ledger.id)
        match outcome:
            case Completed():
                known.end(State.COMPLETED)
            case Failed():
                known.end(State.FAILED)
            case Cancelled():
                known.end(State.CANCELLED)
            case Retry():
                known.retry(outcome.at, now)
            case Released():
                known.max_attempts += 1
                known.wait(now, now)
        assert changed.state is known.state

    @rule(owner=st.sampled_from(OWNERS))
    def heartbeat(self, owner: str) -> None:
        held = [fence for fence in self._fences if fence.owner == owner]
        until = self._stores.now + LEASE
        beat = self._runner.run(self._stores.jobs.heartbeat(owner, held, until=until))
        mine = [fence for fence in held if self._known[fence.job_id].holds(fence)]
        assert beat.lost == [fence for fence in held if fence not in mine]
        assert beat.cancelled == [f for f in mine if self._known[f.job_id].asked]
        for fence in mine:
            self._known[fence.job_id].lease = until

    @precondition(lambda self: self._known)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self._known)))
        known = self._known[id]
        result = self._runner.run(self._stores.jobs.cancel([id]))
        if known.state in WAITING:
            known.end(State.CANCELLED)
            assert result.outcomes == {id: CancelOutcome.CANCELLED}
        elif known.state is State.STARTED:
            known.asked = True
            assert result.outcomes == {id: CancelOutcome.ASKED}
            assert result.owners == [known.owner]
        else:
            assert result.outcomes == {id: CancelOutcome.ENDED}

    @precondition(lambda self: self._fences)
    @rule(data=st.data(), worker=st.sampled_from(PROVIDERS))
    def run_at(self, data: st.DataObject, worker: str) -> None:
        fence = data.draw(st.sampled_from(self._fences))
        lost = self._runner.run(self._stores.jobs.progress([Progress(fence=fence, worker=worker)]))
        known = self._known[fence.job_id]
        assert lost == ([] if known.holds(fence) else [fence])
        if not lost:
            known.worker = worker

    @rule(
        state=st.sampled_from((None, BackgroundJobState.QUEUED, BackgroundJobState.STARTED)),
        worker=st.sampled_from((None, *PROVIDERS)),
        named=st.booleans(),
    )
    def administrator_cancels(
        self, state: BackgroundJobState | None, worker: str | None, named: bool
    ) -> None:
        ids = [*self._known, 2**31 - 1] if named else []
        request = AdminCancelJobs(ids=ids, state=state, worker=worker)
        answer = self._runner.run(ask(self._room, request))
        told: set[int] = set()
        for id, known in self._known.items():
            wanted = state is not None or worker is not None
            if state is not None:
                wanted = known.state.shown == state.value
            if worker is not None:
                waits = known.state in WAITING and known.provider == worker
                wanted = wanted and (known.worker == worker or waits)
            if (wanted or named) and not known.state.ended:
                known.cancel()
                told.add(id)
        assert {*answer["results"]} == told
        missed = {str(id) for id in ids if id not in told}
        assert answer["errors"].keys() == missed

    @rule(milliseconds=st.sampled_from((1, 2_000, 5_000, LEASE)))
    def time_passes(self, milliseconds: int) -> None:
        self._stores.tick(milliseconds)

    @rule()
    def leases_run_out(self) -> None:
        self._stores.tick(LEASE)
        self.sweep()

    @rule(milliseconds=st.sampled_from((0, 2_000, 3_000)))
    def plans_fall_due(self, milliseconds: int) -> None:
        self._stores.tick(milliseconds)
        self.sweep()

    def sweep(self) -> None:
        now = self._stores.now
        swept = self._runner.run(self._stores.jobs.sweep())
        before = {id: known.state for id, known in self._known.items()}
        running = [known for known in self._known.values() if known.state is State.STARTED]
        for known in self._known.values():
            if known.deadline and known.deadline <= now and not known.state.ended:
                known.end(State.CANCELLED if known.asked else State.FAILED)
            elif known.state is State.STARTED and known.lease <= now:
                known.lose(now)
            elif known.state is State.SCHEDULED and known.due <= now:
                known.state = State.QUEUED
        self._lost += sum(known.state is not State.STARTED for known in running)
        ended = {id: known.state for id, known in self._known.items() if known.state.ended}
        assert {changed.id: changed.state for changed in swept.ended} == {
            id: state for id, state in ended.items() if not before[id].ended
        }
        assert swept.again == self._next_due()

    @rule(owner=st.sampled_from(OWNERS))
    def process_dies(self, owner: str) -> None:
        self._runner.run(self._stores.jobs.take_back([owner]))
        for known in self._known.values():
            if known.owner == owner:
                known.lose(self._stores.now)
                self._lost += 1

    @rule()
    def archive(self) -> None:
        self._runner.run(self._stores.jobs.archive(self._stores.now))

    @precondition(lambda self: self._known)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self._known)))
        known = self._known[id]
        result = self._runner.run(self._stores.jobs.requeue([id]))
        if known.state not in (State.FAILED, State.CANCELLED):
            assert (result.ids, list(result.errors)) == ([], [id])
            return
        assert (result.ids, result.errors) == ([id], {})
        known.max_attempts += known.attempt
        known.deadline, known.asked = None, False
        known.wait(self._stores.now, self._stores.now)

    @invariant()
    def jobs_are_as_the_rules_say(self) -> None:
        for id, known in self._known.items():
            job = self._runner.run(self._stores.job(id))
            assert _seen(job) == (
                known.state,
                known.attempt,
                known.max_attempts,
                known.owner,
                known.asked,
                known.state.ended,
            )

    @invariant()
    def each_attempt_is_in_the_ledger_once(self) -> None:
        rows = self._runner.run(self._stores.rows("SELECT id, cost FROM ledger ORDER BY id"))
        assert [id for id, cost in rows if cost is not None] == sorted(self._ledger)
        assert len([id for id, cost in rows if cost is None]) == self._lost

    @invariant()
    def each_end_left_one_callback(self) -> None:
        left = self._runner.run(self._stores.rows("SELECT job_id, body FROM outbox"))
        told = [
            (id, state.value.encode())
            for id, known in self._known.items()
            if known.called_back
            for state in known.ends
        ]
        assert sorted((id, bytes(body)) for id, body in left) == sorted(told)

    def teardown(self) -> None:
        counts = self._runner.run(self._stores.jobs.counts())
        waiting = sum(known.state in WAITING for known in self._known.values())
        assert sum(counts.waiting_by_key.values()) == waiting

    def _ready(self, known: Known, provider: str) -> bool:
        in_time = known.deadline is None or known.deadline > self._stores.now
        return known.state is State.QUEUED and in_time and known.provider == provider

    def _outcome(self, kind: str, fence: Fence) -> Outcome:
        ledger = settled(len(self._ledger) + 1, fence)
        now = self._stores.now
        outcomes: dict[str, Outcome] = {
            "completed": Completed(result=b"1", ledger=ledger),
            "failed": Failed(error=BROKEN, ledger=ledger),
            "retry now": Retry(at=now, error=BROKEN, ledger=ledger),
            "retry later": Retry(at=now + 2_000, error=BROKEN),
            "cancelled": Cancelled(ledger=ledger),
            "released": Released(),
        }
        return outcomes[kind]

    def _next_due(self) -> int | None:
        due = [
            moment
            for known in self._known.values()
            for moment, counts in (
                (known.due, known.state is State.SCHEDULED),
                (known.lease, known.state is State.STARTED),
                (known.deadline, not known.state.ended),
            )
            if counts and moment is not None
        ]
        return min(due, default=None)


def _seen(job: Job) -> tuple[State, int, int, str | None, bool, bool]:
    asked = job.cancel_asked is not None
    return job.state, job.attempt, job.max_attempts, job.owner, asked, job.ended is not None


@pytest.fixture
def new_stores(
    engine: str, tmp_path: Path, migrated: bytes
) -> Callable[[asyncio.Runner, AsyncExitStack], Stores]:
    """Opens an empty store; the server's database is emptied and used again."""
    kept: list[Stores] = []

    def open_empty(runner: asyncio.Runner, stack: AsyncExitStack) -> Stores:
        if kept:
            runner.run(kept[0].rows(f"TRUNCATE {TABLES}"))
            return kept[0]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        stores = runner.run(opener(engine, stack, folder, migrated, synchronous="OFF")())
        if engine == "postgres":
            kept.append(stores)
        return stores

    return open_empty


def test_jobs_follow_the_rules_in_every_order(
    new_stores: Callable[[asyncio.Runner, AsyncExitStack], Stores],
) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        class Life(JobLife):
            def __init__(self) -> None:
                super().__init__(runner, new_stores(runner, stack))

        try:
            run_state_machine_as_test(
                Life, settings=settings(max_examples=40, stateful_step_count=30)
            )
        finally:
            runner.run(stack.aclose())
