"""Callbacks from the outbox to a real receiver that is down, slow, refusing or well."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from aiserver.contract.errors import InvalidRequest, NotFound, TooBusy
from aiserver.jobs.attempts import SCHEDULE
from aiserver.jobs.callback_secrets import CallbackSecrets
from aiserver.jobs.callbacks import Callbacks, new_message_id
from aiserver.jobs.deliveries import Deliveries, Limits
from aiserver.jobs.job import (
    Cancelled,
    Completed,
    Failed,
    FailureKind,
    JobError,
    NewJob,
    Outcome,
)
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import Delivery, DeliveryState, NewDelivery, Outbox, Want
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.jobs.store.sqlite_outbox import SqliteOutbox
from aiserver.kit.clock import Clock, SystemClock
from aiserver.kit.crypto import Cipher
from aiserver.kit.db import Database
from aiserver.kit.outbound import Guard, Outbound, Resolve
from aiserver.kit.outbound import system_resolve as by_system
from aiserver.kit.tables import SqliteTables
from fakes.calls import StillClock
from fakes.outbox import WatchedOutbox
from fakes.receiver import BROKEN, GONE, OK, SILENT, Receiver, busy, redirect
from job_stores import Stores

PENDING, DELIVERED = DeliveryState.PENDING, DeliveryState.DELIVERED
OWN = "https://ai.example"
BODY = b'{"refId":"abc","jobState":"Completed"}'


def milliseconds(clock: Clock) -> int:
    return int(clock.now().timestamp() * 1000)


class Post:
    """Everything that delivers, around one database; time moves by `pass_` only."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        outbox: Outbox | None = None,
        guard: str = "127.0.0.1",
        resolve: Resolve = by_system,
        limits: Limits | None = None,
    ) -> None:
        self.clock = clock or StillClock()
        self.outbox = WatchedOutbox(outbox or SqliteOutbox(database, self.clock))
        self.secrets = CallbackSecrets(
            SqliteTables(database), Cipher(b"k" * 32), self.clock, lambda _: None
        )
        self.outbound = Outbound(Guard(guard), resolve=resolve)
        self.addresses = ReplyAddresses(self.outbound, own=[OWN])
        self.sunk: list[tuple[Mapping[str, str], bytes]] = []
        self.sink_holds: asyncio.Event | None = None
        self.sink_answers: Callable[[], int] = lambda: 200
        self.limits = limits or Limits(seconds=5)
        self.deliveries = self.deliverer()

    def deliverer(self) -> Deliveries:
        return Deliveries(
            self.outbox,
            self.addresses,
            self.secrets,
            self.outbound,
            self.clock,
            sink=self._sink,
            limits=self.limits,
            random=lambda: 0.0,
        )

    async def _sink(self, headers: Mapping[str, str], body: bytes) -> int:
        self.sunk.append((headers, body))
        if self.sink_holds is not None:
            await self.sink_holds.wait()
        return self.sink_answers()

    async def send(
        self, url: str, *, count: int = 1, key_id: int = 1, body: bytes = BODY
    ) -> list[str]:
        reply_to = self.addresses.read(url)
        ids = [new_message_id() for _ in range(count)]
        for message_id in ids:
            await self.outbox.add(
                NewDelivery(
                    id=message_id,
                    job_id=None,
                    key_id=key_id,
                    url=reply_to.url,
                    receiver=reply_to.receiver,
                    verb=reply_to.verb,
                    body=body,
                    due=milliseconds(self.clock),
                )
            )
        self.deliveries.wake()
        return ids

    def pass_(self, seconds: float) -> None:
        assert isinstance(self.clock, StillClock)
        self.clock.moment += timedelta(seconds=seconds)
        self.deliveries.wake()

    async def row(self, message_id: str) -> Delivery:
        found = await self.outbox.delivery(message_id)
        assert found is not None
        return found

    async def state(self, message_id: str) -> DeliveryState:
        return (await self.row(message_id)).state


@asynccontextmanager
async def delivering(post: Post) -> AsyncGenerator[Post]:
    task = asyncio.create_task(post.deliveries.run())
    try:
        yield post
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await post.outbound.close()


@pytest.fixture
async def post(database: Database) -> AsyncIterator[Post]:
    async with delivering(Post(database)) as running:
        yield running


@pytest.fixture
async def receiver(post: Post) -> AsyncIterator[Receiver]:
    secret = (await post.secrets.of(1)).current
    async with Receiver(secret=secret, now=post.clock.now) as running:
        yield running


