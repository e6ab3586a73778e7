"""What callers see of their callbacks, and the secret that signs them."""

from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from aiserver.contract.errors import InvalidRequest, NotFound, Unavailable
from aiserver.jobs import callback_operations
from aiserver.jobs.callback_handlers import CallbackHandlers
from aiserver.jobs.callback_operations import (
    GetCallbackSecret,
    QueryDeliveries,
    RedeliverCallback,
    RotateCallbackSecret,
)
from aiserver.jobs.callback_secrets import CallbackSecrets
from aiserver.jobs.deliveries import Deliveries, Limits
from aiserver.jobs.job import Completed
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import Attempted, DeliveryState
from aiserver.kit.crypto import Cipher
from aiserver.kit.db import Database
from aiserver.kit.outbound import Guard, Outbound
from aiserver.kit.tables import SqliteTables
from fakes.receiver import BROKEN, Receiver
from job_calls import OWNER, STRANGER, Pairs, ask
from job_stores import Stores

ADDRESS = "https://receiver.example/hook"


@pytest.fixture
def engine() -> str:
    """The rules of stores have their own tests, on every engine."""
    return "sqlite"


async def _sink(headers: Mapping[str, str], body: bytes) -> int:
    return 200


class Desk:
    """The handlers over a store, with callbacks that a test makes."""

    def __init__(self, store: Stores, database: Database) -> None:
        self.store = store
        self.outbound = Outbound(Guard("127.0.0.1"))
        self.secrets = self.sealed(database, b"k" * 32)
        self.deliveries = Deliveries(
            store.outbox,
            ReplyAddresses(self.outbound),
            self.secrets,
            self.outbound,
            store.clock,
            sink=_sink,
            limits=Limits(seconds=5),
        )
        self.room = self.handlers(self.secrets)

    def sealed(self, database: Database, key: bytes) -> CallbackSecrets:
        return CallbackSecrets(
            SqliteTables(database), Cipher(key), self.store.clock, lambda _: None
        )

    def handlers(self, secrets: CallbackSecrets) -> CallbackHandlers:
        return CallbackHandlers(self.store.jobs, self.store.outbox, self.deliveries, secrets)

    async def ended(self, *, key_id: int = 1, ref_id: str | None = None) -> int:
        """A job that ended, which made a callback."""
        job = await self.store.started(key_id=key_id, ref_id=ref_id, reply_to=ADDRESS)
        self.store.tick(1000)
        await self.store.jobs.finish(job.fence, Completed(result=b"{}"))
        return job.id

    async def rows(self, request: QueryDeliveries, **as_: Any) -> list[dict[str, Any]]:
        return (await ask(self.room, request, **as_))["results"]

    async def jobs(self, request: QueryDeliveries, **as_: Any) -> list[int]:
        return [row["jobId"] for row in await self.rows(request, **as_)]


@pytest.fixture
async def desk(store: Stores, database: Database) -> AsyncGenerator[Desk]:
    desk = Desk(store, database)
    yield desk
    await desk.outbound.close()


async def test_callers_see_their_own_callbacks(desk: Desk) -> None:
    own, other = await desk.ended(ref_id="mine"), await desk.ended(key_id=2)
    assert await desk.jobs(QueryDeliveries(), caller=OWNER) == [own]
    assert await desk.jobs(QueryDeliveries(), caller=STRANGER) == [other]
    assert await desk.jobs(QueryDeliveries()) == [other, own]
    [row] = await desk.rows(QueryDeliveries(), caller=OWNER)
    assert (row["refId"], row["state"], row["url"]) == ("mine", "Pending", ADDRESS)
    assert "log" not in row


@pytest.mark.parametrize(
    ("members", "count"),
    [
        ({"job_id": 1}, 1),
        ({"job_id": 2}, 0),
        ({"job_id": 2**40}, 0),
        ({"job_id": 0, "ref_id": "mine"}, 1),
        ({"ref_id": "theirs"}, 0),
        ({"ref_id": "nobody's"}, 0),
        ({"id": "msg_none"}, 0),
        ({"state": DeliveryState.PENDING}, 1),
        ({"state": DeliveryState.FAILED}, 0),
        ({"skip": 1}, 0),
        ({"take": 0}, 0),
    ],
)
async def test_callbacks_are_found(desk: Desk, members: dict[str, Any], count: int) -> None:
    await desk.ended(ref_id="mine")
    await desk.ended(key_id=2, ref_id="theirs")
    assert len(await desk.rows(QueryDeliveries(**members), caller=OWNER)) == count


