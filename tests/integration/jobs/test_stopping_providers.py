"""A provider that is stopped has none of its jobs go on, however short a time they run."""

import pytest

from fakes.upstream import FakeUpstream, stall
from gateway import TestGateway

QUEUED = {"request": {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}}


@pytest.mark.parametrize("stop", ["CancelWorker", "AdminCancelJobs"])
async def test_job_is_stopped_as_soon_as_its_upstream_has_it(
    serving: TestGateway, upstream: FakeUpstream, stop: str
) -> None:
    upstream.next(stall)
    await serving.call("POST", "/api/QueueOpenAiChatCompletion", QUEUED)
    await upstream.started.reach(1)
    reply = await serving.call("POST", f"/api/{stop}", {"worker": "fake"})
    assert reply.status == 200
    await upstream.cancelled.reach(1)
