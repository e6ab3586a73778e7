"""What an administrator sees of the queue, and does to it."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from aiserver.contract.errors import InvalidRequest, NotFound
from aiserver.jobs import admin_cancelling
from aiserver.jobs.admin_handlers import AdminHandlers
from aiserver.jobs.admin_operations import (
    AdminCancelJobs,
    AdminGetJob,
    AdminGetJobProgress,
    AdminJobDashboard,
    AdminJobInfo,
    AdminQueryBackgroundJobs,
    AdminQueryCompletedJobs,
    AdminQueryFailedJobs,
    AdminQueryJobSummary,
    AdminQueryScheduledTasks,
    AdminRequeueFailedJobs,
    CancelWorker,
    GetWorkerStats,
)
from aiserver.jobs.job import LARGEST_ID, Cancelled, Completed, Failed, Job, Outcome, State
from aiserver.jobs.queue import Queue
from aiserver.jobs.records import BackgroundJobState
from aiserver.jobs.schedule import Schedule
from aiserver.jobs.shown import RunningJob
from aiserver.jobs.store import Progress
from aiserver.kit.background import Background
from fakes.calls import NOVEMBER
from job_calls import Pairs, ask
from job_stores import BROKEN, Stores

DONE = Completed(result=b'{"choices":[]}', worker="fake")
FAILED = Failed(error=BROKEN, worker="fake")


@pytest.fixture
def engine() -> str:
    """The rules of stores have their own tests, on every engine."""
    return "sqlite"


class Bench:
    """The handlers over a store, and what runs in this process."""

    def __init__(self, store: Stores, background: Background) -> None:
        self.store = store
        self.queue = Queue(store.jobs)
        self.running: list[RunningJob] = []
        self.reported: list[Progress] = []
        self.schedule = Schedule(background, store.clock)
        self.room = AdminHandlers(
            self.queue,
            lambda: self.running,
            self.schedule,
            store.clock,
            answer_of={"OpenAiChatCompletion": "OpenAiChatResponse"}.get,
            tell=self._tell,
        )

    async def _tell(self) -> None:
        await self.store.jobs.progress(self.reported)

    async def put(self, **members: Any) -> int:
        return (await self.store.put(**members)).id

    async def started(self, worker: str = "fake", **members: Any) -> Job:
        job = await self.store.started(**members)
        await self.store.jobs.progress([Progress(fence=job.fence, worker=worker)])
        return await self.store.job(job.id)

    async def ended(self, outcome: Outcome = DONE, **members: Any) -> int:
        job = await self.store.started(**members)
        self.store.tick(1000)
        await self.store.jobs.finish(job.fence, outcome)
        return job.id

    async def archive(self) -> None:
        self.store.tick(1)
        while await self.store.jobs.archive(self.store.now):
            pass

    async def ids(self, request: Any, pairs: Pairs = ()) -> list[int]:
        return [row["id"] for row in (await ask(self.room, request, pairs))["results"]]


@pytest.fixture
async def bench(store: Stores) -> AsyncGenerator[Bench]:
    background = Background()
    yield Bench(store, background)
    await background.stop()


async def test_jobs_that_wait_or_run_are_listed(bench: Bench) -> None:
    await bench.ended()
    running = await bench.started()
    waiting = await bench.put(tag="cats")
    later = await bench.put(run_after=bench.store.now + 60_000)
    answer = await ask(bench.room, AdminQueryBackgroundJobs(include="total", take=2))
    assert (answer["offset"], answer["total"]) == (0, 3)
    assert [row["id"] for row in answer["results"]] == [later, waiting]
    assert await bench.ids(AdminQueryBackgroundJobs(skip=2)) == [running.id]
    assert await bench.ids(AdminQueryBackgroundJobs(order_by="id")) == [running.id, waiting, later]


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ({"ids": "1,3"}, [3, 1]),
        ({"IdIn": "[1,2]"}, [2, 1]),
        ({"ids": str(LARGEST_ID + 1)}, []),
        ({"state": "Started"}, [1]),
        ({"State": "queued"}, [3, 2]),
        ({"states": "Started,Queued"}, [3, 2, 1]),
        ({"state": "Executed"}, []),
        ({"state": "Completed"}, []),
        ({"worker": "fake"}, [1]),
        ({"tag": "cats"}, [2]),
        ({"tag": "cats", "Tag": "dogs"}, []),
        ({"request": "OpenAiChatCompletion"}, [3, 2, 1]),
        ({"request": "TextToImage"}, []),
        ({"model": "model-b"}, [3]),
        ({"keyId": "2"}, [3]),
        ({"keyId": "2", "tag": "cats"}, []),
        ({"keyId": str(LARGEST_ID + 1)}, []),
        ({"keyId": "9" * 20}, []),
        ({"keyId": "9" * 5000}, []),
        ({"keyId": "-1"}, []),
        ({"refIds": "mine,yours"}, [2]),
        ({"createdDateFrom": "2026-11-15T12:00:01Z"}, [3, 2]),
        ({"createdDate>": "2026-11-15T12:00:02"}, [3]),
        ({"createdDateAfter": "2026-11-15T12:00:01Z"}, [3]),
        ({"createdDate<": "2026-11-15T12:00:01Z"}, [2, 1]),
        ({"createdDateBefore": "2026-11-15T12:00:01Z"}, [1]),
        ({"tag": ""}, [3, 2, 1]),
        ({"jsconfig": "eccn", "Meaning": "42"}, [3, 2, 1]),
    ],
)
async def test_conditions_narrow_the_list(
    bench: Bench, pairs: dict[str, str], found: list[int]
) -> None:
    await bench.started()
    bench.store.tick(1000)
    await bench.put(tag="cats", ref_id="mine")
    bench.store.tick(1000)
    await bench.put(key_id=2, model="model-b")
    assert await bench.ids(AdminQueryBackgroundJobs(), pairs.items()) == found


@pytest.mark.parametrize(
    "pairs",
    [
        {"progress": "1"},
        {"statusContains": "load"},
        {"attemptsFrom": "2"},
        {"errorCodeIsNull": ""},
        {"workerStartsWith": "fa"},
        {"ids": "1,two"},
        {"state": "Lost"},
        {"keyId": "me"},
        {"createdDateFrom": "yesterday"},
        {"ids": ",".join(map(str, range(1, 1002)))},
    ],
)
async def test_condition_that_cannot_be_met_is_refused(bench: Bench, pairs: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^'\w+': ") as caught:
        await ask(bench.room, AdminQueryBackgroundJobs(), pairs.items())
    assert caught.value.param == next(iter(pairs))


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ({"keyId": "me"}, "'KeyId': a whole number such as 42 is needed."),
        ({"ids": "1,two"}, "'Ids': a whole number such as 42 is needed."),
        ({"idIn": "1_0"}, "'IdIn': a whole number such as 42 is needed."),
        (
            {"createdDateFrom": "yesterday"},
            "'CreatedDateFrom': a moment such as 2026-11-23T18:00:00Z is needed.",
        ),
    ],
)
async def test_refusal_says_what_to_write(bench: Bench, pairs: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await ask(bench.room, AdminQueryBackgroundJobs(), pairs.items())
    assert caught.value.message == says


async def test_key_that_cannot_be_is_looked_for_in_every_query(bench: Bench) -> None:
    await bench.ended()
    for request in (
        AdminQueryJobSummary(),
        AdminQueryCompletedJobs(),
        AdminQueryFailedJobs(),
    ):
        assert await bench.ids(request, [("keyId", "9" * 20)]) == []


@pytest.mark.parametrize(
    "order",
    [
        {"order_by": "tag"},
        {"order_by_desc": "state"},
        {"order_by": "startedDate,-completedDate"},
        {"fields": "distinct tag"},
    ],
)
async def test_order_that_cannot_be_kept_is_refused(bench: Bench, order: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await ask(bench.room, AdminQueryBackgroundJobs(**order))


@pytest.mark.parametrize(
    ("order", "found"),
    [
        ({}, [2, 1]),
        ({"order_by": "-id"}, [2, 1]),
        ({"order_by_desc": "id"}, [2, 1]),
        ({"order_by_desc": "-CreatedDate"}, [1, 2]),
        ({"order_by": "startedDate, id"}, [2, 1]),
        ({"order_by": "no_such_member"}, [2, 1]),
    ],
)
async def test_jobs_come_in_the_order_asked_for(
    bench: Bench, order: dict[str, Any], found: list[int]
) -> None:
    first = await bench.put(model="model-b")
    await bench.started()
    bench.store.tick(1000)
    await bench.store.claim(model="model-b")
    assert first == 1
    assert await bench.ids(AdminQueryBackgroundJobs(**order)) == found


async def test_members_can_be_chosen(bench: Bench) -> None:
    id = await bench.put()
    answer = await ask(bench.room, AdminQueryBackgroundJobs(fields="id,state"))
    assert answer["results"] == [{"id": id, "state": "Queued"}]


async def test_declared_conditions_count(bench: Bench) -> None:
    await bench.put()
    id = await bench.put(ref_id="mine")
    assert await bench.ids(AdminQueryBackgroundJobs(id=id, ref_id="mine"), [("id", "1")]) == [id]
    assert await bench.ids(AdminQueryJobSummary(id=0, ref_id="mine")) == [id]


async def test_summaries_are_of_all_jobs(bench: Bench) -> None:
    archived = await bench.ended()
    await bench.archive()
    failed = await bench.ended(FAILED)
    waiting = await bench.put()
    answer = await ask(bench.room, AdminQueryJobSummary(include="total"))
    assert (answer["total"], [row["id"] for row in answer["results"]]) == (
        3,
        [waiting, failed, archived],
    )
    assert answer["results"][2]["response"] == "OpenAiChatResponse"
    assert answer["results"][1]["errorMessage"] == "It broke."
    assert await bench.ids(AdminQueryJobSummary(), [("state", "Completed")]) == [archived]


async def test_ended_jobs_are_found_before_and_after_they_move(bench: Bench) -> None:
    ids = [await bench.ended() for _ in range(3)]
    await bench.archive()
    ids += [await bench.ended() for _ in range(2)]
    failed = await bench.ended(FAILED)
    newest = ids[::-1]
    answer = await ask(bench.room, AdminQueryCompletedJobs(include="total"))
    assert (answer["total"], [row["id"] for row in answer["results"]]) == (5, newest)
    for order, expected in ((None, newest), ("completedDate", ids)):
        pages = [
            await bench.ids(AdminQueryCompletedJobs(order_by=order, skip=skip, take=2))
            for skip in (0, 2, 4)
        ]
        assert pages == [expected[:2], expected[2:4], expected[4:]]
    assert await bench.ids(AdminQueryFailedJobs()) == [failed]
    assert await bench.ids(AdminQueryCompletedJobs(), [("state", "Failed")]) == []


async def test_other_month_is_read_from_its_archive(bench: Bench) -> None:
    old = await bench.ended()
    await bench.archive()
    bench.store.clock.moment += timedelta(days=30)
    new = await bench.ended()
    november, december = NOVEMBER, bench.store.clock.now()
    assert await bench.ids(AdminQueryCompletedJobs(month=november)) == [old]
    assert await bench.ids(AdminQueryCompletedJobs(month=december)) == [new]
    assert await bench.ids(AdminQueryCompletedJobs(month=datetime(2020, 1, 1, tzinfo=UTC))) == []


async def test_recurring_work_is_listed(bench: Bench) -> None:
    async def nothing() -> None: ...

    bench.schedule.every(3600, "archive", nothing)
    bench.schedule.every(60, "health checks", nothing)
    answer = await ask(
        bench.room, AdminQueryScheduledTasks(include="total"), [("nameContains", "check")]
    )
    assert answer["total"] == 1
    [row] = answer["results"]
    assert (row["name"], row["interval"]) == ("health checks", "PT60S")
    assert row["nextRun"] == (NOVEMBER + timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    assert "lastRun" not in row


async def test_job_is_shown_as_it_stands(bench: Bench) -> None:
    ids = {
        "completed": await bench.ended(),
        "failed": await bench.ended(Cancelled()),
        "queued": await bench.put(ref_id="mine"),
    }
    for member, id in ids.items():
        answer = await ask(bench.room, AdminGetJob(id=id))
        assert answer.keys() == {"result", member}
        assert answer["result"]["id"] == answer[member]["id"] == id
    assert (await ask(bench.room, AdminGetJob(ref_id="mine")))["queued"]["id"] == ids["queued"]
    with pytest.raises(NotFound):
        await ask(bench.room, AdminGetJob(id=999))


async def test_progress_gives_what_was_logged_since(bench: Bench) -> None:
    job = await bench.started()
    await bench.store.jobs.progress([Progress(fence=job.fence, progress=0.25, log="one\ntwo\n")])
    bench.store.tick(3000)
    answer = await ask(bench.room, AdminGetJobProgress(id=job.id, log_start=4))
    assert answer == {"state": "Started", "progress": 0.25, "logs": "two\n", "durationMs": 3000}


async def test_failed_jobs_wait_again(bench: Bench) -> None:
    failed, cancelled = await bench.ended(FAILED), await bench.ended(Cancelled())
    done = await bench.ended()
    request = AdminRequeueFailedJobs(ids=[failed, cancelled, done, 99, 2**40])
    answer = await ask(bench.room, request)
    assert answer["results"] == [failed, cancelled]
    assert answer["errors"].keys() == {str(done), "99", str(2**40)}
    assert (await bench.store.job(failed)).state is State.QUEUED


async def test_no_ids_requeue_and_cancel_nothing(bench: Bench) -> None:
    await bench.put()
    for request in (AdminRequeueFailedJobs(), AdminCancelJobs()):
        assert await ask(bench.room, request) == {"results": [], "errors": {}}
    assert len(await bench.ids(AdminQueryBackgroundJobs())) == 1


async def test_jobs_are_cancelled_by_id(bench: Bench) -> None:
    done, running = await bench.ended(), await bench.started()
    waiting = await bench.put()
    answer = await ask(bench.room, AdminCancelJobs(ids=[done, running.id, waiting, 99, 0]))
    assert answer["results"] == [running.id, waiting]
    assert answer["errors"].keys() == {str(done), "99", "0"}
    assert (await bench.store.job(running.id)).cancel_asked is not None


async def test_jobs_are_cancelled_by_state(bench: Bench) -> None:
    running = await bench.started()
    waiting = [await bench.put(), await bench.put(run_after=bench.store.now + 60_000)]
    request = AdminCancelJobs(state=BackgroundJobState.QUEUED)
    assert (await ask(bench.room, request))["results"] == waiting
    assert (await bench.store.job(running.id)).cancel_asked is None
    no_job_has_it = AdminCancelJobs(state=BackgroundJobState.EXECUTED)
    assert (await ask(bench.room, no_job_has_it))["results"] == []
    with pytest.raises(InvalidRequest, match="Queued or Started"):
        await ask(bench.room, AdminCancelJobs(state=BackgroundJobState.COMPLETED))


async def test_jobs_are_cancelled_by_provider(bench: Bench) -> None:
    here, there = await bench.started(), await bench.started(worker="other")
    waiting = await bench.put()
    answer = await ask(bench.room, AdminCancelJobs(worker="fake"))
    assert answer["results"] == [here.id]
    answer = await ask(bench.room, AdminCancelJobs(cancel_worker="other"))
    assert answer["results"] == [there.id]
    assert (await bench.store.job(waiting)).state is State.QUEUED


async def test_jobs_that_wait_for_the_provider_alone_are_cancelled_with_it(bench: Bench) -> None:
    here = await bench.started(worker="fake")
    wishes = [await bench.put(provider="fake"), await bench.put(provider="fake")]
    others = [await bench.put(provider="other"), await bench.put()]
    request = AdminCancelJobs(worker="fake", state=BackgroundJobState.STARTED)
    assert (await ask(bench.room, request))["results"] == [here.id]
    answer = await ask(bench.room, AdminCancelJobs(worker="fake"))
    assert answer["results"] == [here.id, *wishes]
    for id in others:
        assert (await bench.store.job(id)).state is State.QUEUED


async def test_more_jobs_than_a_page_are_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_cancelling, "MOST_ROWS", 2)
    running = [(await bench.started()).id for _ in range(5)]
    waiting = [await bench.put() for _ in range(5)]
    answer = await ask(bench.room, AdminCancelJobs(worker="fake"))
    assert answer["results"] == running
    answer = await ask(bench.room, AdminCancelJobs(state=BackgroundJobState.QUEUED))
    assert answer["results"] == waiting


async def test_cancelling_has_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_cancelling, "MOST_ROWS", 2)
    monkeypatch.setattr(admin_cancelling, "MOST_ROUNDS", 2)
    waiting = [await bench.put() for _ in range(5)]
    request = AdminCancelJobs(state=BackgroundJobState.QUEUED)
    assert (await ask(bench.room, request))["results"] == waiting[:4]
    assert (await ask(bench.room, request))["results"] == waiting[4:]


async def test_provider_can_be_stopped(bench: Bench) -> None:
    here, there = await bench.started(), await bench.started(worker="other")
    assert await ask(bench.room, CancelWorker(worker="fake")) == {}
    assert (await bench.store.job(here.id)).cancel_asked is not None
    assert (await bench.store.job(there.id)).cancel_asked is None


@pytest.mark.parametrize("request_", [CancelWorker(worker="fake"), AdminCancelJobs(worker="fake")])
async def test_job_that_just_began_is_stopped_with_its_provider(
    bench: Bench, request_: CancelWorker | AdminCancelJobs
) -> None:
    jobs = [await bench.store.started() for _ in range(3)]
    # Where they run is known here, and not written down yet.
    began = [replace(job, worker=name) for job, name in zip(jobs, ("fake", "other"), strict=False)]
    bench.running = [RunningJob(job, bench.store.now) for job in began]
    bench.reported = [Progress(fence=jobs[2].fence, worker="fake")]
    await ask(bench.room, request_)
    asked = [(await bench.store.job(job.id)).cancel_asked is not None for job in jobs]
    assert asked == [True, False, True]


async def test_workers_tell_what_they_did(bench: Bench) -> None:
    await bench.ended()
    await bench.ended(FAILED)
    await bench.put(provider="comfy")
    job = await bench.started()
    bench.running = [RunningJob(job, bench.store.now)]
    bench.store.tick(3_723_000)
    answer = await ask(bench.room, GetWorkerStats())
    assert answer == {
        "results": [
            {
                "name": "comfy",
                "queued": 1,
                "received": 0,
                "completed": 0,
                "retries": 0,
                "failed": 0,
            },
            {
                "name": "fake",
                "queued": 0,
                "received": 3,
                "completed": 1,
                "retries": 0,
                "failed": 1,
                "runningJob": job.id,
                "runningTime": "01:02:03",
            },
        ],
        "queueCounts": {"comfy": 1},
    }


async def test_info_counts_the_queue_and_a_month(bench: Bench) -> None:
    await bench.ended()
    await bench.archive()
    await bench.ended(FAILED)
    await bench.ended(Cancelled())
    await bench.started()
    await bench.put(run_after=bench.store.now + 60_000)
    await bench.put()
    answer = await ask(bench.room, AdminJobInfo())
    assert answer["monthDbs"] == ["2026-11-01T00:00:00Z"]
    assert answer["tableCounts"] == {
        "BackgroundJob": 3,
        "JobSummary": 6,
        "ScheduledTask": 0,
        "CompletedJob": 1,
        "FailedJob": 2,
    }
    assert answer["stateCounts"] == {
        "Queued": 2,
        "Started": 1,
        "Completed": 1,
        "Failed": 1,
        "Cancelled": 1,
    }
    assert answer["workerCounts"] == {"fake": 1}
    other = await ask(bench.room, AdminJobInfo(month=datetime(2026, 10, 1, tzinfo=UTC)))
    assert other["tableCounts"]["CompletedJob"] == 0


async def test_dashboard_sums_days_and_the_hours_of_the_last(bench: Bench) -> None:
    await bench.ended(Completed(result=b"{}", worker="other"))
    bench.store.clock.moment += timedelta(days=1)
    await bench.ended()
    await bench.ended(FAILED)
    await bench.ended(Cancelled(worker="fake"))
    answer = await ask(bench.room, AdminJobDashboard(from_=NOVEMBER))
    assert answer["apis"] == [
        {
            "name": "OpenAiChatCompletion",
            "total": 4,
            "completed": 2,
            "retries": 0,
            "failed": 1,
            "cancelled": 1,
        }
    ]
    assert [(each["name"], each["total"]) for each in answer["workers"]] == [
        ("fake", 3),
        ("other", 1),
    ]
    hours = answer["today"]
    assert len(hours) == 24
    assert [each for each in hours if each["total"]] == [
        {"hour": "Nov 16 12:00", "total": 3, "completed": 1, "failed": 1, "cancelled": 1}
    ]
    today = await ask(bench.room, AdminJobDashboard())
    assert today["apis"][0]["total"] == 3
    before = await ask(bench.room, AdminJobDashboard(to=NOVEMBER))
    assert before["apis"][0]["total"] == 1
