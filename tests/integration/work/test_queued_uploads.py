"""Calls with uploads that are queued: kept before they are acknowledged, whatever happens next."""

import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiserver.kit.tables import Statement
from fakes.painting import Easel, Seen, form
from fakes.receiver import Receiver
from gateway import SECRET, Reply, TestGateway, running_with
from postgres import server

TESTS = Path(__file__).parents[2]
LATER = (datetime.now(UTC) + timedelta(days=20)).isoformat()
CAT = ("té cat.png", b"\x89PNG cat")
MOVING = ("jobState", "status")
Opener = Callable[..., AbstractAsyncContextManager[TestGateway]]


both = pytest.mark.parametrize("environment", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of the engine that a test names."""
    quick = {"SHUTDOWN_GRACE": "0s", "OUTBOUND_ALLOW": "127.0.0.1"}
    engine = getattr(request, "param", os.environ.get("TEST_DATABASE"))
    if engine != "postgres":
        return {**quick, "DATABASE_URL": "sqlite"}
    return {**quick, "DATABASE_URL": server().fresh_database(), "ENCRYPTION_KEY": "0" * 64}


@pytest.fixture
def easel() -> Easel:
    return Easel()


@pytest.fixture
def opened(tmp_path: Path, migrated: bytes, easel: Easel, environment: dict[str, str]) -> Opener:
    """Opens the same installation, again and again."""

    def open_it(**more: str) -> AbstractAsyncContextManager[TestGateway]:
        return running_with([easel], tmp_path / "data", migrated, {**environment, **more})

    return open_it


@pytest.fixture
async def painting(opened: Opener) -> AsyncGenerator[TestGateway]:
    async with opened() as gateway:
        yield gateway


async def put(
    gateway: TestGateway,
    *,
    to: str = "QueuePaintPicture",
    key: str = SECRET,
    headers: dict[str, str] | None = None,
    **parts: Any,
) -> Reply:
    body, kind = form(**{"image": CAT, **parts})
    return await gateway.call(
        "POST", f"/api/{to}", body, key=key, headers={**kind, **(headers or {})}
    )


async def status_of(gateway: TestGateway, ref_id: str, **more: Any) -> Reply:
    kind = more.pop("kind", "Artifact")
    return await gateway.call("GET", f"/api/Get{kind}GenerationStatus?RefId={ref_id}", **more)


async def ended(gateway: TestGateway, ref_id: str) -> None:
    """Its event stream ends with the job."""
    async with asyncio.timeout(10):
        await gateway.call("GET", f"/api/GetJobEvents?refId={ref_id}")


def kept(gateway: TestGateway) -> list[str]:
    """What lies on the disk."""
    folder = gateway.data / "files"
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


async def count(gateway: TestGateway, table: str = "files") -> int:
    among = " WHERE deleted IS NULL" if table == "files" else ""
    return (await gateway.rows(f"SELECT count(*) FROM {table}{among}"))[0][0]


@both
async def test_job_gets_its_uploads_as_a_direct_call_does(
    painting: TestGateway, easel: Easel
) -> None:
    parts: dict[str, Any] = {"image": CAT, "mask": ("mask", b"m"), "width": "3"}
    direct = await put(painting, to="PaintPicture", **parts)
    reply = await put(painting, refId="r", **parts)
    assert (direct.status, reply.status) == (200, 200), reply.body
    queued = reply.json()
    assert queued["refId"] == "r"
    assert queued["jobState"] in ("Queued", "Started")
    assert queued["statusUrl"] == "/api/GetArtifactGenerationStatus?RefId=r"
    await ended(painting, "r")
    job = (await painting.call("GET", queued["statusUrl"])).json()
    assert job.pop("duration").startswith("PT")
    assert job == {
        "jobId": queued["jobId"],
        "refId": "r",
        "jobState": "Completed",
        "status": "Completed",
        "results": direct.json()["results"],
    }
    assert easel.seen[0] == easel.seen[1]
    assert easel.seen[0][0] == Seen("image", CAT[0], "image/png", len(CAT[1]), CAT[1])


async def test_text_of_a_queued_upload_is_told(painting: TestGateway) -> None:
    reply = await put(painting, to="QueueReadPicture", refId="r", image=("a.txt", b"a cat"))
    assert reply.json()["statusUrl"] == "/api/GetTextGenerationStatus?RefId=r"
    await ended(painting, "r")
    job = (await status_of(painting, "r", kind="Text")).json()
    assert (job["jobState"], job["results"]) == ("Completed", [{"text": "a cat"}])


async def test_status_of_a_running_job_has_no_results_yet(
    painting: TestGateway, easel: Easel
) -> None:
    easel.gate.clear()
    queued = (await put(painting, refId="r")).json()
    await easel.started.reach(1)
    job = await status_of(painting, "r")
    assert (job.status, job.json()) == (
        200,
        {"jobId": queued["jobId"], "refId": "r", "jobState": "Started", "status": "Started"},
    )
    easel.gate.set()


async def test_job_that_waits_says_so(painting: TestGateway) -> None:
    soon = (await put(painting, refId="r", runAfter=LATER)).json()
    job = (await status_of(painting, "r")).json()
    assert job == {"jobId": soon["jobId"], "refId": "r", "jobState": "Queued", "status": "Queued"}


@pytest.mark.parametrize(
    ("to", "kind"), [("QueuePaintPicture", "Artifact"), ("QueueReadPicture", "Text")]
)
async def test_fault_of_the_caller_is_422(painting: TestGateway, to: str, kind: str) -> None:
    queued = (await put(painting, to=to, refId="r", wish="refuse")).json()
    await ended(painting, "r")
    reply = await status_of(painting, "r", kind=kind)
    assert reply.status == 422
    problem = reply.problem()
    assert problem["message"] == "The picture is too wide."
    assert problem["meta"] == {"jobId": str(queued["jobId"]), "refId": "r", "jobState": "Failed"}


@both
async def test_fault_of_the_upstream_is_502_after_three_attempts(
    painting: TestGateway, easel: Easel
) -> None:
    await put(painting, refId="r", wish="break")
    for attempt in (1, 2, 3):
        await easel.started.reach(attempt)
        await until(painting, "r", attempt)
    reply = await status_of(painting, "r")
    assert (reply.status, reply.problem()["message"]) == (502, "The easel broke.")
    assert reply.problem()["meta"]["jobState"] == "Failed"
    assert [seen[0].content for seen in easel.seen] == [CAT[1]] * 3


async def until(gateway: TestGateway, ref_id: str, attempt: int) -> None:
    """Sweeps, so that nobody waits for the clock, until the next attempt may begin."""
    async with asyncio.timeout(10):
        while True:
            await gateway.app._desk.queue.sweep()
            [row] = await gateway.rows(f"SELECT state, attempt FROM jobs WHERE ref_id = '{ref_id}'")
            if row[0] == "Failed" or row[1] > attempt:
                return
            await asyncio.sleep(0.002)


@both
async def test_cancelled_job_is_409(painting: TestGateway, easel: Easel) -> None:
    easel.gate.clear()
    await put(painting, refId="r")
    await easel.started.reach(1)
    await painting.call("POST", "/api/CancelJob", {"refId": "r"})
    await ended(painting, "r")
    reply = await status_of(painting, "r")
    assert (reply.status, reply.problem()["errorCode"]) == (409, "Cancelled")
    assert reply.problem()["meta"]["jobState"] == "Cancelled"


@both
async def test_strangers_see_neither_job_nor_results(painting: TestGateway) -> None:
    owner, stranger = await painting.key(), await painting.key(name="other")
    await put(painting, refId="r", key=owner)
    await ended(painting, "r")
    assert (await status_of(painting, "r", key=stranger)).status == 404
    assert (await status_of(painting, "r", key=None)).status == 401
    assert (await status_of(painting, "r", key=owner)).status == 200
    [[key_id, path]] = await painting.rows("SELECT key_id, path FROM files")
    assert path.split("/")[3] == str(key_id) != "0"


async def test_callback_names_what_was_made_in_full(opened: Opener) -> None:
    async with opened(PUBLIC_URL="https://ai.example") as gateway:
        shown = await gateway.call("GET", "/api/GetCallbackSecret")
        async with Receiver(secret=shown.json()["secret"]) as receiver:
            await put(gateway, refId="r", replyTo=receiver.url, state="mine")
            await receiver.reach(1)
            await put(
                gateway, to="QueueReadPicture", refId="t", replyTo=receiver.url, image=("a", b"x")
            )
            await receiver.reach(2)
            await put(gateway, refId="f", replyTo=receiver.url, wish="refuse")
            await receiver.reach(3)
    files, texts, failed = [msgspec.json.decode(call.body) for call in receiver.received]
    assert all(call.verified for call in receiver.received)
    assert files["outputs"] == [
        {"fileName": CAT[0], "url": "https://ai.example/artifacts/image.png"}
    ]
    assert (files["refId"], files["jobState"], files["state"]) == ("r", "Completed", "mine")
    assert texts["textOutputs"] == [{"text": "x"}]
    assert failed["responseStatus"]["message"] == "The picture is too wide."


async def test_stopped_server_leaves_job_and_upload_for_the_next_one(
    opened: Opener, easel: Easel
) -> None:
    easel.gate.clear()
    async with opened() as first:
        await put(first, refId="r")
        await easel.started.reach(1)
    easel.gate.set()
    async with opened() as second:
        await ended(second, "r")
        assert (await status_of(second, "r")).json()["jobState"] == "Completed"
    assert [seen[0].content for seen in easel.seen] == [CAT[1]] * 2


@both
async def test_killed_server_leaves_job_and_upload_for_the_next_one(
    tmp_path: Path, migrated: bytes, opened: Opener, easel: Easel, environment: dict[str, str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "app.db").write_bytes(migrated)
    command = [sys.executable, "-m", "fakes.painting", str(data)]
    command += [f"{name}={value}" for name, value in environment.items()]
    process = begun(command)
    assert process.stdout is not None
    killed = asyncio.get_running_loop().call_later(30, process.kill)
    try:
        port = int(await asyncio.to_thread(process.stdout.readline))
        body, headers = form(image=("big.png", bytes(3_000_000)), refId="r")
        await post(port, body, headers)
        assert await asyncio.to_thread(process.stdout.readline) == "started\n"
    finally:
        killed.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    async with opened() as gateway:
        await ended(gateway, "r")
        assert (await status_of(gateway, "r")).json()["jobState"] == "Completed"
        assert (await gateway.rows("SELECT attempt FROM jobs"))[0][0] == 2
    assert easel.seen[0][0].content == bytes(3_000_000)


def begun(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)


async def post(port: int, body: bytes, headers: dict[str, str]) -> None:
    """One call to another process, which must acknowledge it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = {**headers, "authorization": f"Bearer {SECRET}", "content-length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in {**sent, "host": "x"}.items()]
    writer.write(
        ("POST /api/QueuePaintPicture HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()
    )
    writer.write(body)
    await writer.drain()
    assert b" 200 " in await reader.readline()
    writer.close()


@both
async def test_same_idempotency_key_and_bytes_run_once(painting: TestGateway, easel: Easel) -> None:
    once = {"Idempotency-Key": "k"}
    replies = await asyncio.gather(
        *(put(painting, to="PaintPicture", headers=once) for _ in range(5))
    )
    assert [reply.status for reply in replies] == [200] * 5
    assert sum("idempotency-replayed" in reply.headers for reply in replies) == 4
    assert len({reply.body for reply in replies}) == 1
    assert len(easel.seen) == 1
    assert (await count(painting), len(kept(painting))) == (1, 1)


@pytest.mark.parametrize("to", ["PaintPicture", "QueuePaintPicture"])
async def test_same_idempotency_key_with_other_bytes_is_409(painting: TestGateway, to: str) -> None:
    once = {"Idempotency-Key": "k"}
    assert (await put(painting, to=to, headers=once)).status == 200
    others: tuple[dict[str, Any], ...] = (
        {"image": (CAT[0], b"dog")},
        {"image": ("dog.png", CAT[1])},
        {"mask": CAT},
        {"width": "7"},
    )
    for other in others:
        assert (await put(painting, to=to, headers=once, **other)).status == 409
    assert (await put(painting, to=to, headers=once)).headers["idempotency-replayed"] == "true"
    assert (await count(painting), len(kept(painting))) == (1, 1)


@both
async def test_repeated_call_is_answered_though_its_time_is_over(painting: TestGateway) -> None:
    over = {"Job-Deadline": "2020-01-01T00:00:00Z"}
    for to in ("PaintPicture", "QueuePaintPicture"):
        once = {"Idempotency-Key": to}
        first = await put(painting, to=to, headers=once)
        again = await put(painting, to=to, headers={**once, **over})
        # A queued job may have begun since.
        told = [
            {name: value for name, value in reply.json().items() if name not in MOVING}
            for reply in (first, again)
        ]
        assert (again.status, told[1]) == (200, told[0])
        assert again.headers["idempotency-replayed"] == "true"
        other = await put(painting, to=to, image=("d", b"dog"), headers={**once, **over})
        assert other.status == 409
    assert (await put(painting, headers={"Idempotency-Key": "new", **over})).status == 400


async def test_key_used_for_another_operation_is_a_conflict(
    painting: TestGateway, easel: Easel
) -> None:
    once = {"Idempotency-Key": "order-1"}
    assert (await put(painting, to="PaintPicture", headers=once)).status == 200
    for other in ("ReadPicture", "QueueReadPicture"):
        reply = await put(painting, to=other, headers=once)
        assert reply.status == 409, reply.body
    again = await put(painting, to="PaintPicture", headers=once)
    assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")
    assert (len(easel.seen), len(kept(painting))) == (1, 1)


@both
async def test_refused_call_leaves_no_file(opened: Opener) -> None:
    later: dict[str, Any] = {"runAfter": LATER}
    async with opened(MAX_QUEUED="1") as gateway:
        assert (await put(gateway, refId="r", **later)).status == 200
        dog = ("dog.png", b"dog")
        assert (await put(gateway, image=dog, **later)).status == 429
        await gateway.call("POST", "/api/CancelJob", {"refId": "r"})
        assert (await put(gateway, refId="r", image=dog)).status == 409
        assert (await put(gateway, refId="x", image=dog, width="wide")).status == 400
        assert (await put(gateway, refId="y", image=dog, replyTo="http://10.0.0.1/")).status == 400
        assert (await count(gateway), len(kept(gateway))) == (1, 1)


async def test_too_large_upload_is_refused_and_not_kept(opened: Opener) -> None:
    async with opened(MAX_UPLOAD="2MB") as gateway:
        reply = await put(gateway, image=("big.png", bytes(2_100_000)))
        assert (reply.status, "MAX_UPLOAD" in reply.problem()["message"]) == (413, True)
        assert kept(gateway) == []
        assert (await put(gateway, refId="r", image=("fits.png", bytes(1_900_000)))).status == 200


@pytest.mark.parametrize("size", [1_000_000, 3_000_000])
async def test_full_disk_is_said_before_the_acknowledgement(
    painting: TestGateway, size: int
) -> None:
    await put(painting, refId="first")
    await ended(painting, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Above what the tables need; the small one stays in memory until it is kept.
    resource.setrlimit(resource.RLIMIT_FSIZE, (960_000, hard))
    try:
        reply = await put(painting, image=("big.png", bytes(size)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (reply.status, reply.headers["retry-after"]) == (503, "60")
    assert "full; nothing was kept" in reply.problem()["message"]
    assert (await count(painting), len(kept(painting))) == (1, 1)
    assert await count(painting, "jobs") == 1


@both
async def test_content_and_files_go_after_their_time_and_the_job_stays(opened: Opener) -> None:
    async with opened(JOB_CONTENT_TTL="0s") as gateway:
        desk = gateway.app._desk
        await put(gateway, refId="r")
        await ended(gateway, "r")
        await put(gateway, refId="waits", runAfter=LATER)
        await desk._store.archive(desk._ago(timedelta(seconds=-1)))
        await asyncio.sleep(0.002)
        await desk._forget()
        job = (await status_of(gateway, "r")).json()
        assert (job["jobState"], "results" in job) == ("Completed", False)
        [[ref]] = await gateway.rows("SELECT job_ref FROM files WHERE deleted IS NULL")
        assert (ref, len(kept(gateway))) == ("waits", 1)


async def test_failed_job_is_queued_again_with_its_upload(
    painting: TestGateway, easel: Easel
) -> None:
    queued = (await put(painting, refId="r", wish="refuse")).json()
    await ended(painting, "r")
    again = await painting.call("POST", "/api/AdminRequeueFailedJobs", {"ids": [queued["jobId"]]})
    assert again.status == 200, again.body
    await easel.started.reach(2)
    await ended(painting, "r")
    assert easel.seen[1][0].content == CAT[1]


async def test_job_whose_files_were_deleted_says_so(painting: TestGateway) -> None:
    await put(painting, refId="r", runAfter=LATER)
    [[id]] = await painting.rows("SELECT id FROM files")
    await painting.app._desk._uploads._files.delete([id])
    tables = painting.app._data.engine.tables
    await tables.write(Statement("UPDATE jobs SET run_after = 1"))
    await painting.app._desk.queue.sweep()
    await ended(painting, "r")
    reply = await status_of(painting, "r")
    assert (reply.status, "were deleted" in reply.problem()["message"]) == (422, True)


async def test_caller_who_prefers_it_is_answered_at_once(painting: TestGateway) -> None:
    reply = await put(painting, to="PaintPicture", headers={"Prefer": "respond-async"})
    assert reply.status == 202, reply.body
    await ended(painting, reply.json()["refId"])
    assert (await status_of(painting, reply.json()["refId"])).json()["results"]


@both
async def test_sweep_deletes_files_whose_job_was_never_stored(painting: TestGateway) -> None:
    await put(painting, refId="r")
    await ended(painting, "r")
    tables = painting.app._data.engine.tables
    columns = "id, key_id, path, sha256, size, job_ref, created, look"
    copy = f"INSERT INTO files ({columns}) SELECT id || 'x', key_id, 'p', sha256, size, 'never', created, 0 FROM files"
    await tables.write(Statement(copy))
    await tables.write(Statement("UPDATE files SET look = 0"))
    await painting.app._desk._uploads.sweep()
    [[ref]] = await painting.rows("SELECT job_ref FROM files WHERE deleted IS NULL")
    assert (ref, len(kept(painting))) == ("r", 1)
