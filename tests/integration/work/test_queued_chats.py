"""Chats that are queued: stored, done by their operation's own handler, asked after, called back."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from fakes.load import PacedUpstream
from fakes.receiver import Receiver
from fakes.upstream import FakeUpstream, stall, status
from gateway import Reply, TestGateway, running

ASKED: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "hello there"}],
}


async def put(gateway: TestGateway, request: Any = ASKED, **more: Any) -> Reply:
    key = more.pop("key", None)
    keyed = {"key": key} if key else {}
    body = {"request": request, **more}
    return await gateway.call("POST", "/api/QueueOpenAiChatCompletion", body, **keyed)


async def status_of(gateway: TestGateway, ref_id: str, **keyed: Any) -> Reply:
    return await gateway.call("GET", f"/api/GetOpenAiChatStatus?RefId={ref_id}", **keyed)


async def ended(gateway: TestGateway, ref_id: str) -> Any:
    """The job's last status, by its event stream, which ends with the job."""
    job = (await status_of(gateway, ref_id)).json()
    await gateway.call("GET", f"/api/jobs/{job['jobId']}/events")
    return (await status_of(gateway, ref_id)).json()


async def test_queued_chat_is_answered_by_the_chat_handler(serving: TestGateway) -> None:
    reply = await put(serving, refId="a1", tag="t")
    assert reply.status == 200, reply.body
    queued = reply.json()
    assert queued["refId"] == "a1"
    assert queued["statusUrl"] == "/api/GetOpenAiChatStatus?RefId=a1"
    job = await ended(serving, "a1")
    assert (job["jobId"], job["refId"], job["jobState"]) == (queued["id"], "a1", "Completed")
    assert job["result"]["choices"][0]["message"]["content"] == "echo: hello there"
    assert "responseStatus" not in job


async def test_queued_generation_is_answered_in_the_form_of_ollama(serving: TestGateway) -> None:
    body = {"request": {"model": "fake-model", "prompt": "hello"}, "refId": "g"}
    reply = await serving.call("POST", "/api/QueueOllamaGeneration", body)
    assert reply.status == 200, reply.body
    await serving.call("GET", f"/api/jobs/{reply.json()['id']}/events")
    found = await serving.call("GET", "/api/GetOllamaGenerationStatus?RefId=g")
    assert found.json()["result"]["response"] == "echo: hello"


async def test_unknown_model_is_refused_before_it_is_stored(serving: TestGateway) -> None:
    reply = await put(serving, {**ASKED, "model": "none"})
    assert (reply.status, reply.problem()["errorCode"]) == (404, "NotFound")
    counts = (await serving.call("GET", "/api/AdminJobInfo")).json()
    assert counts["tableCounts"].get("BackgroundJob", 0) == 0


async def test_chat_without_a_model_is_refused_with_its_name(serving: TestGateway) -> None:
    reply = await put(serving, {"messages": ASKED["messages"]})
    assert reply.status == 400
    assert reply.problem()["errors"][0]["fieldName"] == "Model"


async def test_key_may_queue_only_the_models_it_may_use(serving: TestGateway) -> None:
    key = await serving.key(models=["another"])
    assert (await put(serving, key=key)).status == 403


