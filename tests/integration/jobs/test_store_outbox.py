"""Callbacks are kept from the moment a job ends until they are delivered, each its own way."""

from typing import Any

import pytest

from aiserver.jobs.job import Completed, Retry
from aiserver.jobs.store import (
    Attempt,
    Attempted,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Filter,
    NewDelivery,
)
from aiserver.jobs.store.outbox import MOST_ATTEMPTS
from job_stores import BROKEN, Stores

URL = "https://receiver.example/x"


async def test_ended_job_leaves_its_callback(store: Stores) -> None:
    job = await store.started(reply_to=URL, key_id=4)
    await store.jobs.finish(job.fence, Completed(result=b"1"))
    [delivery] = await take(store)
    assert (delivery.job_id, delivery.key_id, delivery.url) == (job.id, 4, URL)
    assert (delivery.body, delivery.verb, delivery.attempt) == (b"Completed", "POST", 0)
    assert delivery.state is DeliveryState.PENDING


async def test_retry_and_silence_leave_none(store: Stores) -> None:
    job = await store.started(reply_to=URL)
    await store.jobs.finish(job.fence, Retry(at=store.now + 1, error=BROKEN))
    quiet = await store.started(reply_to="nobody")
    changed = await store.jobs.finish(quiet.fence, Completed(result=b"1"))
    assert changed is not None
    assert not changed.called_back
    assert await store.outbox.next_due() is None


async def test_delivery_is_with_one_process_at_a_time(store: Stores) -> None:
    await add(store, "msg_1")
    assert [delivery.id for delivery in await take(store)] == ["msg_1"]
    assert await take(store) == []
    store.tick(60_000)
    assert [delivery.id for delivery in await take(store)] == ["msg_1"]


async def test_one_receiver_leaves_room_for_the_others(store: Stores) -> None:
    for number in range(5):
        await add(store, f"msg_a{number}", receiver="a")
    await add(store, "msg_b", receiver="b")
    await add(store, "msg_c", receiver="c")
    taken = await take(store, most=4, per_receiver=2, busy={"c"})
    assert sorted(delivery.id for delivery in taken) == ["msg_a0", "msg_a1", "msg_b"]


async def test_one_key_leaves_room_for_the_others(store: Stores) -> None:
    for number in range(5):
        await add(store, f"msg_a{number}", receiver=f"r{number}", key_id=1)
    await add(store, "msg_b", receiver="r1", key_id=2)
    await add(store, "msg_c", receiver="r0", key_id=3)
    first = await store.outbox.take(until=store.now + 60_000, most=9, per_receiver=1, per_key=2)
    assert [delivery.id for delivery in first] == ["msg_a0", "msg_a1"]
    taken = await store.outbox.take(
        until=store.now + 60_000, most=9, per_receiver=1, per_key=2, busy_keys={1, 3}
    )
    assert [delivery.id for delivery in taken] == ["msg_b"]


async def test_oldest_delivery_goes_first(store: Stores) -> None:
    await add(store, "msg_2", due=store.now - 1)
    await add(store, "msg_1", due=store.now)
    await add(store, "msg_3", due=store.now + 1)
    assert [delivery.id for delivery in await take(store)] == ["msg_2", "msg_1"]
    assert await store.outbox.next_due() == store.now + 1


async def test_failed_attempt_is_logged_and_due_again(store: Stores) -> None:
    await add(store, "msg_1")
    await take(store)
    due = store.now + 5000
    assert await attempted(store, 1, DeliveryState.PENDING, due=due, status=500, error="oops")
    assert await store.outbox.next_due() == due
    delivery = await store.outbox.delivery("msg_1")
    assert delivery is not None
    assert (delivery.attempt, delivery.last_status, delivery.last_error) == (1, 500, "oops")
    assert await store.outbox.attempts("msg_1") == [Attempt(1, store.now, 12, 500, "oops")]


async def test_delivered_callback_marks_its_job(store: Stores) -> None:
    job = await store.started(reply_to=URL)
    await store.jobs.finish(job.fence, Completed(result=b"1"))
    [delivery] = await take(store)
    store.tick(10)
    await store.jobs.archive(store.now)
    assert await attempted(store, 1, DeliveryState.DELIVERED, id=delivery.id, status=200)
    assert (await store.job(job.id)).notified == store.now
    [summary], _ = await store.jobs.summaries(Filter())
    assert summary.notified == store.now
    assert await store.outbox.next_due() is None


async def test_attempt_that_came_late_changes_nothing(store: Stores) -> None:
    await add(store, "msg_1")
    assert await attempted(store, 1, DeliveryState.DELIVERED, status=200)
    assert not await attempted(store, 1, DeliveryState.FAILED, status=500)
    assert not await attempted(store, 2, DeliveryState.FAILED, status=500)
    delivery = await store.outbox.delivery("msg_1")
    assert delivery is not None
    assert (delivery.state, delivery.delivered) == (DeliveryState.DELIVERED, store.now)
    assert len(await store.outbox.attempts("msg_1")) == 1


async def test_redelivery_keeps_id_and_count(store: Stores) -> None:
    await add(store, "msg_1", key_id=3)
    await attempted(store, 1, DeliveryState.FAILED, status=500)
    assert not await store.outbox.redeliver("msg_1", key_id=4)
    assert not await store.outbox.redeliver("msg_9")
    assert await store.outbox.redeliver("msg_1", key_id=3)
    [delivery] = await take(store)
    assert (delivery.id, delivery.attempt) == ("msg_1", 1)
    assert await attempted(store, 2, DeliveryState.DELIVERED, status=204)