@pytest.fixture
async def jobs(post: Post, database: Database, tmp_path: Path) -> AsyncIterator[SqliteJobs]:
    announce = Callbacks(post.addresses).of
    opened = await SqliteJobs.open(database, post.clock, tmp_path / "jobs", announce=announce)
    yield opened
    await opened.close()


async def test_receiver_down_then_broken_then_up_gets_each_once(
    database: Database, store: Stores
) -> None:
    post = Post(database, clock=store.clock, outbox=store.outbox)
    secret = (await post.secrets.of(1)).current
    async with delivering(post), Receiver(secret=secret, now=post.clock.now) as receiver:
        await survives_it_all(post, receiver)


async def survives_it_all(post: Post, receiver: Receiver) -> None:
    await receiver.down()
    ids = await post.send(receiver.url, count=10)
    await post.outbox.recorded.reach(10)
    assert receiver.received == []

    await receiver.up()
    receiver.next(*[BROKEN] * 10)
    post.pass_(SCHEDULE[1])
    await post.outbox.recorded.reach(20)
    assert sorted(got.id for got in receiver.received) == sorted(ids)

    post.pass_(SCHEDULE[2])
    await post.outbox.recorded.reach(30)
    taken = [got.id for got in receiver.received if got.answer is OK]
    assert sorted(taken) == sorted(ids)
    assert all(got.verified for got in receiver.received)
    assert {await post.state(message_id) for message_id in ids} == {DELIVERED}

    post.pass_(SCHEDULE[-1])
    assert await post.deliveries.round() > 0
    assert len(receiver.received) == 20


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Completed(result=b'{"id":"chatcmpl-1","choices":[]}'), "Completed"),
        (
            Failed(
                error=JobError(
                    code="UpstreamFailed", message="down", status=502, kind=FailureKind.UPSTREAM
                )
            ),
            "Failed",
        ),
        (Cancelled(), "Cancelled"),
    ],
)
async def test_job_that_ends_calls_back(
    post: Post, receiver: Receiver, jobs: SqliteJobs, outcome: Outcome, state: str
) -> None:
    asked = NewJob(
        operation="OpenAiChatCompletion",
        kind="chat",
        model="fast",
        key_id=1,
        request=b"{}",
        reply_to=f"PUT {receiver.url}?id=1",
        echo="mine",
    )
    accepted = await jobs.enqueue(asked)
    wants = [Want("chat", "fast", "", 1)]
    [claimed] = await jobs.claim("me", wants, until=milliseconds(post.clock) + 15_000)
    changed = await jobs.finish(claimed.fence, outcome)
    assert changed is not None
    assert changed.called_back
    post.deliveries.wake()
    await post.outbox.recorded.reach(1)

    [got] = receiver.received
    assert (got.verb, got.path, got.verified) == ("PUT", "/hook?id=1", True)
    said: Any = json.loads(got.body)
    assert (said["refId"], said["jobId"]) == (accepted.ref_id, accepted.id)
    assert (said["jobState"], said["state"]) == (state, "mine")
    assert ("choices" in said) is (state == "Completed")
    assert ("responseStatus" in said) is (state != "Completed")
    found = await jobs.find(id=accepted.id)
    assert found is not None
    assert found.notified is not None


async def test_attempts_are_kept_in_a_log(post: Post, receiver: Receiver) -> None:
    receiver.next(BROKEN)
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    post.pass_(5)
    await post.outbox.recorded.reach(2)
    first, second = await post.outbox.attempts(message_id)
    assert (first.attempt, first.status) == (1, 500)
    assert first.error == "The receiver answered 500: it broke"
    assert (second.attempt, second.status, second.error) == (2, 200, None)
    assert second.at - first.at == 5_000


async def test_request_is_what_a_receiver_expects(post: Post, receiver: Receiver) -> None:
    [message_id] = await post.send(f"PUT {receiver.url}?CorrelationId=1%202")
    await receiver.reach(1)
    got = receiver.received[0]
    assert (got.verb, got.path, got.body) == ("PUT", "/hook?CorrelationId=1%202", BODY)
    assert got.headers["content-type"] == "application/json"
    assert got.id == message_id


async def test_public_verifier_accepts_a_callback_of_now(database: Database) -> None:
    async with delivering(Post(database, clock=SystemClock())) as post, Receiver() as receiver:
        await post.send(receiver.url)
        await receiver.reach(1)
        got = receiver.received[0]
        secret = (await post.secrets.of(1)).current
        assert Webhook(secret).verify(got.body, got.headers) == json.loads(BODY)


