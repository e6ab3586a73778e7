"""Jobs are kept, shared out and ended by one set of rules, whichever database has them."""

import asyncio

import pytest

from aiserver.contract.errors import Conflict, TooBusy
from aiserver.jobs.job import (
    MOST_LOGGED,
    Cancelled,
    Completed,
    Failed,
    FailureKind,
    Fence,
    JobError,
    Released,
    Retry,
    State,
)
from aiserver.jobs.store import (
    MOST_ROWS,
    Bounds,
    CancelOutcome,
    Filter,
    Group,
    Order,
    Progress,
    Want,
)
from aiserver.kit.ids import began_ms
from job_stores import BROKEN, LEASE, OWNER, OpenStores, Stores, new_job, settled

PEER = "host:2:200:bb"


async def test_job_is_kept_as_it_was_given(store: Stores) -> None:
    given = {
        "operation": "TextToImage",
        "kind": "media",
        "key_id": 7,
        "model": "flux",
        "provider": "comfy",
        "ref_id": "my-own-reference",
        "priority": -3,
        "request": b'{"positivePrompt":"\xc3\xa9"}',
        "files": '{"image":"files/1"}',
        "tag": "cats",
        "reply_to": "PUT https://receiver.example/x",
        "echo": "sofa",
        "request_id": "request-9",
        "max_attempts": 5,
        "deadline": store.now + 60_000,
    }
    accepted = await store.jobs.enqueue(new_job(**given))
    job = await store.job(accepted.id)
    assert {name: getattr(job, name) for name in given} == given
    assert (job.state, job.created, job.attempt) == (State.QUEUED, store.now, 0)
    assert accepted.ref_id == "my-own-reference"


async def test_text_that_no_database_takes_is_mended(store: Stores) -> None:
    accepted = await store.put(tag="a\ud800b", model="\udfff")
    assert (await store.job(accepted.id)).tag == "a?b"
    [job] = await store.claim(model="?")
    broken = JobError(code="X", message="\ud800", status=502, kind=FailureKind.UPSTREAM)
    await store.jobs.finish(job.fence, Failed(error=broken))
    assert (await store.job(accepted.id)).error_message == "?"


async def test_reference_is_made_when_none_is_given(store: Stores) -> None:
    first, second = await store.put(), await store.put()
    assert len(first.ref_id) == 32
    assert int(first.ref_id, 16) != int(second.ref_id, 16)
    assert 0 < first.id < second.id < 2**31


async def test_reference_is_unique_for_its_key_only(store: Stores) -> None:
    await store.put(ref_id="same", key_id=1)
    other = await store.put(ref_id="same", key_id=2)
    with pytest.raises(Conflict, match="refId"):
        await store.put(ref_id="same", key_id=1)
    found = await store.jobs.find(ref_id="same", key_id=2)
    assert found is not None
    assert found.id == other.id


async def test_stranger_does_not_find_a_job(store: Stores) -> None:
    accepted = await store.put(key_id=1)
    assert await store.jobs.find(id=accepted.id, key_id=2) is None
    assert await store.jobs.find(ref_id=accepted.ref_id, key_id=2) is None
    assert await store.jobs.find(ref_id=accepted.ref_id, key_id=1) is not None


