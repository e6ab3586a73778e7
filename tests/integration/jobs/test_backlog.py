"""A key whose receivers take nothing is told to wait, and is let in when they do."""

import pytest

from aiserver.contract.errors import TooBusy
from aiserver.jobs.store import Attempted, DeliveryState, NewDelivery
from aiserver.jobs.store.backlog import FRESH_SECONDS, Backlog
from job_stores import Stores


async def pending(store: Stores, id: str, *, key_id: int = 1) -> None:
    new = NewDelivery(
        id=id,
        key_id=key_id,
        url="https://receiver.example/",
        receiver="a",
        body=b"{}",
        due=store.now,
    )
    await store.outbox.add(new)


async def delivered(store: Stores, id: str) -> None:
    await store.outbox.attempted(
        Attempted(id=id, attempt=1, at=store.now, duration_ms=1, state=DeliveryState.DELIVERED)
    )


async def test_key_with_too_many_pending_callbacks_is_refused(store: Stores) -> None:
    backlog = Backlog(store.outbox, store.clock, most=2)
    await pending(store, "msg_1")
    await backlog.admit(1)
    await pending(store, "msg_2")
    store.tick(int(FRESH_SECONDS * 1000))
    with pytest.raises(TooBusy, match=r"2 callbacks waiting .* QueryDeliveries") as refused:
        await backlog.admit(1)
    assert refused.value.http_status == 429
    assert refused.value.retry_after
    await backlog.admit(2)
    await delivered(store, "msg_1")
    store.tick(int(FRESH_SECONDS * 1000))
    await backlog.admit(1)


async def test_callbacks_are_counted_once_a_moment(store: Stores) -> None:
    backlog = Backlog(store.outbox, store.clock, most=1)
    await backlog.admit(1)
    await pending(store, "msg_1")
    await backlog.admit(1)
    store.tick(int(FRESH_SECONDS * 1000))
    for _ in range(2):
        with pytest.raises(TooBusy):
            await backlog.admit(1)