async def test_given_up_after_the_last_attempt(post: Post, receiver: Receiver) -> None:
    receiver.next(*[BROKEN] * 20)
    [message_id] = await post.send(receiver.url)
    for attempt, wait in enumerate(SCHEDULE, start=1):
        post.pass_(wait)
        await post.outbox.recorded.reach(attempt)
    assert await post.state(message_id) is DeliveryState.FAILED
    assert len(receiver.received) == len(SCHEDULE)
    assert all(got.verified for got in receiver.received)


async def test_nothing_is_sent_before_it_is_due(post: Post, receiver: Receiver) -> None:
    receiver.next(BROKEN)
    await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    post.pass_(4.999)
    assert await post.deliveries.round() == pytest.approx(0.002, abs=0.001)
    assert len(receiver.received) == 1


async def test_gone_receiver_is_left_alone(post: Post, receiver: Receiver) -> None:
    receiver.next(GONE)
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert await post.state(message_id) is DeliveryState.DISABLED
    post.pass_(SCHEDULE[-1])
    await post.deliveries.round()
    assert len(receiver.received) == 1


async def test_retry_after_is_kept(post: Post, receiver: Receiver) -> None:
    receiver.next(busy("600"))
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert (await post.row(message_id)).due == milliseconds(post.clock) + 600_000


async def test_redirect_counts_as_a_failure(post: Post, receiver: Receiver) -> None:
    receiver.next(redirect(f"{receiver.url}/elsewhere"))
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert (await post.row(message_id)).last_status == 302
    assert await post.state(message_id) is PENDING
    assert [got.path for got in receiver.received] == ["/hook"]


async def test_silent_receiver_is_given_a_bounded_time(database: Database) -> None:
    slow = Post(database, limits=Limits(seconds=0.05))
    async with delivering(slow) as post, Receiver() as receiver:
        receiver.next(SILENT)
        [message_id] = await post.send(receiver.url)
        await post.outbox.recorded.reach(1)
        row = await post.row(message_id)
        assert (row.state, row.last_status) == (PENDING, None)
        assert "in time" in (row.last_error or "")


async def test_slow_receiver_does_not_delay_another(database: Database) -> None:
    post = Post(database, limits=Limits(seconds=30, per_receiver=4))
    async with delivering(post), Receiver() as slow, Receiver() as well:
        slow.next(*[SILENT] * 50)
        await post.send(slow.url, count=50)
        await slow.reach(4)
        await post.send(well.url, count=50)
        await well.reach(50)
        await post.outbox.recorded.reach(50)
        while post.deliveries.at_work > 4:
            await asyncio.sleep(0)
        assert len(slow.received) == 4


async def test_deliveries_at_work_are_bounded(database: Database) -> None:
    post = Post(database, limits=Limits(seconds=30, most=3, per_receiver=2))
    async with delivering(post), Receiver() as one, Receiver() as other:
        for receiver in (one, other):
            receiver.next(*[SILENT] * 10)
            await post.send(receiver.url, count=10)
        await one.reach(1)
        await other.reach(1)
        while post.deliveries.at_work < 3:
            await asyncio.sleep(0)
        assert await post.deliveries.round() > 0
        assert post.deliveries.at_work == 3
        assert len(one.received) + len(other.received) <= 3


async def test_work_behind_a_busy_receiver_is_looked_at_soon(database: Database) -> None:
    post = Post(database, limits=Limits(seconds=30, per_receiver=1))
    async with Receiver() as slow:
        slow.next(SILENT)
        await post.send(slow.url, count=2)
        async with delivering(post):
            await slow.reach(1)
            assert 0 < await post.deliveries.round() <= 1


async def test_rotated_secret_signs_the_next_attempt(post: Post, receiver: Receiver) -> None:
    receiver.next(BROKEN)
    await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    new = await post.secrets.rotate(1)
    post.pass_(5)
    await post.outbox.recorded.reach(2)
    got = receiver.received[1]
    assert got.verified
    assert receiver.verifies(got.headers, got.body, new.current)
    assert receiver.received[0].id == got.id


async def test_each_key_signs_with_its_own_secret(post: Post, receiver: Receiver) -> None:
    await post.send(receiver.url, key_id=2)
    await receiver.reach(1)
    assert not receiver.received[0].verified


async def test_name_that_turns_private_is_not_called(database: Database) -> None:
    answers = ["8.8.8.8", "127.0.0.1"]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return [answers.pop(0)]

    async with Receiver() as receiver:
        post = Post(database, guard="", resolve=rebinding)
        url = f"http://hooks.example:{receiver.port}/"
        await post.addresses.admit(url)
        async with delivering(post):
            [message_id] = await post.send(url)
            await post.outbox.recorded.reach(1)
            row = await post.row(message_id)
            assert "not a public address" in (row.last_error or "")
            assert "127.0.0.1" not in (row.last_error or "")
        assert receiver.received == []


