"""Chats that are queued: stored, done by their operation's own handler, asked after, called back."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.contract.caller import ADMINISTRATOR
from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Call, operation_of
from aiserver.work.deferred import manner_of
from fakes.calls import ended_call
from fakes.load import PacedUpstream
from fakes.ollama import MODEL, FakeOllama
from fakes.receiver import Receiver
from fakes.upstream import FakeUpstream, stall, status
from gateway import Reply, TestGateway, running

ASKED: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "hello there"}],
}


async def put(gateway: TestGateway, request: Any = ASKED, **more: Any) -> Reply:
    keyed = {name: more.pop(name) for name in ("key", "headers") if more.get(name)}
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


async def test_urgent_job_of_another_model_passes_those_that_wait(gateway: TestGateway) -> None:
    async with PacedUpstream() as upstream:
        upstream.gate.clear()
        models = [{"model": "fake-model"}, {"model": "other"}]
        await gateway.provider("one", upstream.base_url, concurrency=1, models=models)
        for number in range(4):
            assert (await put(gateway, refId=f"n{number}")).status == 200
        urgent = {**ASKED, "model": "other"}
        assert (await put(gateway, urgent, refId="u", headers={"Job-Priority": "5"})).status == 200
        upstream.gate.set()
        for ref_id in ("n0", "n1", "n2", "n3", "u"):
            await ended(gateway, ref_id)
        assert [request.json()["model"] for request in upstream.requests][:3] == [
            "fake-model",
            "other",
            "fake-model",
        ]


async def test_direct_calls_without_end_do_not_keep_a_job_out(gateway: TestGateway) -> None:
    async with PacedUpstream() as upstream:
        upstream.gate.clear()
        await gateway.provider("one", upstream.base_url, concurrency=1)
        stop = asyncio.Event()

        async def caller() -> None:
            while not stop.is_set():
                assert (await gateway.call("POST", "/v1/chat/completions", ASKED)).status == 200

        callers = [asyncio.create_task(caller()) for _ in range(3)]
        await upstream.started.reach(1)
        await put(gateway, refId="queued")
        upstream.gate.set()
        try:
            async with asyncio.timeout(10):
                job = await ended(gateway, "queued")
        finally:
            stop.set()
            await asyncio.gather(*callers)
        assert job["jobState"] == "Completed"


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
    rows = await serving.rows("SELECT provider, completion_tokens FROM ledger")
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
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert upstream.received.count == 1


STREAMED: dict[str, Any] = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}


async def test_repeated_stream_runs_once_and_is_a_stream_again(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    once = {"Idempotency-Key": "order-3"}
    calls = [serving.call("POST", "/v1/chat/completions", STREAMED, headers=once) for _ in range(5)]
    replies = await asyncio.gather(*calls)
    assert {(reply.status, reply.headers["content-type"]) for reply in replies} == {
        (200, "text/event-stream; charset=utf-8")
    }
    assert sum("idempotency-replayed" in reply.headers for reply in replies) == 4
    assert len({reply.body for reply in replies}) == 1
    *chunks, last, end = replies[0].events()
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert (said, end) == ("echo: hello there", "[DONE]")
    assert last["usage"]["completion_tokens"] > 0
    assert upstream.received.count == 1
    whole = await serving.call("POST", "/v1/chat/completions", ASKED, headers=once)
    assert whole.status == 409


async def test_stream_that_failed_is_told_with_its_status(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(status(400, {"error": {"message": "too long", "type": "invalid_request_error"}}))
    once = {"Idempotency-Key": "order-4"}
    calls = [
        await serving.call("POST", "/v1/chat/completions", STREAMED, headers=once) for _ in range(2)
    ]
    assert [reply.status for reply in calls] == [400, 400]
    assert upstream.received.count == 1


async def test_stream_is_kept_open_until_the_answer_is_there(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(stall)
    serving.app._desk.deferred._silence = 0.02
    once = {"Idempotency-Key": "order-5", "X-Request-Id": "slow-stream"}
    opened = await serving.open("POST", "/v1/chat/completions", STREAMED, headers=once)
    async with opened as response:
        assert response.status == 200
        await upstream.started.reach(1)
        [job] = (await serving.call("GET", "/api/AdminQueryBackgroundJobs")).json()["results"]
        await serving.call("POST", "/api/CancelJob", {"id": job["id"]})
        body = await response.read(1_000_000)
    assert body.startswith(b": still here\n\n")
    assert b'"Cancelled"' in body or b"cancelled" in body
    assert b"[DONE]" not in body
    await serving.recorded("slow-stream")
    entries = (await serving.call("GET", "/api/RequestLogs?take=200")).json()["results"]
    # The job's own attempt bears the id of its call.
    told = {each["statusCode"] for each in entries if each["traceId"] == "slow-stream"}
    assert told == {409, 499}


async def test_stream_in_ollamas_form_is_told_again_in_it(serving: TestGateway) -> None:
    once = {"Idempotency-Key": "order-6"}
    body = {"model": "fake-model", "prompt": "hello", "stream": True}
    first = await serving.call("POST", "/api/generate", body, headers=once)
    again = await serving.call("POST", "/api/generate", body, headers=once)
    assert first.headers["content-type"].startswith("application/x-ndjson")
    assert again.headers["idempotency-replayed"] == "true"
    [line] = again.body.splitlines()
    told = msgspec.json.decode(line)
    assert (told["response"], told["done"]) == ("echo: hello", True)
    assert told["created_at"].endswith("Z")
    assert first.body == again.body


@pytest.mark.parametrize("said", [{}, {"stream": False}], ids=["typed", "ollama"])
@pytest.mark.parametrize("headers", [{"Idempotency-Key": "order-9"}, {"Prefer": "wait=30"}])
async def test_generation_as_a_job_is_answered_in_the_form_of_a_direct_one(
    gateway: TestGateway, said: dict[str, Any], headers: dict[str, str]
) -> None:
    async with FakeOllama() as box:
        models = [{"model": "m", "apiModel": MODEL}]
        await gateway.provider("box", box.base_url, aiTypeId="Ollama", models=models)
        body = {"model": "m", "prompt": "hello", **said}
        direct = await gateway.call("POST", "/api/generate", body)
        told = await gateway.call("POST", "/api/generate", body, headers=headers)
    assert told.json() == direct.json()
    assert type(told.json()["created_at"]) is (str if said else int)


async def test_translated_generation_as_a_job_has_the_time_as_text(serving: TestGateway) -> None:
    once = {"Idempotency-Key": "order-10"}
    body = {"model": "fake-model", "prompt": "hello", "stream": False}
    direct = (await serving.call("POST", "/api/generate", body)).json()
    told = (await serving.call("POST", "/api/generate", body, headers=once)).json()
    assert {n: type(v) for n, v in told.items()} == {n: type(v) for n, v in direct.items()}
    assert told["created_at"].endswith("Z")


async def test_told_stream_ends_well_in_the_history(serving: TestGateway) -> None:
    headers = {"Idempotency-Key": "order-7", "X-Request-Id": "told-stream"}
    await serving.call("POST", "/v1/chat/completions", STREAMED, headers=headers)
    entry = await serving.recorded("told-stream")
    assert entry["statusCode"] == 200


async def test_stream_that_prefers_not_to_wait_is_refused(serving: TestGateway) -> None:
    headers = {"Idempotency-Key": "order-8", "Prefer": "respond-async"}
    reply = await serving.call("POST", "/v1/chat/completions", STREAMED, headers=headers)
    assert reply.status == 400
    assert "stream" in reply.json()["error"]["message"]


async def test_queued_call_that_is_repeated_gets_its_first_job(serving: TestGateway) -> None:
    once = {"Idempotency-Key": "queued-1"}
    body = {"request": ASKED, "refId": "only"}
    path = "/api/QueueOpenAiChatCompletion"
    first = await serving.call("POST", path, body, headers=once)
    again = await serving.call("POST", path, body, headers=once)
    assert (first.status, again.status) == (200, 200)
    assert first.json() == again.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = await serving.call("POST", path, {"request": ASKED}, headers=once)
    assert other.status == 409


async def test_headers_say_when_and_how_urgently_a_job_runs(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.provider("one", upstream.base_url)
    headers = {"Job-Run-After": "3600", "Job-Deadline": "7200", "Job-Priority": "7"}
    path = "/api/QueueOpenAiChatCompletion"
    queued = await gateway.call("POST", path, {"request": ASKED}, headers=headers)
    assert queued.status == 200, queued.body
    direct = await gateway.call(
        "POST", "/v1/chat/completions", ASKED, headers={**headers, "Prefer": "respond-async"}
    )
    assert direct.status == 202
    for reply in (queued, direct):
        job = await gateway.app._desk.queue.store.find(ref_id=reply.json()["refId"])
        assert job is not None
        assert job.run_after is not None
        assert job.deadline is not None
        assert (job.state.value, job.priority) == ("Scheduled", 7)
        assert job.deadline - job.run_after == 3_600_000
    assert upstream.received.count == 0


async def test_job_that_misses_its_deadline_fails_and_is_called_off(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(stall)
    headers = {"Job-Deadline": "0.2", "Prefer": "wait=30"}
    reply = await serving.call("POST", "/v1/chat/completions", ASKED, headers=headers)
    assert reply.status == 504, reply.body
    assert "deadline" in reply.json()["error"]["message"]
    await upstream.cancelled.reach(1)


async def test_headers_that_cannot_be_met_are_refused_before_it_is_stored(
    serving: TestGateway,
) -> None:
    key = await serving.key()
    path, body = "/api/QueueOpenAiChatCompletion", {"request": ASKED}
    for name, text, code in (
        ("Job-Deadline", "soon", 400),
        ("Job-Run-After", "40000000", 400),
        ("Job-Priority", "1", 403),
    ):
        reply = await serving.call("POST", path, body, key=key, headers={name: text})
        assert reply.status == code, reply.body
        assert name in reply.problem()["message"] or code == 403
    counts = (await serving.call("GET", "/api/AdminJobInfo")).json()
    assert counts["tableCounts"].get("JobSummary", 0) == 0


async def test_job_headers_mean_nothing_to_a_direct_call(serving: TestGateway) -> None:
    reply = await serving.call(
        "POST", "/v1/chat/completions", ASKED, headers={"Job-Run-After": "soon"}
    )
    assert reply.status == 200


async def test_recurring_work_of_the_server_is_shown(serving: TestGateway) -> None:
    answer = (await serving.call("GET", "/api/AdminQueryScheduledTasks")).json()
    tasks = {task["name"]: task for task in answer["results"]}
    assert {
        "Archive finished jobs",
        "Ask offline providers whether they are back",
        "Do what has fallen due",
        "Forget old jobs",
    } <= tasks.keys()
    assert tasks["Forget old jobs"]["interval"] == "PT3600S"
    assert all("nextRun" in task or task["lastStatus"] == "Started" for task in tasks.values())


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


@pytest.mark.parametrize("change", ["removed", "disabled", "without the model"])
async def test_repeated_call_is_answered_though_its_model_is_gone(
    serving: TestGateway, upstream: FakeUpstream, change: str
) -> None:
    once = {"Idempotency-Key": "gone-1"}
    queue = "/api/QueueOpenAiChatCompletion", {"request": ASKED}
    calls = (("/v1/chat/completions", ASKED), queue)
    first = [
        await serving.call("POST", path, body, headers={"Idempotency-Key": path})
        for path, body in calls
    ]
    assert [reply.status for reply in first] == [200, 200]
    [provider] = serving.app._pool.providers()
    if change == "removed":
        reply = await serving.call("DELETE", f"/api/DeleteAiProvider?id={provider.id}")
    else:
        members = {"enabled": False} if change == "disabled" else {"models": [{"model": "other"}]}
        body = {"id": provider.id, **members}
        reply = await serving.call("PATCH", "/api/UpdateAiProvider", body)
    assert reply.status < 300, reply.body
    for (path, body), before in zip(calls, first, strict=True):
        again = await serving.call("POST", path, body, headers={"Idempotency-Key": path})
        assert (again.status, again.body) == (200, before.body)
        assert again.headers["idempotency-replayed"] == "true"
        reply = await serving.call("POST", path, {**body, "refId": "x"}, headers=once)
        assert reply.status in (404, 503), reply.body
    other = {**ASKED, "messages": [{"role": "user", "content": "else"}]}
    reply = await serving.call("POST", calls[0][0], other, headers={"Idempotency-Key": calls[0][0]})
    assert reply.status == 409


async def test_key_that_lost_its_model_is_not_answered_again(serving: TestGateway) -> None:
    key = await serving.key(models=["fake-model"])
    once = {"Idempotency-Key": "lost-1"}
    path = "/v1/chat/completions"
    assert (await serving.call("POST", path, ASKED, key=key, headers=once)).status == 200
    [made] = (await serving.call("GET", "/api/AdminQueryApiKeys")).json()["results"]
    update = {"id": made["id"], "models": ["another"]}
    assert (await serving.call("POST", "/api/AdminUpdateApiKey", update)).status == 200
    assert (await serving.call("POST", path, ASKED, key=key, headers=once)).status == 403


# As both chats and generations take it.
EITHER: dict[str, Any] = {**ASKED, "prompt": "hello"}
SAME = [
    ("/v1/chat/completions", "/api/OllamaGeneration", "/api/OpenAiChatCompletion"),
    ("/api/generate", "/api/OpenAiChatCompletion", "/api/OllamaGeneration"),
]
TWINS = ("/api/QueueOllamaGeneration", "/api/QueueOpenAiChatCompletion")


@pytest.mark.parametrize(("first", "other", "again"), SAME)
async def test_key_used_for_another_operation_is_a_conflict(
    serving: TestGateway, upstream: FakeUpstream, first: str, other: str, again: str
) -> None:
    once = {"Idempotency-Key": "op-1"}
    told = await serving.call("POST", first, EITHER, headers=once)
    clash = await serving.call("POST", other, EITHER, headers=once)
    repeated = await serving.call("POST", again, EITHER, headers=once)
    assert (told.status, clash.status, repeated.status) == (200, 409, 200), clash.body
    assert repeated.headers["idempotency-replayed"] == "true"
    assert upstream.received.count == 1


async def test_key_used_for_another_queued_call_is_a_conflict(serving: TestGateway) -> None:
    once = {"Idempotency-Key": "op-2"}
    replies = [
        await serving.call("POST", path, {"request": EITHER}, headers=once)
        for path in (*TWINS, TWINS[0])
    ]
    assert [reply.status for reply in replies] == [200, 409, 200]
    assert replies[0].json() == replies[2].json()


async def refused(gateway: TestGateway, members: dict[str, Any], key: str) -> ApiError:
    """What a call under this Idempotency-Key is answered, before a door prints it."""
    call = Call(
        operation=operation_of(OpenAiChatCompletion),
        caller=ADMINISTRATOR,
        request_id="r",
        trace=ended_call(),
        members=members,
    )
    with pytest.raises(ApiError) as caught:
        await gateway.app._desk.deferred.handler(manner_of(None, key))(None, call)
    return caught.value


@pytest.mark.parametrize("members", [ASKED, STREAMED], ids=["whole", "streamed"])
async def test_failure_that_is_told_again_says_so(
    serving: TestGateway, upstream: FakeUpstream, members: dict[str, Any]
) -> None:
    upstream.next(status(400, {"error": {"message": "too long", "type": "invalid_request_error"}}))
    first, again = [await refused(serving, members, "order-11") for _ in range(2)]
    assert (first.http_status, first.headers) == (400, ())
    assert (again.http_status, again.headers) == (400, ((b"Idempotency-Replayed", b"true"),))
    assert first.message == again.message


async def test_repeated_call_that_has_not_ended_says_so(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(stall)
    serving.app._desk.deferred._wait = 0.02
    first, again = [await refused(serving, ASKED, "order-12") for _ in range(2)]
    assert (first.http_status, first.headers) == (504, ())
    assert (again.http_status, again.headers) == (504, ((b"Idempotency-Replayed", b"true"),))
    assert first.meta == again.meta
    await serving.call("POST", "/api/CancelJob", {"refId": first.meta["refId"]})


async def test_preference_changes_nothing_for_a_queued_call(serving: TestGateway) -> None:
    for number, prefer in enumerate(("respond-async", "wait=30")):
        body = {"request": ASKED, "refId": f"p{number}"}
        path, headers = "/api/QueueOpenAiChatCompletion", {"Prefer": prefer}
        reply = await serving.call("POST", path, body, headers=headers)
        assert (reply.status, reply.json().keys()) == (200, {"id", "refId", "statusUrl"})
        assert "location" not in reply.headers


async def test_job_that_begins_too_late_is_refused(serving: TestGateway) -> None:
    reply = await put(serving, runAfter="9999-12-31T23:59:59Z")
    assert reply.status == 400
    assert reply.problem()["message"] == "'runAfter' may be 30 days ahead at most."


async def test_status_of_another_operations_job_names_the_right_call(
    serving: TestGateway,
) -> None:
    generate = {"request": {"model": "fake-model", "prompt": "hello"}, "refId": "g"}
    assert (await put(serving, refId="c")).status == 200
    assert (await serving.call("POST", TWINS[0], generate)).status == 200
    names = {"c": "GetOpenAiChatStatus", "g": "GetOllamaGenerationStatus"}
    others = ("GetArtifactGenerationStatus", "GetTextGenerationStatus")
    for ref, own in names.items():
        for name in {*names.values(), *others}:
            reply = await serving.call("GET", f"/api/{name}?refId={ref}")
            assert reply.status == (200 if name == own else 404), reply.body
            assert name == own or own in reply.problem()["message"]