@pytest.mark.parametrize(
    ("members", "pairs"),
    [
        ({}, [("urlContains", "x")]),
        ({}, [("keyId", "2")]),
        ({"order_by": "url"}, []),
        ({"fields": "distinct url"}, []),
    ],
)
async def test_what_the_outbox_cannot_look_for_is_refused(
    desk: Desk, members: dict[str, Any], pairs: Pairs
) -> None:
    with pytest.raises(InvalidRequest):
        await ask(desk.room, QueryDeliveries(**members), pairs)


async def test_page_tells_how_many_there_are(desk: Desk) -> None:
    await desk.ended()
    newest = await desk.ended()
    request = QueryDeliveries(take=1, include="total", order_by="-createdDate", fields="jobId")
    answer = await ask(desk.room, request, [("format", "json")], caller=OWNER)
    assert answer == {"offset": 0, "total": 2, "results": [{"jobId": newest}]}


async def test_one_callback_comes_with_its_log(desk: Desk) -> None:
    job = await desk.ended()
    [row] = await desk.rows(QueryDeliveries())
    await desk.store.outbox.attempted(
        Attempted(
            id=row["id"],
            attempt=1,
            at=desk.store.now,
            duration_ms=12,
            state=DeliveryState.FAILED,
            status=500,
            error="It broke.",
        )
    )
    for request in (QueryDeliveries(id=row["id"]), QueryDeliveries(job_id=job)):
        [row] = await desk.rows(request, caller=OWNER)
        assert (row["state"], row["attempts"], row["httpStatus"]) == ("Failed", 1, 500)
        assert "dueDate" not in row
        assert row["log"] == [
            {
                "at": "2026-11-15T12:00:01Z",
                "durationMs": 12,
                "httpStatus": 500,
                "error": "It broke.",
            }
        ]


async def test_callback_is_delivered_again(desk: Desk) -> None:
    await desk.ended()
    [row] = await desk.rows(QueryDeliveries())
    await desk.store.outbox.attempted(
        Attempted(
            id=row["id"], attempt=1, at=0, duration_ms=1, state=DeliveryState.DELIVERED, status=200
        )
    )
    answer = await ask(desk.room, RedeliverCallback(id=row["id"]), caller=OWNER)
    assert (answer["result"]["id"], answer["result"]["state"]) == (row["id"], "Pending")
    assert len(answer["result"]["log"]) == 1


async def test_nobody_delivers_the_callback_of_another(desk: Desk) -> None:
    await desk.ended()
    [row] = await desk.rows(QueryDeliveries())
    for id in (row["id"], "msg_none"):
        with pytest.raises(NotFound, match="Callback not found"):
            await ask(desk.room, RedeliverCallback(id=id), caller=STRANGER)


async def test_address_can_be_tried(desk: Desk) -> None:
    async with Receiver() as receiver:
        # Under its own name a test runner would take it for a test.
        request = callback_operations.TestCallback(reply_to=receiver.url)
        answer = await ask(desk.room, request, caller=OWNER)
        assert (answer["delivered"], answer["httpStatus"]) == (True, 200)
        assert receiver.received[0].id == answer["id"]
        receiver.next(BROKEN)
        answer = await ask(desk.room, request, caller=OWNER)
        assert (answer["delivered"], answer["httpStatus"]) == (False, 500)
    with pytest.raises(InvalidRequest, match="replyTo"):
        await ask(desk.room, callback_operations.TestCallback(reply_to="ftp://x"), caller=OWNER)


async def test_each_key_reads_and_turns_its_own_secret(desk: Desk) -> None:
    first = await ask(desk.room, GetCallbackSecret(), caller=OWNER)
    assert first.keys() == {"secret"}
    assert first != await ask(desk.room, GetCallbackSecret())
    turned = await ask(desk.room, RotateCallbackSecret(), caller=OWNER)
    assert turned["secret"] != first["secret"]
    assert turned["previousUntil"] == "2026-11-16T12:00:00Z"
    assert await ask(desk.room, GetCallbackSecret(), caller=OWNER) == turned
    desk.store.clock.moment += timedelta(days=1)
    later = await ask(desk.room, GetCallbackSecret(), caller=OWNER)
    assert later == {"secret": turned["secret"]}


async def test_secret_that_does_not_open_is_said_plainly(desk: Desk, database: Database) -> None:
    await ask(desk.room, GetCallbackSecret(), caller=OWNER)
    room = desk.handlers(desk.sealed(database, b"x" * 32))
    with pytest.raises(Unavailable, match="encryption key"):
        await ask(room, GetCallbackSecret(), caller=OWNER)
