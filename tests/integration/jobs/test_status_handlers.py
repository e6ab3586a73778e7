"""What callers learn of their jobs, and what they can do to them."""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.status_handlers import ChatStatusHandlers
from aiserver.chat.status_operations import GetOllamaGenerationStatus, GetOpenAiChatStatus
from aiserver.contract.caller import ADMINISTRATOR, Caller
from aiserver.contract.errors import (
    ApiError,
    Conflict,
    InvalidRequest,
    NotFound,
    StorageUnavailable,
    UpstreamTimedOut,
)
from aiserver.contract.operation import JsonBytes
from aiserver.contract.twins import statuses_of, twins_of
from aiserver.jobs.job import (
    LARGEST_ID,
    Cancelled,
    Completed,
    Failed,
    FailureKind,
    Job,
    JobError,
    Outcome,
    Retry,
)
from aiserver.jobs.queue import Queue
from aiserver.jobs.status_handlers import StatusHandlers
from aiserver.jobs.status_operations import (
    CancelJob,
    GetArtifactGenerationStatus,
    GetJobEvents,
    GetOpenAiChat,
    GetTextGenerationStatus,
    WaitForOpenAiChat,
)
from aiserver.jobs.store import Changed, Progress
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.kit.db import Database
from fakes.calls import StillClock
from job_calls import OWNER, STRANGER, answer_to, ask, events
from job_stores import BROKEN, Stores, new_job

REFUSED = JobError(code="Invalid", message="Too wide.", status=400, kind=FailureKind.REQUEST)
SCALED = {"operation": "ScaleImage"}
GENERATED = {"operation": "OllamaGeneration"}
IMAGES = b'{"results":[{"url":"/artifacts/a.png","fileName":"a.png","provider":"comfy","extra":1}]}'


@pytest.fixture
def engine() -> str:
    """The rules of stores have their own tests, on every engine."""
    return "sqlite"


@pytest.fixture
def queue(store: Stores) -> Queue:
    return Queue(store.jobs)


@pytest.fixture
def room(queue: Queue, store: Stores) -> StatusHandlers:
    chats = statuses_of(twins_of((OpenAiChatCompletion, OllamaGeneration)))
    return StatusHandlers(queue, store.clock, wait=0.05, statuses=chats)


@pytest.fixture
def chats(queue: Queue) -> ChatStatusHandlers:
    return ChatStatusHandlers(queue)


async def put(store: Stores, **members: Any) -> Job:
    return await store.job((await store.put(**members)).id)


async def ended(store: Stores, outcome: Outcome, **members: Any) -> Job:
    job = await store.started(**members)
    store.tick(1500)
    await store.jobs.finish(job.fence, outcome)
    return await store.job(job.id)


async def test_artifacts_are_there_once_it_is_done(room: StatusHandlers, store: Stores) -> None:
    job = await ended(store, Completed(result=IMAGES), **SCALED)
    assert await ask(room, GetArtifactGenerationStatus(job_id=job.id), caller=OWNER) == {
        "jobId": job.id,
        "refId": job.ref_id,
        "jobState": "Completed",
        "status": "Completed",
        "results": [{"url": "/artifacts/a.png", "fileName": "a.png", "provider": "comfy"}],
        "duration": "PT1.5S",
    }


async def test_texts_are_there_once_it_is_done(room: StatusHandlers, store: Stores) -> None:
    told = Completed(result=b'{"results":[{"text":"A cat."}]}')
    job = await ended(store, told, **SCALED)
    answer = await ask(room, GetTextGenerationStatus(ref_id=job.ref_id), caller=OWNER)
    assert (answer["jobId"], answer["results"]) == (job.id, [{"text": "A cat."}])


async def test_waiting_job_has_no_results(room: StatusHandlers, store: Stores) -> None:
    job = await put(store, run_after=store.now + 60_000, **SCALED)
    for request in (GetArtifactGenerationStatus, GetTextGenerationStatus):
        assert await ask(room, request(job_id=job.id), caller=OWNER) == {
            "jobId": job.id,
            "refId": job.ref_id,
            "jobState": "Queued",
            "status": "Queued",
        }


async def test_running_job_says_its_own_status(room: StatusHandlers, store: Stores) -> None:
    job = await store.started(**SCALED)
    await store.jobs.progress([Progress(fence=job.fence, status="Loading the model")])
    answer = await ask(room, GetArtifactGenerationStatus(job_id=job.id), caller=OWNER)
    assert (answer["jobState"], answer["status"]) == ("Started", "Loading the model")