async def test_redelivery_leaves_an_attempt_under_way_alone(store: Stores) -> None:
    await add(store, "msg_1")
    await take(store)
    store.tick(1)
    assert await store.outbox.redeliver("msg_1")
    assert await take(store) == []
    assert await attempted(store, 1, DeliveryState.DELIVERED, status=200)
    assert await store.outbox.next_due() is None


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.DISABLED])
async def test_redelivery_asked_under_way_follows_a_failure(
    store: Stores, state: DeliveryState
) -> None:
    await add(store, "msg_1")
    await take(store)
    assert await store.outbox.redeliver("msg_1")
    assert await attempted(store, 1, state, due=store.now + 5_000, status=500)
    [delivery] = await take(store)
    assert (delivery.state, delivery.attempt) == (DeliveryState.PENDING, 1)
    # It was asked for once.
    assert await attempted(store, 2, DeliveryState.FAILED, status=500)
    assert await store.outbox.next_due() is None


async def test_delivery_that_only_waits_is_due_when_asked_for(store: Stores) -> None:
    await add(store, "msg_1")
    await take(store)
    await attempted(store, 1, DeliveryState.PENDING, due=store.now + 5_000, status=500)
    assert await store.outbox.redeliver("msg_1")
    assert len(await take(store)) == 1


async def test_attempt_that_was_lost_is_no_longer_under_way(store: Stores) -> None:
    await add(store, "msg_1")
    await take(store)
    store.tick(60_001)
    assert await store.outbox.redeliver("msg_1")
    [delivery] = await take(store)
    assert delivery.attempt == 0


async def test_log_of_a_delivery_has_a_bound(store: Stores) -> None:
    await add(store, "msg_1")
    for attempt in range(1, MOST_ATTEMPTS + 3):
        assert await attempted(store, attempt, DeliveryState.PENDING, due=store.now, status=500)
    log = await store.outbox.attempts("msg_1")
    assert [each.attempt for each in log] == list(range(3, MOST_ATTEMPTS + 3))
    assert await store.rows("SELECT count(*) FROM outbox_attempts") == [(MOST_ATTEMPTS,)]


async def test_pending_deliveries_of_a_key_are_counted_to_a_bound(store: Stores) -> None:
    for number in range(3):
        await add(store, f"msg_{number}", key_id=1)
    await add(store, "msg_other", key_id=2)
    await attempted(store, 1, DeliveryState.DELIVERED, id="msg_2", status=200)
    assert await store.outbox.pending(1, most=10) == 2
    assert await store.outbox.pending(1, most=1) == 1
    assert await store.outbox.pending(3, most=10) == 0


async def test_same_delivery_again_changes_nothing(store: Stores) -> None:
    await add(store, "msg_1")
    await add(store, "msg_1", url="https://elsewhere.example")
    [delivery] = await take(store)
    assert delivery.url == URL


async def test_page_of_deliveries_is_filtered(store: Stores) -> None:
    await add(store, "msg_1", key_id=1)
    store.tick(1)
    await add(store, "msg_2", key_id=2)
    await attempted(store, 1, DeliveryState.DISABLED, id="msg_2", status=410)
    page, total = await store.outbox.deliveries(DeliveryFilter())
    assert ([delivery.id for delivery in page], total) == (["msg_2", "msg_1"], 2)
    assert page[0].body is None
    for filter in (DeliveryFilter(key_id=2), DeliveryFilter(states=[DeliveryState.DISABLED])):
        page, total = await store.outbox.deliveries(filter)
        assert ([delivery.id for delivery in page], total) == (["msg_2"], 1)
    assert await store.outbox.delivery("msg_2", key_id=1) is None


async def test_old_deliveries_go_but_not_those_that_wait(store: Stores) -> None:
    await add(store, "msg_1")
    await add(store, "msg_2")
    await attempted(store, 1, DeliveryState.DELIVERED, status=200)
    store.tick(1)
    assert await store.outbox.prune(store.now) == 1
    assert await store.outbox.delivery("msg_1") is None
    assert await store.outbox.attempts("msg_1") == []
    assert await store.outbox.delivery("msg_2") is not None


async def test_content_of_old_callbacks_is_forgotten_and_their_log_kept(store: Stores) -> None:
    await add(store, "msg_1", body=b'{"choices":[]}')
    await attempted(store, 1, DeliveryState.DELIVERED, status=204)
    await add(store, "msg_2", body=b'{"choices":[]}')
    store.tick(1)
    await add(store, "msg_3", body=b'{"choices":[]}')
    assert [await store.outbox.blank(store.now) for _ in range(2)] == [2, 0]
    kept = [await store.outbox.delivery(id) for id in ("msg_1", "msg_2", "msg_3")]
    assert [delivery and delivery.body for delivery in kept] == [None, None, b'{"choices":[]}']
    assert len(await store.outbox.attempts("msg_1")) == 1
    # One that was not delivered is taken still, so that it ends.
    assert [(each.id, each.body) for each in await take(store, most=1)] == [("msg_2", None)]


async def add(store: Stores, id: str, **members: Any) -> None:
    given: dict[str, Any] = {
        "key_id": 1,
        "url": URL,
        "receiver": "a",
        "body": b"{}",
        "due": store.now,
    }
    await store.outbox.add(NewDelivery(id=id, **given | members))


async def take(
    store: Stores, *, most: int = 100, per_receiver: int = 10, busy: set[str] | None = None
) -> list[Delivery]:
    return await store.outbox.take(
        until=store.now + 60_000, most=most, per_receiver=per_receiver, busy=busy or set()
    )


async def attempted(
    store: Stores, attempt: int, state: DeliveryState, *, id: str = "msg_1", **members: Any
) -> bool:
    return await store.outbox.attempted(
        Attempted(id=id, attempt=attempt, at=store.now, duration_ms=12, state=state, **members)
    )