async def test_caller_fault_at_the_upstream_is_not_tried_again(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    error = {"error": {"message": "too long", "type": "invalid_request_error"}}
    upstream.next(status(400, error))
    await put(serving, refId="bad")
    job = await ended(serving, "bad")
    assert job["jobState"] == "Failed"
    assert "too long" in job["responseStatus"]["message"]
    assert upstream.received.count == 1


async def test_job_of_another_key_is_not_there(serving: TestGateway) -> None:
    stranger = await serving.key()
    await put(serving, refId="mine")
    assert (await status_of(serving, "mine", key=stranger)).status == 404


async def test_same_ref_id_again_is_a_conflict(serving: TestGateway) -> None:
    assert (await put(serving, refId="once")).status == 200
    assert (await put(serving, refId="once")).status == 409


async def test_provider_never_runs_more_jobs_than_it_has_slots(
    gateway: TestGateway,
) -> None:
    async with PacedUpstream() as upstream:
        upstream.gate.clear()
        await gateway.provider("one", upstream.base_url, concurrency=2)
        for number in range(8):
            assert (await put(gateway, refId=f"n{number}")).status == 200
        await upstream.started.reach(2)
        upstream.gate.set()
        jobs = [await ended(gateway, f"n{number}") for number in range(8)]
        assert {job["jobState"] for job in jobs} == {"Completed"}
        assert upstream.most_running == 2


async def test_cancelled_job_stops_at_its_upstream(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.provider("one", upstream.base_url)
    upstream.next(stall)
    queued = (await put(gateway, refId="c")).json()
    await upstream.started.reach(1)
    reply = await gateway.call("DELETE", f"/api/jobs/{queued['id']}")
    assert reply.status == 200, reply.body
    await upstream.cancelled.reach(1)
    assert (await ended(gateway, "c"))["jobState"] == "Cancelled"


async def test_callback_is_signed_and_has_the_answer_and_the_ids(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with running(tmp_path / "data", migrated, OUTBOUND_ALLOW="127.0.0.1") as gateway:
        await gateway.provider("fake", upstream.base_url)
        shown = await gateway.call("GET", "/api/GetCallbackSecret")
        async with Receiver(secret=shown.json()["secret"]) as receiver:
            reply = await put(gateway, refId="cb", replyTo=receiver.url, state="echo-me")
            assert reply.status == 200, reply.body
            await receiver.reach(1)
            [call] = receiver.received
    assert call.verified
    body = msgspec.json.decode(call.body)
    assert body["choices"][0]["message"]["content"] == "echo: hello there"
    assert (body["refId"], body["jobState"], body["state"]) == ("cb", "Completed", "echo-me")


async def test_reply_to_a_private_address_is_refused_at_once(serving: TestGateway) -> None:
    reply = await put(serving, replyTo="http://127.0.0.1:9/x")
    assert reply.status == 400
    assert "OUTBOUND_ALLOW" in reply.problem()["message"]


async def test_stopped_server_leaves_its_job_for_the_next_one(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    data = tmp_path / "data"
    upstream.next(stall)
    async with running(data, migrated, SHUTDOWN_GRACE="0s") as first:
        await first.provider("fake", upstream.base_url)
        await put(first, refId="kept")
        await upstream.started.reach(1)
    async with running(data) as second:
        job = await ended(second, "kept")
    assert job["jobState"] == "Completed"


async def test_settled_job_is_in_the_ledger_once(serving: TestGateway) -> None:
    await put(serving, refId="paid")
    await ended(serving, "paid")
    await serving.app._ledger.flush()
    rows = serving.app._data.database.read("SELECT provider, completion_tokens FROM ledger")
    assert len(rows) == 1
    assert rows[0][0] == "fake"


async def test_key_that_was_made_shows_its_callback_secret_once(gateway: TestGateway) -> None:
    made = (await gateway.call("POST", "/api/AdminCreateApiKey", {"name": "app"})).json()
    shown = await gateway.call("GET", "/api/GetCallbackSecret", key=made["result"])
    assert made["callbackSecret"].startswith("whsec_")
    assert shown.json()["secret"] == made["callbackSecret"]


async def test_caller_who_waits_no_longer_gets_the_ids_and_the_job_goes_on(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(stall)
    reply = await serving.call("POST", "/v1/chat/completions", ASKED, headers={"Prefer": "wait=0"})
    assert reply.status == 202, reply.body
    queued = reply.json()
    assert reply.headers["location"] == queued["statusUrl"]
    assert (await status_of(serving, queued["refId"])).json()["jobState"] in ("Queued", "Started")
    await serving.call("POST", "/api/CancelJob", {"refId": queued["refId"]})


async def test_caller_who_prefers_it_is_answered_at_once(serving: TestGateway) -> None:
    reply = await serving.call(
        "POST", "/v1/chat/completions", ASKED, headers={"Prefer": "respond-async"}
    )
    assert reply.status == 202
    assert (await ended(serving, reply.json()["refId"]))["jobState"] == "Completed"


async def test_caller_who_waits_long_enough_gets_the_answer(serving: TestGateway) -> None:
    reply = await serving.call("POST", "/v1/chat/completions", ASKED, headers={"Prefer": "wait=30"})
    assert reply.status == 200
    assert reply.json()["choices"][0]["message"]["content"] == "echo: hello there"


async def test_repeated_call_runs_once_and_says_so(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    once = {"Idempotency-Key": "order-1"}
    calls = [serving.call("POST", "/v1/chat/completions", ASKED, headers=once) for _ in range(5)]
    replies = await asyncio.gather(*calls)
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert sum("idempotency-replayed" in reply.headers for reply in replies) == 4
    assert upstream.received.count == 1
    other = {**ASKED, "messages": [{"role": "user", "content": "something else"}]}
    clash = await serving.call("POST", "/v1/chat/completions", other, headers=once)
    assert clash.status == 409


async def test_repeated_failure_is_told_again_and_not_tried_again(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(status(400, {"error": {"message": "too long", "type": "invalid_request_error"}}))
    once = {"Idempotency-Key": "order-2"}
    first = await serving.call("POST", "/v1/chat/completions", ASKED, headers=once)
    again = await serving.call("POST", "/v1/chat/completions", ASKED, headers=once)
    assert (first.status, again.status) == (400, 400)
    assert upstream.received.count == 1


async def test_repeatable_call_cannot_be_streamed(serving: TestGateway) -> None:
    once = {"Idempotency-Key": "order-3"}
    reply = await serving.call(
        "POST", "/v1/chat/completions", {**ASKED, "stream": True}, headers=once
    )
    assert reply.status == 400
    assert "stream" in reply.json()["error"]["message"]


async def test_slot_of_a_job_that_may_not_run_any_more_is_free_again(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.provider("one", upstream.base_url, concurrency=1)
    key = await gateway.key(models=["fake-model"])
    upstream.next(stall)
    busy = (await put(gateway, refId="busy")).json()
    await upstream.started.reach(1)
    assert (await put(gateway, key=key, refId="late")).status == 200
    [made] = (await gateway.call("GET", "/api/AdminQueryApiKeys")).json()["results"]
    update = {"id": made["id"], "models": ["another"]}
    assert (await gateway.call("POST", "/api/AdminUpdateApiKey", update)).status == 200
    await gateway.call("POST", "/api/CancelJob", {"id": busy["id"]})
    assert (await ended(gateway, "late"))["jobState"] == "Failed"
    assert (await gateway.chat()).status == 200
    assert [gateway.app._pool.running(p.id) for p in gateway.app._pool.providers()] == [0]