@pytest.mark.parametrize(
    ("outcome", "status", "state", "message"),
    [
        (Failed(error=REFUSED), 422, "Failed", "Too wide."),
        (Failed(error=BROKEN), 502, "Failed", "It broke."),
        (Cancelled(), 409, "Cancelled", None),
    ],
)
@pytest.mark.parametrize("request_type", [GetArtifactGenerationStatus, GetTextGenerationStatus])
async def test_failure_is_an_error_that_names_the_job(
    room: StatusHandlers,
    store: Stores,
    request_type: type[GetArtifactGenerationStatus | GetTextGenerationStatus],
    outcome: Outcome,
    status: int,
    state: str,
    message: str | None,
) -> None:
    job = await ended(store, outcome, **SCALED)
    with pytest.raises(ApiError) as caught:
        await ask(room, request_type(ref_id=job.ref_id), caller=OWNER)
    assert caught.value.http_status == status
    assert message is None or caught.value.message == message
    assert caught.value.meta == {"jobId": str(job.id), "refId": job.ref_id, "jobState": state}


@pytest.mark.parametrize(
    "request_type",
    [
        GetArtifactGenerationStatus,
        GetTextGenerationStatus,
        GetOpenAiChat,
        WaitForOpenAiChat,
        CancelJob,
        GetJobEvents,
        GetOpenAiChatStatus,
        GetOllamaGenerationStatus,
    ],
)
async def test_strangers_find_no_job(
    room: StatusHandlers,
    chats: ChatStatusHandlers,
    store: Stores,
    request_type: type[msgspec.Struct],
) -> None:
    job = await ended(store, Completed(result=b'{"results":[]}'))
    rooms = chats if request_type in chats.handlers() else room
    member = "job_id" if "job_id" in request_type.__struct_fields__ else "id"
    for by in ({member: job.id}, {"ref_id": job.ref_id}, {member: LARGEST_ID + 1}):
        with pytest.raises(NotFound, match="Job not found"):
            await ask(rooms, request_type(**by), caller=STRANGER)
    with pytest.raises(InvalidRequest, match="refId"):
        await ask(rooms, request_type(**{member: 0, "ref_id": ""}), caller=OWNER)


@pytest.mark.parametrize(
    ("of", "right"),
    [
        ({}, ["GetOpenAiChatStatus"]),
        (GENERATED, ["GetOllamaGenerationStatus"]),
        (SCALED, ["GetArtifactGenerationStatus", "GetTextGenerationStatus"]),
    ],
)
@pytest.mark.parametrize("outcome", [None, Completed(result=b"{}"), Failed(error=BROKEN)])
async def test_job_of_another_operation_is_not_found(
    room: StatusHandlers,
    chats: ChatStatusHandlers,
    store: Stores,
    of: dict[str, Any],
    right: list[str],
    outcome: Outcome | None,
) -> None:
    job = await put(store, **of) if outcome is None else await ended(store, outcome, **of)
    for request_type in (
        GetOpenAiChatStatus,
        GetOllamaGenerationStatus,
        GetArtifactGenerationStatus,
        GetTextGenerationStatus,
    ):
        if request_type.__name__ in right:
            continue
        rooms = chats if request_type in chats.handlers() else room
        for request in (request_type(job_id=job.id), request_type(ref_id=job.ref_id)):
            with pytest.raises(NotFound, match="Job not found") as caught:
                await ask(rooms, request, caller=OWNER)
            assert all(name in caught.value.message for name in right)


async def test_administrator_sees_every_job(chats: ChatStatusHandlers, store: Stores) -> None:
    job = await put(store)
    scoped = Caller(key_id=3, scopes=ADMINISTRATOR.scopes)
    for caller in (ADMINISTRATOR, scoped):
        by_id = await ask(chats, GetOpenAiChatStatus(job_id=job.id), caller=caller)
        assert by_id == await ask(chats, GetOpenAiChatStatus(ref_id=job.ref_id), caller=caller)


async def test_own_job_comes_before_one_with_the_same_reference(
    chats: ChatStatusHandlers, store: Stores
) -> None:
    own = await put(store, key_id=0, ref_id="twice")
    other = await put(store, key_id=1, ref_id="twice")
    for caller, job in ((ADMINISTRATOR, own), (OWNER, other)):
        answer = await ask(chats, GetOpenAiChatStatus(ref_id="twice"), caller=caller)
        assert answer["jobId"] == job.id


async def test_reference_counts_where_the_id_is_zero(
    chats: ChatStatusHandlers, store: Stores
) -> None:
    job = await put(store)
    request = GetOpenAiChatStatus(job_id=0, ref_id=job.ref_id)
    assert (await ask(chats, request, caller=OWNER))["jobId"] == job.id