async def test_same_idempotency_key_and_body_is_one_job(store: Stores) -> None:
    same = {"idempotency_key": "k", "body_hash": b"1"}
    answers = await asyncio.gather(*(store.put(**same) for _ in range(50)))
    assert len({answer.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert len(await store.claim(10)) == 1


async def test_idempotency_key_with_another_body_is_refused(store: Stores) -> None:
    await store.put(idempotency_key="k", body_hash=b"1")
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await store.put(idempotency_key="k", body_hash=b"2")
    other = await store.put(idempotency_key="k", body_hash=b"2", key_id=2)
    assert not other.replayed


async def test_first_job_of_an_idempotency_key_is_found_by_its_body(store: Stores) -> None:
    accepted = await store.put(idempotency_key="k\x00\ud800", body_hash=b"1")
    found = await store.jobs.replay(1, "k\x00\ud800", b"1")
    assert found is not None
    assert (found.id, found.ref_id, found.replayed) == (accepted.id, accepted.ref_id, True)
    assert await store.jobs.replay(2, "k\x00\ud800", b"1") is None
    assert await store.jobs.replay(1, "another", b"1") is None
    with pytest.raises(Conflict, match="Idempotency-Key"):
        await store.jobs.replay(1, "k\x00\ud800", b"2")


async def test_idempotency_key_outlives_the_move_to_the_archive(store: Stores) -> None:
    same = {"idempotency_key": "k", "body_hash": b"1"}
    job = await store.started(**same)
    await store.jobs.finish(job.fence, Completed(result=b"1"))
    await _archived(store)
    again = await store.put(**same)
    assert (again.id, again.state, again.replayed) == (job.id, State.COMPLETED, True)
    assert await store.jobs.forget_keys(store.now) == 1
    assert not (await store.put(**same)).replayed


async def test_full_queue_refuses_until_a_job_is_taken(open_stores: OpenStores) -> None:
    store = await open_stores(bounds=Bounds(queued=3, queued_per_key=0, retry_after=7))
    answers = await asyncio.gather(*(store.put() for _ in range(5)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, TooBusy)]
    assert [error.retry_after for error in refused] == [7, 7]
    await store.claim()
    await store.put()
    with pytest.raises(TooBusy):
        await store.put()


async def test_key_at_its_bound_does_not_stop_another(open_stores: OpenStores) -> None:
    store = await open_stores(bounds=Bounds(queued=0, queued_per_key=2))
    first = await store.put(key_id=1)
    await store.put(key_id=1, run_after=store.now + 5000)
    with pytest.raises(TooBusy, match="API key"):
        await store.put(key_id=1)
    await store.put(key_id=2)
    await store.jobs.cancel([first.id])
    await store.put(key_id=1)


async def test_replay_and_refusal_take_no_place_in_the_queue(open_stores: OpenStores) -> None:
    store = await open_stores(bounds=Bounds(queued=2, queued_per_key=0))
    await store.put(idempotency_key="k", body_hash=b"1", ref_id="r")
    assert (await store.put(idempotency_key="k", body_hash=b"1")).replayed
    with pytest.raises(Conflict):
        await store.put(ref_id="r")
    await store.put()
    assert (await store.put(idempotency_key="k", body_hash=b"1")).replayed
    with pytest.raises(TooBusy):
        await store.put()


async def test_bounds_count_what_was_there_before_the_start(open_stores: OpenStores) -> None:
    before = await open_stores()
    await before.put()
    await before.jobs.close()
    store = await open_stores(bounds=Bounds(queued=1))
    with pytest.raises(TooBusy):
        await store.put()


async def test_job_that_begins_at_once_is_held_by_its_caller(store: Stores) -> None:
    accepted = await store.jobs.start(new_job(), owner=OWNER, until=store.now + LEASE)
    assert accepted.state is State.STARTED
    assert await store.claim() == []
    changed = await store.jobs.finish(Fence(accepted.id, OWNER, 1), Completed(result=b"1"))
    assert changed is not None
    assert changed.state is State.COMPLETED


async def test_job_that_began_at_once_comes_back_behind_those_that_waited(store: Stores) -> None:
    waiting = [(await store.put()).id for _ in range(2)]
    began = await store.jobs.start(new_job(), owner=OWNER, until=store.now + LEASE)
    later = (await store.put(key_id=7)).id
    await store.jobs.finish(Fence(began.id, OWNER, 1), Released())
    order = [job.id for job in await store.claim(4)]
    assert order.index(began.id) > order.index(waiting[-1])
    assert set(order) == {*waiting, began.id, later}


async def test_job_is_claimed_by_one_process_only(store: Stores) -> None:
    await asyncio.gather(*(store.put() for _ in range(30)))
    owners = (OWNER, PEER)
    taken = await asyncio.gather(*(store.claim(4, owner=owners[i % 2]) for i in range(10)))
    ids = [job.id for jobs in taken for job in jobs]
    assert len(ids) == len(set(ids)) == 30


async def test_claim_takes_what_it_wants_and_no_more(store: Stores) -> None:
    for model in ("model-a", "model-b"):
        for provider in ("", "p"):
            for _ in range(3):
                await store.put(model=model, provider=provider)
    wants = [Want("chat", "model-a", "", 2), Want("chat", "model-b", "p", 2)]
    jobs = await store.jobs.claim(OWNER, wants, until=store.now + LEASE, most=3)
    assert len(jobs) == 3
    assert {(job.model, job.provider) for job in jobs} == {("model-a", ""), ("model-b", "p")}
    assert await store.jobs.claim(OWNER, [], until=store.now + LEASE) == []


async def test_claimed_job_says_who_holds_it(store: Stores) -> None:
    job = await store.started()
    assert (job.state, job.owner, job.attempt) == (State.STARTED, OWNER, 1)
    assert (job.started, job.lease_until) == (store.now, store.now + LEASE)
    assert job.fence == Fence(job.id, OWNER, 1)


async def test_higher_priority_goes_first(store: Stores) -> None:
    ids = [(await store.put(priority=priority)).id for priority in (0, 5, -1, 5)]
    assert [job.id for job in await store.claim(4)] == [ids[1], ids[3], ids[0], ids[2]]


async def test_late_key_does_not_wait_for_all_of_a_busy_one(store: Stores) -> None:
    for _ in range(60):
        await store.put(key_id=1)
    for _ in range(5):
        await store.put(key_id=2)
    order = [job.key_id for job in await store.claim(65)]
    assert max(place for place, key in enumerate(order) if key == 2) < 12


async def test_new_key_does_not_pass_one_that_was_served_before(store: Stores) -> None:
    for _ in range(20):
        await store.put(key_id=1)
    await store.claim(20)
    await store.put(key_id=2)
    await store.put(key_id=1)
    for _ in range(9):
        await store.put(key_id=2)
    order = [job.key_id for job in await store.claim(11)]
    assert order.index(1) < 3


async def test_groups_say_what_can_be_claimed(store: Stores) -> None:
    assert await store.jobs.groups() == []
    for _ in range(3):
        await store.put(model="model-b", key_id=1)
    for _ in range(2):
        await store.put(model="model-b", key_id=2)
    await store.put(model="model-b", key_id=3, priority=5)
    await store.put(model="model-a", provider="p")
    await store.put(kind="media", model="")
    await store.put(model="later", run_after=store.now + 1000)
    assert sorted(await store.jobs.groups(), key=lambda group: (group.kind, group.model)) == [
        Group("chat", "model-a", "p", 1, 0, (1,)),
        Group("chat", "model-b", "", 6, 5, (3, 1, 1, 2)),
        Group("media", "", "", 1, 0, (1,)),
    ]


async def test_position_counts_those_ahead(store: Stores) -> None:
    first, second = await store.put(), await store.put()
    urgent = await store.put(priority=1)
    later = await store.put(run_after=store.now + 1000)
    positions = [await store.jobs.position(job.id) for job in (first, second, urgent, later)]
    assert positions == [2, 3, 1, None]


async def test_heartbeat_keeps_the_lease(store: Stores) -> None:
    job = await store.started()
    store.tick(LEASE - 1)
    beat = await store.jobs.heartbeat(OWNER, [job.fence], until=store.now + LEASE)
    assert (beat.lost, beat.cancelled) == ([], [])
    store.tick(LEASE - 1)
    assert (await store.jobs.sweep()).lost == 0


async def test_heartbeat_names_what_was_lost_and_what_is_to_stop(store: Stores) -> None:
    kept, asked = await store.started(), await store.started()
    stale = Fence(kept.id, OWNER, 9)
    await store.jobs.cancel([asked.id])
    held = [kept.fence, asked.fence, stale]
    beat = await store.jobs.heartbeat(OWNER, held, until=store.now + LEASE)
    assert (beat.lost, beat.cancelled) == ([stale], [asked.fence])


async def test_progress_is_kept_and_its_log_is_bounded(store: Stores) -> None:
    job = await store.started()
    update = Progress(fence=job.fence, progress=0.5, status="x" * 5000, log="line\n", worker="p")
    assert await store.jobs.progress([update, Progress(fence=job.fence, log="next\n")]) == []
    now = await store.job(job.id)
    assert (now.progress, now.logs, now.worker) == (0.5, "line\nnext\n", "p")
    assert len(now.status or "") == 1000
    await store.jobs.progress([Progress(fence=job.fence, log="y" * MOST_LOGGED)])
    assert len((await store.job(job.id)).logs) == MOST_LOGGED
    lost = Fence(job.id, PEER, 1)
    assert await store.jobs.progress([Progress(fence=lost, progress=0.9)]) == [lost]
    assert (await store.job(job.id)).progress == 0.5


async def test_finished_job_has_its_answer_and_its_ledger_row(store: Stores) -> None:
    job = await store.started()
    row = settled(77, job.fence)
    changed = await store.jobs.finish(
        job.fence, Completed(result=b'{"ok":1}', worker="fake", ledger=row)
    )
    assert changed is not None
    assert (changed.id, changed.ref_id, changed.state) == (job.id, job.ref_id, State.COMPLETED)
    ended = await store.job(job.id)
    assert (ended.result, ended.worker, ended.ended) == (b'{"ok":1}', "fake", store.now)
    assert (ended.prompt_tokens, ended.completion_tokens, ended.cost) == (10, 20, 5_000)
    assert (ended.owner, ended.lease_until) == (None, None)
    sql = "SELECT id, at, key_id, provider, model, prompt_tokens, completion_tokens, cost, lost"
    assert [tuple(found) for found in await store.rows(f"{sql} FROM ledger")] == [tuple(row)]


async def test_second_end_of_a_job_writes_nothing(store: Stores) -> None:
    job = await store.started(reply_to="https://receiver.example/x")
    await store.jobs.finish(job.fence, Completed(result=b"1", ledger=settled(1, job.fence)))
    failed = Failed(error=BROKEN, ledger=settled(2, job.fence))
    assert await store.jobs.finish(job.fence, failed) is None
    assert (await store.job(job.id)).state is State.COMPLETED
    assert await store.ledger() == [1]
    assert [body for (body,) in await store.rows("SELECT body FROM outbox")] == [b"Completed"]


async def test_ends_that_meet_are_written_each_by_its_own_rule(store: Stores) -> None:
    await asyncio.gather(*(store.put() for _ in range(20)))
    jobs = await store.claim(20)
    fences = [job.fence if i % 2 else Fence(job.id, PEER, 1) for i, job in enumerate(jobs)]
    ends = [
        store.jobs.finish(fence, Completed(result=b"1", ledger=settled(i + 1, fence)))
        for i, fence in enumerate(fences)
    ]
    done = await asyncio.gather(*ends)
    assert [changed is not None for changed in done] == [bool(i % 2) for i in range(20)]
    assert await store.ledger() == list(range(2, 21, 2))


async def test_failed_job_says_why(store: Stores) -> None:
    job = await store.started()
    await store.jobs.finish(job.fence, Failed(error=BROKEN, worker="fake"))
    ended = await store.job(job.id)
    assert (ended.state, ended.error_code, ended.error_message) == (
        State.FAILED,
        "UpstreamFailed",
        "It broke.",
    )
    assert (ended.error_status, ended.error_kind) == (502, FailureKind.UPSTREAM.value)


async def test_retry_waits_for_its_moment(store: Stores) -> None:
    job = await store.started()
    retry = Retry(at=store.now + 2000, error=BROKEN, ledger=settled(1, job.fence))
    changed = await store.jobs.finish(job.fence, retry)
    assert changed is not None
    assert changed.state is State.SCHEDULED
    assert await store.claim() == []
    store.tick(2000)
    swept = await store.jobs.sweep()
    assert swept.ready == 1
    [again] = await store.claim()
    assert (again.id, again.attempt) == (job.id, 2)
    await store.jobs.finish(again.fence, Completed(result=b"1", ledger=settled(2, again.fence)))
    ended = await store.job(job.id)
    assert (ended.state, ended.error_code) == (State.COMPLETED, None)
    assert await store.ledger() == [1, 2]


async def test_last_retry_fails_the_job(store: Stores) -> None:
    job = await store.started(max_attempts=1)
    await store.jobs.finish(job.fence, Retry(at=store.now + 1, error=BROKEN))
    ended = await store.job(job.id)
    assert (ended.state, ended.error_code) == (State.FAILED, "UpstreamFailed")


async def test_retry_past_the_deadline_fails_the_job(store: Stores) -> None:
    job = await store.started(deadline=store.now + 1000)
    await store.jobs.finish(job.fence, Retry(at=store.now + 1000, error=BROKEN))
    assert (await store.job(job.id)).state is State.FAILED


async def test_released_job_goes_back_without_a_lost_attempt(store: Stores) -> None:
    job = await store.started(max_attempts=1)
    behind = await store.put()
    changed = await store.jobs.finish(job.fence, Released())
    assert changed is not None
    assert changed.state is State.QUEUED
    again, other = await store.claim(2, owner=PEER)
    assert (again.id, other.id) == (job.id, behind.id)
    assert again.attempt < again.max_attempts + 1
    assert await store.jobs.finish(job.fence, Completed(result=b"1")) is None


async def test_waiting_job_is_cancelled_at_once(store: Stores) -> None:
    queued = await store.put(reply_to="https://receiver.example/x")
    planned = await store.put(run_after=store.now + 9000)
    result = await store.jobs.cancel([queued.id, planned.id, 999])
    assert result.outcomes == dict.fromkeys((queued.id, planned.id), CancelOutcome.CANCELLED)
    assert {changed.id for changed in result.ended} == {queued.id, planned.id}
    assert (await store.job(queued.id)).state is State.CANCELLED
    assert await store.claim() == []
    assert [body for (body,) in await store.rows("SELECT body FROM outbox")] == [b"Cancelled"]


async def test_running_job_ends_when_its_worker_says_so(store: Stores) -> None:
    job = await store.started()
    result = await store.jobs.cancel([job.id])
    assert (result.outcomes, result.owners) == ({job.id: CancelOutcome.ASKED}, [OWNER])
    assert (await store.job(job.id)).state is State.STARTED
    ended = await store.jobs.finish(job.fence, Cancelled(ledger=settled(1, job.fence)))
    assert ended is not None
    assert ended.state is State.CANCELLED
    assert await store.ledger() == [1]
    assert (await store.jobs.cancel([job.id])).outcomes == {job.id: CancelOutcome.ENDED}


async def test_retry_of_a_job_asked_to_stop_is_its_end(store: Stores) -> None:
    job = await store.started()
    await store.jobs.cancel([job.id])
    changed = await store.jobs.finish(job.fence, Retry(at=store.now, error=BROKEN))
    assert changed is not None
    assert changed.state is State.CANCELLED


async def test_stranger_cannot_cancel_a_job(store: Stores) -> None:
    accepted = await store.put(key_id=1)
    assert (await store.jobs.cancel([accepted.id], key_id=2)).outcomes == {}
    assert (await store.job(accepted.id)).state is State.QUEUED


async def test_lost_lease_gives_the_job_to_a_peer(store: Stores) -> None:
    job = await store.started()
    behind = await store.put()
    store.tick(LEASE)
    swept = await store.jobs.sweep()
    assert (swept.lost, swept.ready) == (1, 1)
    again, _ = await store.claim(2, owner=PEER)
    assert (again.id, again.attempt, behind.id > job.id) == (job.id, 2, True)
    zombie = Completed(result=b"zombie", ledger=settled(1, job.fence))
    assert await store.jobs.finish(job.fence, zombie) is None
    assert (await store.jobs.heartbeat(OWNER, [job.fence], until=store.now)).lost == [job.fence]
    await store.jobs.finish(again.fence, Completed(result=b"1", ledger=settled(2, again.fence)))
    assert (await store.job(job.id)).result == b"1"
    assert await store.rows("SELECT lost, cost FROM ledger ORDER BY id") == [(1, 5_000), (1, None)]


async def test_last_lost_lease_fails_the_job(store: Stores) -> None:
    job = await store.started(max_attempts=1, reply_to="https://receiver.example/x")
    store.tick(LEASE)
    swept = await store.jobs.sweep()
    assert [(changed.id, changed.state, changed.called_back) for changed in swept.ended] == [
        (job.id, State.FAILED, True)
    ]
    assert (await store.job(job.id)).error_kind == FailureKind.LOST.value


async def test_lost_lease_of_a_job_asked_to_stop_cancels_it(store: Stores) -> None:
    job = await store.started()
    await store.jobs.cancel([job.id])
    store.tick(LEASE)
    await store.jobs.sweep()
    assert (await store.job(job.id)).state is State.CANCELLED


async def test_jobs_of_dead_processes_are_taken_back_at_once(store: Stores) -> None:
    await store.put()
    await store.put()
    [dead] = await store.claim(owner=PEER)
    [alive] = await store.claim()
    assert await store.jobs.owners() == sorted([OWNER, PEER])
    swept = await store.jobs.take_back([PEER])
    assert (swept.lost, swept.ready) == (1, 1)
    assert (await store.job(dead.id)).state is State.QUEUED
    assert (await store.job(alive.id)).state is State.STARTED


@pytest.mark.parametrize("end", ["lease", "death", "deadline", "cancelled"])
async def test_attempt_that_was_lost_is_in_the_ledger_once(store: Stores, end: str) -> None:
    deadline = store.now + LEASE if end == "deadline" else None
    job = await store.started(key_id=7, deadline=deadline)
    await store.jobs.progress([Progress(fence=job.fence, worker="fake")])
    if end == "cancelled":
        await store.jobs.cancel([job.id])
    if end == "death":
        await store.jobs.take_back([OWNER])
    store.tick(LEASE)
    for _ in range(2):
        await store.jobs.sweep()
        await store.jobs.take_back([OWNER])
        late = Completed(result=b"1", ledger=settled(1, job.fence))
        assert await store.jobs.finish(job.fence, late) is None
    columns = "key_id, provider, model, prompt_tokens, completion_tokens, cost, lost"
    lost = (7, "fake", "model-a", None, None, None, 1)
    assert await store.rows(f"SELECT {columns} FROM ledger") == [lost]
    [(id, at)] = await store.rows("SELECT id, at FROM ledger")
    assert began_ms(id) == at
    assert store.now - LEASE <= at <= store.now


async def test_lease_that_is_spared_can_still_be_extended(store: Stores) -> None:
    job = await store.started()
    store.tick(LEASE)
    swept = await store.jobs.sweep(spare_leases=True)
    assert (swept.lost, (await store.job(job.id)).state) == (0, State.STARTED)
    beat = await store.jobs.heartbeat(OWNER, [job.fence], until=store.now + LEASE)
    assert beat.lost == []
    assert (await store.jobs.sweep()).lost == 0


async def test_lost_attempts_have_numbers_that_no_process_gives(store: Stores) -> None:
    number = "SELECT number FROM revisions WHERE name = 'processes'"
    [(before,)] = await store.rows(number)
    for _ in range(300):
        await store.put()
    for _ in range(2):
        assert len(await store.claim(300)) == 300
        store.tick(LEASE)
        await store.jobs.sweep()
    assert await store.rows("SELECT count(*), count(DISTINCT id) FROM ledger") == [(600, 600)]
    assert await store.rows(number) == [(before + 1,)]


async def test_lost_job_that_asked_nobody_is_not_in_the_ledger(store: Stores) -> None:
    await store.put(model="")
    await store.put(deadline=store.now + LEASE)
    assert len(await store.claim(model="")) == 1
    store.tick(LEASE)
    assert (await store.jobs.sweep()).lost == 1
    assert await store.ledger() == []


async def test_planned_job_starts_when_it_is_due(store: Stores) -> None:
    planned = await store.put(run_after=store.now + 5000)
    assert planned.state is State.SCHEDULED
    assert (await store.jobs.sweep()).again == store.now + 5000
    store.tick(4999)
    assert (await store.jobs.sweep()).ready == 0
    store.tick(1)
    swept = await store.jobs.sweep()
    assert (swept.ready, swept.again) == (1, None)
    assert [job.id for job in await store.claim()] == [planned.id]


async def test_planned_jobs_do_not_pass_those_that_wait(store: Stores) -> None:
    for _ in range(20):
        await store.put(key_id=1, run_after=store.now + 1000)
    for _ in range(20):
        await store.put(key_id=2)
    await store.claim(15)
    store.tick(1000)
    await store.jobs.sweep()
    order = [job.key_id for job in await store.claim(10)]
    assert 4 <= order.count(2) <= 6


async def test_deadline_ends_waiting_and_running_jobs(store: Stores) -> None:
    running = await store.started(deadline=store.now + 1000)
    waiting = await store.put(deadline=store.now + 1000)
    planned = await store.put(deadline=store.now + 1000, run_after=store.now + 9000)
    assert (await store.jobs.sweep()).again == store.now + 1000
    store.tick(1000)
    assert await store.claim() == []
    swept = await store.jobs.sweep()
    assert {changed.id for changed in swept.ended} == {running.id, waiting.id, planned.id}
    for id in (running.id, waiting.id, planned.id):
        job = await store.job(id)
        assert (job.state, job.error_kind) == (State.FAILED, FailureKind.DEADLINE.value)
    assert await store.jobs.finish(running.fence, Completed(result=b"late")) is None


async def test_dead_job_is_queued_again_under_its_ids(store: Stores) -> None:
    job = await store.started(max_attempts=1)
    await store.jobs.finish(job.fence, Failed(error=BROKEN))
    running = await store.started()
    requeued = await store.jobs.requeue([job.id, running.id, 999])
    assert requeued.ids == [job.id]
    assert set(requeued.errors) == {running.id, 999}
    [again] = await store.claim()
    assert (again.id, again.ref_id, again.attempt) == (job.id, job.ref_id, 2)
    assert (again.max_attempts, again.error_code, again.ended) == (2, None, None)
    assert await store.jobs.finish(job.fence, Completed(result=b"1")) is None


async def test_cancelled_job_queued_again_is_not_asked_to_stop(store: Stores) -> None:
    job = await store.started()
    await store.jobs.cancel([job.id])
    await store.jobs.finish(job.fence, Cancelled())
    assert (await store.jobs.requeue([job.id])).ids == [job.id]
    [again] = await store.claim()
    beat = await store.jobs.heartbeat(OWNER, [again.fence], until=store.now + LEASE)
    assert (beat.lost, beat.cancelled) == ([], [])


async def test_archived_job_is_found_and_queued_again(store: Stores) -> None:
    job = await store.started(ref_id="r")
    await store.jobs.finish(job.fence, Failed(error=BROKEN, result=b"part"))
    await _archived(store)
    assert await store.rows("SELECT 1 FROM jobs") == []
    found = await store.jobs.find(ref_id="r", key_id=1)
    assert found is not None
    assert (found.id, found.state, found.result) == (job.id, State.FAILED, b"part")
    assert found.request == b'{"model":"model-a"}'
    with pytest.raises(Conflict):
        await store.put(ref_id="r")
    assert (await store.jobs.requeue([job.id])).ids == [job.id]
    [again] = await store.claim()
    assert (again.id, again.request, again.attempt) == (job.id, b'{"model":"model-a"}', 2)
    assert await store.jobs.jobs(Filter(), month="2026-11") == ([], 0)


async def test_numbers_go_on_after_the_archive(open_stores: OpenStores) -> None:
    before = await open_stores()
    job = await before.started()
    await before.jobs.finish(job.fence, Completed(result=b"1"))
    await _archived(before)
    await before.jobs.close()
    store = await open_stores()
    assert (await store.put()).id > job.id


async def test_running_and_recent_jobs_are_not_archived(store: Stores) -> None:
    running, done = await store.started(), await store.started()
    await store.jobs.finish(done.fence, Completed(result=b"1"))
    assert await store.jobs.archive(store.now) == 0
    assert await store.jobs.archive(store.now + 1) == 1
    assert await store.jobs.archive(store.now + 1) == 0
    assert (await store.job(running.id)).state is State.STARTED


async def test_month_past_retention_is_dropped_whole(store: Stores) -> None:
    old = await store.started(ref_id="old")
    await store.jobs.finish(old.fence, Completed(result=b"1"))
    store.tick(40 * 86_400_000)
    new = await store.started()
    await store.jobs.finish(new.fence, Completed(result=b"1"))
    await _archived(store)
    assert await store.jobs.months() == ["2026-11", "2026-12"]
    assert await store.jobs.drop_months("2026-12") == ["2026-11"]
    assert await store.jobs.find(ref_id="old") is None
    assert await store.jobs.months() == ["2026-12"]
    assert (await store.job(new.id)).result == b"1"
    await store.put(ref_id="old")


async def test_blanked_job_keeps_its_row(store: Stores) -> None:
    job = await store.started(files='{"image":"files/1"}')
    await store.jobs.progress([Progress(fence=job.fence, log="secret")])
    await store.jobs.finish(job.fence, Failed(error=BROKEN, result=b"1"))
    await _archived(store)
    assert (await store.jobs.blank(store.now - 5000)).jobs == 0
    blanked = await store.jobs.blank(store.now + 1)
    assert (blanked.jobs, blanked.files, blanked.more) == (1, ['{"image":"files/1"}'], False)
    assert (await store.jobs.blank(store.now + 1)).jobs == 0
    found = await store.job(job.id)
    assert (found.request, found.files, found.result, found.logs) == (None, None, None, "")
    assert (found.state, found.error_code) == (State.FAILED, "UpstreamFailed")
    assert "not kept" in (await store.jobs.requeue([job.id])).errors[job.id]


async def test_page_shows_what_its_filter_says(store: Stores) -> None:
    ids = [(await store.put(key_id=i % 2, priority=i, tag=f"t{i}")).id for i in range(6)]
    page, total = await store.jobs.jobs(Filter(key_id=1, take=2))
    assert ([job.id for job in page], total) == ([ids[5], ids[3]], 3)
    page, total = await store.jobs.jobs(
        Filter(order=Order.PRIORITY, descending=False, skip=1, take=2)
    )
    assert ([job.id for job in page], total) == ([ids[1], ids[2]], 6)
    assert page[0].request is None
    for filter, expected in (
        (Filter(tag="t3"), [ids[3]]),
        (Filter(ids=ids[:1]), ids[:1]),
        (Filter(ids=[]), []),
        (Filter(states=[State.STARTED]), []),
        (Filter(model="model-a", operation="None"), []),
        (Filter(since=store.now + 1), []),
        (Filter(until=store.now), []),
    ):
        page, total = await store.jobs.jobs(filter)
        assert ([job.id for job in page], total) == (expected, len(expected))


async def test_summaries_show_jobs_wherever_they_are(store: Stores) -> None:
    done = await store.started()
    await store.jobs.finish(done.fence, Completed(result=b"1", ledger=settled(1, done.fence)))
    await _archived(store)
    waiting = await store.put()
    summaries, total = await store.jobs.summaries(Filter())
    assert total == 2
    assert [(row.id, row.state, row.month) for row in summaries] == [
        (waiting.id, State.QUEUED, None),
        (done.id, State.COMPLETED, "2026-11"),
    ]
    assert summaries[1].cost == 5_000
    page, _ = await store.jobs.jobs(Filter(states=[State.COMPLETED]), month="2026-11")
    assert [job.id for job in page] == [done.id]
    assert await store.jobs.jobs(Filter(), month="2020-01") == ([], 0)


async def test_counts_say_how_full_the_queue_is(store: Stores) -> None:
    running = await store.started(key_id=3)
    await store.jobs.progress([Progress(fence=running.fence, worker="fake")])
    await store.put(key_id=1, model="model-b")
    await store.put(key_id=1, run_after=store.now + 1000)
    counts = await store.jobs.counts()
    assert counts.states == {State.STARTED: 1, State.QUEUED: 1, State.SCHEDULED: 1}
    assert counts.waiting_by_key == {1: 2}
    assert counts.waiting_by_model == {"model-a": 1, "model-b": 1}
    assert counts.waiting_by_operation == {"OpenAiChatCompletion": 2}
    assert counts.running_by_worker == {"fake": 1}
    assert counts.archived == 0


async def test_tallies_count_ended_jobs_by_the_hour(store: Stores) -> None:
    job = await store.started()
    store.tick(250)
    await store.jobs.finish(job.fence, Completed(result=b"1", worker="fake"))
    await _archived(store)
    other = await store.started()
    store.tick(50)
    await store.jobs.finish(other.fence, Completed(result=b"1", worker="fake"))
    [tally] = await store.jobs.tallies(since=store.now - 3_600_000, until=store.now + 1)
    assert (tally.hour % 3_600_000, tally.operation, tally.worker) == (
        0,
        "OpenAiChatCompletion",
        "fake",
    )
    assert (tally.state, tally.jobs, tally.retries, tally.duration_ms) == (
        State.COMPLETED,
        2,
        0,
        300,
    )
    assert await store.jobs.tallies(since=0, until=store.now - 3_600_000) == []


async def test_caller_who_leaves_does_not_undo_an_enqueue(open_stores: OpenStores) -> None:
    store = await open_stores(bounds=Bounds(queued=1))
    leaving = asyncio.create_task(store.put())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await store.jobs.close()
    [job] = await store.claim()
    assert job.id > 0
    await store.put()


async def _archived(store: Stores) -> None:
    store.tick(1)
    assert await store.jobs.archive(store.now) > 0


async def test_places_in_line_are_forgotten_once_nobody_stands_there(store: Stores) -> None:
    waiting = await store.put(key_id=1)
    planned = await store.put(key_id=2, run_after=store.now + 1_000)
    store.tick(1_000)
    await store.jobs.sweep()
    done = await store.put(key_id=3, model="model-b")
    await store.jobs.cancel([planned.id, done.id])
    assert await places(store) == {
        *(("model-a", 1), ("model-a", 2), ("model-a", -1)),
        *(("model-b", 3), ("model-b", -1)),
    }
    assert await store.jobs.tidy() == 3
    assert await places(store) == {("model-a", 1), ("model-a", -1)}
    # Who runs may come back to the line.
    [job] = await store.claim()
    assert job.id == waiting.id
    assert await store.jobs.tidy() == 0
    await store.jobs.finish(job.fence, Completed(result=b"1"))
    assert await store.jobs.tidy() == 2
    assert await places(store) == set()


async def test_places_are_forgotten_a_round_at_a_time(store: Stores) -> None:
    ended = await asyncio.gather(*(store.put(key_id=key) for key in range(MOST_ROWS + 1)))
    ids = [accepted.id for accepted in ended]
    await store.jobs.cancel(ids[:MOST_ROWS])
    await store.jobs.cancel(ids[MOST_ROWS:])
    assert [await store.jobs.tidy() for _ in range(3)] == [MOST_ROWS, 2, 0]


async def test_freed_idempotency_key_stays_free_when_its_job_waits_again(store: Stores) -> None:
    keyed = {"idempotency_key": "order-1", "body_hash": b"1"}
    first = await store.started(**keyed)
    await store.jobs.finish(first.fence, Failed(error=BROKEN))
    store.tick(1)
    assert await store.jobs.archive(store.now) == 1
    assert await store.jobs.forget_keys(store.now) == 1
    second = await store.put(**keyed)
    assert not second.replayed
    assert (await store.jobs.requeue([first.id])).ids == [first.id]
    assert (await store.job(first.id)).idempotency_key is None
    again = await store.put(**keyed)
    assert (again.id, again.replayed) == (second.id, True)


async def places(store: Stores) -> set[tuple[str, int]]:
    return {(model, key) for model, key in await store.rows("SELECT model, key_id FROM fair")}
