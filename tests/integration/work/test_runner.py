"""What is kept of a job that was run, and what the history says of those who followed it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from aiserver.jobs.attempt import Attempt
from aiserver.jobs.job import Failed, FailureKind
from aiserver.kit.clock import SystemClock
from aiserver.work.runner import JobRunner
from fakes.upstream import FakeUpstream, status
from gateway import TestGateway

CHAT: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "hello"}],
}


class NoSlot:
    worker = None

    def give(self, trace: object) -> None: ...

    def release(self) -> None: ...


async def queued(gateway: TestGateway, **members: Any) -> Any:
    reply = await gateway.call(
        "POST", "/api/QueueOpenAiChatCompletion", {"request": CHAT, **members}
    )
    assert reply.status == 200, reply.body
    return reply.json()


async def test_secret_in_an_upstreams_words_is_not_kept_with_the_job(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    later = datetime.now(UTC) + timedelta(days=20)
    made = await queued(serving, runAfter=later.isoformat())
    job = await serving.app._desk.queue.store.find(id=made["id"])
    assert job is not None
    said = "too long for sk-12345678"
    upstream.next(status(400, {"error": {"message": said, "type": "invalid_request_error"}}))
    runner = JobRunner(
        serving.app._operations,
        serving.app.settlement,
        SystemClock(),
        caller_of=serving.app._ring.caller_of,
        redact=lambda text: text.replace("sk-12345678", "***"),
    )
    outcome = await runner.run(Attempt(job, NoSlot(), lambda _: None))
    assert isinstance(outcome, Failed)
    assert outcome.error.kind is FailureKind.REQUEST
    assert "sk-" not in outcome.error.message
    assert 0 < len(outcome.error.message) <= 2_000


async def test_stream_of_events_that_came_to_its_end_is_a_success(serving: TestGateway) -> None:
    made = await queued(serving)
    path = f"/api/jobs/{made['id']}/events"
    reply = await serving.call("GET", path, headers={"X-Request-Id": "followed"})
    assert b"event: finished" in reply.body
    assert (await serving.recorded("followed"))["statusCode"] == 200