@pytest.mark.parametrize("request_type", [GetOpenAiChatStatus, GetOllamaGenerationStatus])
async def test_chat_goes_out_as_it_was_stored(
    chats: ChatStatusHandlers,
    store: Stores,
    request_type: type[GetOpenAiChatStatus | GetOllamaGenerationStatus],
) -> None:
    stored = b'{ "x_new": 1.50, "big": 1e400, "choices": [] }'
    of = GENERATED if request_type is GetOllamaGenerationStatus else {}
    job = await ended(store, Completed(result=stored), **of)
    answer = await answer_to(chats, request_type(job_id=job.id), caller=OWNER)
    assert isinstance(answer, JsonBytes)
    assert stored in answer.body
    assert b"responseStatus" not in answer.body


async def test_failed_chat_is_told_in_the_answer(chats: ChatStatusHandlers, store: Stores) -> None:
    job = await ended(store, Failed(error=BROKEN, result=b'{"choices":[]}'))
    assert await ask(chats, GetOpenAiChatStatus(job_id=job.id), caller=OWNER) == {
        "jobId": job.id,
        "refId": job.ref_id,
        "jobState": "Failed",
        "status": "Failed",
        "responseStatus": {"errorCode": "UpstreamFailed", "message": "It broke."},
    }


async def test_cancelled_chat_is_told_in_the_answer(
    chats: ChatStatusHandlers, store: Stores
) -> None:
    job = await ended(store, Cancelled(), **GENERATED)
    answer = await ask(chats, GetOllamaGenerationStatus(job_id=job.id), caller=OWNER)
    assert answer["jobState"] == "Cancelled"
    assert answer["responseStatus"]["message"]


async def test_chat_job_is_shown_in_full(room: StatusHandlers, store: Stores) -> None:
    job = await ended(store, Failed(error=BROKEN), tag="cats")
    answer = await ask(room, GetOpenAiChat(id=job.id), caller=OWNER)
    assert answer["responseStatus"]["message"] == "It broke."
    shown = answer["result"]
    assert (shown["tag"], shown["state"], shown["durationMs"]) == ("cats", "Failed", 1500)
    assert shown["requestBody"] == '{"model":"model-a"}'


async def test_wait_ends_with_the_job(queue: Queue, store: Stores) -> None:
    room = StatusHandlers(queue, store.clock, wait=30)
    job = await store.started()
    waiting = asyncio.create_task(ask(room, WaitForOpenAiChat(id=job.id), caller=OWNER))
    await queue.finish(job.fence, Completed(result=b'{"choices":[]}'))
    answer = await waiting
    assert answer["result"]["responseBody"] == '{"choices":[]}'
    assert await ask(room, WaitForOpenAiChat(id=job.id), caller=OWNER) == answer


async def test_wait_has_an_end(room: StatusHandlers, store: Stores) -> None:
    job = await put(store, ref_id="my job")
    with pytest.raises(UpstreamTimedOut, match="goes on") as caught:
        await ask(room, WaitForOpenAiChat(ref_id=job.ref_id), caller=OWNER)
    assert caught.value.meta == {
        "jobId": str(job.id),
        "refId": job.ref_id,
        "jobState": "Queued",
        "statusUrl": "/api/GetOpenAiChat?RefId=my%20job",
    }


async def test_waiting_job_is_cancelled_at_once(room: StatusHandlers, store: Stores) -> None:
    job = await put(store)
    assert await ask(room, CancelJob(id=job.id), caller=OWNER) == {
        "jobId": job.id,
        "refId": job.ref_id,
        "jobState": "Cancelled",
    }


async def test_running_job_is_told_to_stop(room: StatusHandlers, store: Stores) -> None:
    job = await store.started()
    answer = await ask(room, CancelJob(ref_id=job.ref_id), caller=OWNER)
    assert answer["jobState"] == "Started"
    assert (await store.job(job.id)).cancel_asked == store.now


async def test_ended_job_cannot_be_cancelled(room: StatusHandlers, store: Stores) -> None:
    job = await ended(store, Completed(result=b"{}"))
    with pytest.raises(Conflict, match="Completed") as caught:
        await ask(room, CancelJob(id=job.id), caller=OWNER)
    assert caught.value.meta["jobState"] == "Completed"


async def test_stranger_cancels_nothing(room: StatusHandlers, store: Stores) -> None:
    job = await put(store)
    with pytest.raises(NotFound):
        await ask(room, CancelJob(id=job.id), caller=STRANGER)
    assert await store.job(job.id) == job


def changed(job: Job) -> Changed:
    """The news that something happened to it, as another process would send it."""
    return Changed(
        job.id, job.ref_id, job.key_id, job.state, job.kind, job.model, called_back=False
    )