async def test_redelivery_has_the_same_id(post: Post, receiver: Receiver) -> None:
    receiver.next(GONE)
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert await post.outbox.redeliver(message_id)
    post.deliveries.wake()
    await post.outbox.recorded.reach(2)
    assert [got.id for got in receiver.received] == [message_id] * 2
    assert await post.state(message_id) is DELIVERED


async def test_redelivery_of_one_that_was_given_up_is_tried_more_than_once(
    post: Post, receiver: Receiver
) -> None:
    receiver.next(*[BROKEN] * (len(SCHEDULE) + 1))
    [message_id] = await post.send(receiver.url)
    for attempt, wait in enumerate(SCHEDULE, start=1):
        post.pass_(wait)
        await post.outbox.recorded.reach(attempt)
    assert await post.outbox.redeliver(message_id)
    post.deliveries.wake()
    await post.outbox.recorded.reach(len(SCHEDULE) + 1)
    assert await post.state(message_id) is PENDING
    post.pass_(SCHEDULE[1])
    await post.outbox.recorded.reach(len(SCHEDULE) + 2)
    assert await post.state(message_id) is DELIVERED


async def test_one_key_with_many_slow_receivers_leaves_room_for_others(database: Database) -> None:
    limits = Limits(seconds=30, most=8, per_receiver=1, per_key=4)
    post = Post(database, limits=limits)
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(Receiver()) for _ in range(10)]
        well = await stack.enter_async_context(Receiver())
        await stack.enter_async_context(delivering(post))
        for receiver in slow:
            receiver.next(SILENT)
            await post.send(receiver.url, key_id=1)
        # A round adds two at most, and none that could bring a key over its four.
        while post.deliveries.at_work < 3:
            await asyncio.sleep(0)
        await post.send(well.url, key_id=2)
        await well.reach(1)
        await post.outbox.recorded.reach(1)
        assert sum(len(receiver.received) for receiver in slow) <= 4


async def test_callback_whose_content_was_forgotten_is_given_up(
    post: Post, receiver: Receiver
) -> None:
    receiver.next(BROKEN)
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert await post.outbox.blank(milliseconds(post.clock) + 1) == 1
    post.pass_(SCHEDULE[1])
    await post.outbox.recorded.reach(2)
    row = await post.row(message_id)
    assert (row.state, row.last_error) == (
        DeliveryState.FAILED,
        "The callback's content was deleted.",
    )
    assert len(receiver.received) == 1


async def test_nothing_is_sent_unsigned(database: Database) -> None:
    post = Post(database)
    await post.secrets.of(1)
    post.secrets = CallbackSecrets(
        SqliteTables(database), Cipher(b"x" * 32), post.clock, lambda _: None
    )
    post.deliveries = post.deliverer()
    async with delivering(post), Receiver() as receiver:
        [message_id] = await post.send(receiver.url)
        await post.outbox.recorded.reach(1)
        row = await post.row(message_id)
        assert row.state is PENDING
        assert "rotate it" in (row.last_error or "")
        assert receiver.received == []


async def test_address_that_became_impossible_is_an_attempt(post: Post) -> None:
    reply_to = post.addresses.read("https://hooks.example/")
    await post.outbox.add(
        NewDelivery(
            id="msg_1",
            key_id=1,
            url=f"{OWN}/api/AdminCancelJobs",
            receiver=reply_to.receiver,
            body=BODY,
            due=milliseconds(post.clock),
        )
    )
    post.deliveries.wake()
    await post.outbox.recorded.reach(1)
    row = await post.row("msg_1")
    assert (row.state, row.attempt) == (PENDING, 1)
    assert "/dummyreplyto" in (row.last_error or "")


async def test_own_sink_is_served_in_process(post: Post, receiver: Receiver) -> None:
    [message_id] = await post.send(f"{OWN}/dummyreplyto")
    await post.outbox.recorded.reach(1)
    [(headers, body)] = post.sunk
    assert body == BODY
    assert headers["webhook-id"] == message_id
    assert receiver.secret is not None
    assert receiver.verifies(dict(headers), body, receiver.secret)
    assert await post.state(message_id) is DELIVERED


async def test_refusal_of_the_own_sink_is_tried_again(post: Post) -> None:
    def refuse() -> int:
        raise NotFound("There is no sink.")

    post.sink_answers = refuse
    [message_id] = await post.send(f"{OWN}/dummyreplyto")
    await post.outbox.recorded.reach(1)
    row = await post.row(message_id)
    assert (row.state, row.last_status) == (PENDING, 404)