class Listener:
    """Reads a job's events one after the other."""

    def __init__(self, room: StatusHandlers, job: Job) -> None:
        self._room = room
        self._job = job

    async def __aenter__(self) -> "Listener":
        stream = await events(self._room, GetJobEvents(id=self._job.id), caller=OWNER)
        self._stream = aclosing(stream.events)
        self._events = await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stream.__aexit__(*error)

    async def raw(self) -> bytes:
        return await anext(self._events)

    async def next(self) -> list[tuple[str, dict[str, Any]]]:
        """The events that came together: their names and data."""
        told = (await self.raw()).decode()
        assert told.endswith("\n\n")
        return [_read(event) for event in told.strip().split("\n\n")]


def _read(event: str) -> tuple[str, dict[str, Any]]:
    name, *data = event.split("\n")
    text = "\n".join(line.removeprefix("data: ") for line in data)
    return name.removeprefix("event: "), msgspec.json.decode(text)


async def test_events_tell_all_that_happens(
    room: StatusHandlers, queue: Queue, store: Stores
) -> None:
    first = await put(store)
    job = await put(store)
    async with Listener(room, job) as listener:
        [(name, told)] = await listener.next()
        assert (name, told["jobState"], told["position"]) == ("queued", "Queued", 1)
        await queue.cancel([first.id])
        queue.tell([changed(job)])
        [(name, told)] = await listener.next()
        assert (name, told["position"]) == ("queued", 0)
        [running] = await store.claim()
        queue.tell([changed(job)])
        [(name, told)] = await listener.next()
        assert (name, told["jobState"]) == ("started", "Started")
        for line in ("one\n", "two\n"):
            await queue.progress(
                [Progress(fence=running.fence, progress=0.5, status="Half", log=line)]
            )
            [(name, told)] = await listener.next()
            assert (name, told["progress"], told["logs"]) == ("progress", 0.5, line)
        await queue.finish(running.fence, Completed(result=b'{\n"x_new": [1]}'))
        [(output, told), (finished, last)] = await listener.next()
        assert (output, told["result"]) == ("output", {"x_new": [1]})
        assert (finished, last["jobState"]) == ("finished", "Completed")
        with pytest.raises(StopAsyncIteration):
            await listener.raw()


async def test_next_attempt_is_seen_to_begin(
    room: StatusHandlers, queue: Queue, store: Stores
) -> None:
    job = await store.started()
    async with Listener(room, job) as listener:
        assert [name for name, _ in await listener.next()] == ["started"]
        await queue.finish(job.fence, Retry(at=store.now + 2000, error=BROKEN))
        [(name, told)] = await listener.next()
        assert (name, told["jobState"]) == ("queued", "Queued")
        assert "position" not in told
        store.tick(2000)
        await queue.sweep()
        await store.claim()
        queue.tell([changed(job)])
        names = [name for name, _ in await listener.next()]
        assert names == ["started"]


async def test_failure_ends_the_events(room: StatusHandlers, store: Stores) -> None:
    job = await ended(store, Failed(error=BROKEN))
    async with Listener(room, job) as listener:
        [(name, told)] = await listener.next()
        assert (name, told["responseStatus"]["message"]) == ("finished", "It broke.")


async def test_listening_has_an_end(queue: Queue, store: Stores) -> None:
    room = StatusHandlers(queue, store.clock, listen=0.05)
    async with Listener(room, await put(store)) as listener:
        await listener.next()
        with pytest.raises(StopAsyncIteration):
            await listener.raw()


async def test_silence_is_broken_by_a_comment(
    room: StatusHandlers, queue: Queue, store: Stores
) -> None:
    job = await store.started()
    async with Listener(room, job) as listener:
        await listener.next()
        store.clock.moment += timedelta(seconds=15)
        queue.tell([changed(job)])
        assert (await listener.raw()).startswith(b":")


async def test_lost_storage_ends_the_events(database: Database, tmp_path: Path) -> None:
    clock = StillClock()
    jobs = await SqliteJobs.open(database, clock, tmp_path)
    queue = Queue(jobs)
    job = await jobs.find(id=(await jobs.enqueue(new_job())).id)
    assert job is not None
    async with Listener(StatusHandlers(queue, clock), job) as listener:
        await listener.next()
        await jobs.close()
        database.close()
        queue.tell([changed(job)])
        with pytest.raises(StorageUnavailable):
            await listener.raw()


async def test_listener_that_leaves_is_forgotten(
    room: StatusHandlers, queue: Queue, store: Stores
) -> None:
    job = await store.started()
    async with Listener(room, job) as listener:
        await listener.next()
    assert not queue._followers  # pyright: ignore[reportPrivateUsage]