async def test_own_sink_is_given_a_bounded_time(database: Database) -> None:
    async with delivering(Post(database, limits=Limits(seconds=0.05))) as post:
        post.sink_holds = asyncio.Event()
        [message_id] = await post.send(f"{OWN}/dummyreplyto")
        await post.outbox.recorded.reach(1)
        assert "in time" in ((await post.row(message_id)).last_error or "")


async def test_unforeseen_failure_is_an_attempt(post: Post) -> None:
    def fail() -> int:
        raise RuntimeError("a bug")

    post.sink_answers = fail
    [message_id] = await post.send(f"{OWN}/dummyreplyto")
    await post.outbox.recorded.reach(1)
    row = await post.row(message_id)
    assert (row.state, row.attempt) == (PENDING, 1)
    assert "a bug" not in (row.last_error or "")


async def test_receiver_that_was_interrupted_gets_it_again(database: Database) -> None:
    post = Post(database)
    async with Receiver() as receiver:
        receiver.next(SILENT)
        async with delivering(post):
            [message_id] = await post.send(receiver.url)
            await receiver.reach(1)
        assert post.deliveries.at_work == 0
        post.pass_(60)
        post.deliveries = post.deliverer()
        async with delivering(post):
            await post.outbox.recorded.reach(1)
        assert [got.id for got in receiver.received] == [message_id] * 2


async def test_database_that_restarts_sends_nothing_twice(post: Post, receiver: Receiver) -> None:
    post.outbox.failures = 1
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    assert post.outbox.refused.count == 1
    assert await post.state(message_id) is DELIVERED
    assert len(receiver.received) == 1


async def test_outbox_that_cannot_be_read_stops_no_delivery(post: Post, receiver: Receiver) -> None:
    post.outbox.unreadable = True
    post.deliveries.wake()
    await post.outbox.refused.reach(1)
    post.outbox.unreadable = False
    await post.send(receiver.url)
    await receiver.reach(1)


async def test_trial_of_an_address_tells_what_came(post: Post, receiver: Receiver) -> None:
    receiver.next(OK, BROKEN)
    good = await post.deliveries.try_once(receiver.url, key_id=1)
    bad = await post.deliveries.try_once(receiver.url, key_id=1)
    assert (good.delivered, good.status, good.error) == (True, 200, None)
    assert (bad.delivered, bad.status) == (False, 500)
    assert "it broke" in (bad.error or "")
    got = receiver.received[0]
    assert got.verified
    assert got.id == good.id
    said: Any = json.loads(got.body)
    assert said["test"] is True
    with pytest.raises(InvalidRequest):
        await post.deliveries.try_once("http://10.0.0.1/", key_id=1)


async def test_trials_of_addresses_are_bounded(database: Database) -> None:
    post = Post(database, limits=Limits(seconds=30, tests=2))
    async with Receiver() as receiver:
        receiver.next(SILENT, SILENT)
        waiting = [
            asyncio.create_task(post.deliveries.try_once(receiver.url, key_id=1)) for _ in range(2)
        ]
        await receiver.reach(2)
        with pytest.raises(TooBusy):
            await post.deliveries.try_once(receiver.url, key_id=1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await post.deliveries.try_once(receiver.url, key_id=1)).delivered
        await post.outbound.close()


async def test_trials_of_one_key_leave_room_for_others(database: Database) -> None:
    post = Post(database, limits=Limits(seconds=30, tests=4, tests_per_key=2))
    async with Receiver() as receiver:
        receiver.next(SILENT, SILENT)
        waiting = [
            asyncio.create_task(post.deliveries.try_once(receiver.url, key_id=1)) for _ in range(2)
        ]
        await receiver.reach(2)
        with pytest.raises(TooBusy, match="Your API key") as refused:
            await post.deliveries.try_once(receiver.url, key_id=1)
        assert refused.value.http_status == 429
        assert (await post.deliveries.try_once(receiver.url, key_id=2)).status == 200
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await post.deliveries.try_once(receiver.url, key_id=1)).status == 200
        await post.outbound.close()


async def test_endless_retry_after_is_an_ordinary_attempt(post: Post, receiver: Receiver) -> None:
    receiver.next(busy("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", 503))
    [message_id] = await post.send(receiver.url)
    await post.outbox.recorded.reach(1)
    row = await post.row(message_id)
    assert (row.state, row.last_status) == (PENDING, 503)
