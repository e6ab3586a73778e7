"""Queued calls on the command line: found, followed, cancelled and tried again beside a server."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from typer.testing import CliRunner

from acceptance.running import RunningServer
from acceptance.test_readme import post
from aiserver.cli.jobs_follow import Seen, Teller, changes
from aiserver.cli.main import app
from aiserver.jobs.job import Completed, Failed, FailureKind, Job, JobError, NewJob
from aiserver.jobs.store import Progress, Want
from aiserver.jobs.store.sqlite import SqliteJobs
from aiserver.kit.clock import SystemClock
from aiserver.kit.db import Database
from fakes.upstream import FakeUpstream

T = TypeVar("T")
FAR = 2**42
ROOT = Path(__file__).parents[2]


class Shell:
    """Runs `ai-server jobs` on one data folder, and works on its jobs as a server does."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, *words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words, "--data", str(self.data)])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.stdout + done.stderr

    def json(self, *words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["jobs", *words, "--json", "--data", str(self.data)])
        assert done.exit_code == code, done.output + str(done.exception)
        return json.loads(done.stdout)

    def work(self, does: Callable[[SqliteJobs], Awaitable[T]]) -> T:
        async def run() -> T:
            database = Database.open(self.data / "app.db")
            store = await SqliteJobs.open(database, SystemClock(), self.data / "jobs")
            try:
                return await does(store)
            finally:
                await store.close()
                database.close()

        return asyncio.run(run())

    def queue(self, **members: Any) -> int:
        async def add(store: SqliteJobs) -> int:
            return (await store.enqueue(a_job(**members))).id

        return self.work(add)

    def fail(self) -> None:
        async def fail(store: SqliteJobs) -> None:
            await store.finish((await claimed(store)).fence, Failed(error=ERROR))

        self.work(fail)


def a_job(**members: Any) -> NewJob:
    known: dict[str, Any] = {
        "operation": "OpenAiChatCompletion",
        "kind": "chat",
        "key_id": 0,
        "request": b'{"model":"m","messages":["secret question"]}',
        "model": "m",
    }
    return NewJob(**{**known, **members})


async def claimed(store: SqliteJobs) -> Job:
    [job] = await store.claim("host:1:1:x", [Want("chat", "m", "", 1)], until=FAR)
    return job


ERROR = JobError(
    code="UpstreamFailed", message="No provider answered.", status=502, kind=FailureKind.UPSTREAM
)


@pytest.fixture
def shell(data_folder: Path) -> Shell:
    return Shell(data_folder)


def test_empty_queue_is_said(shell: Shell) -> None:
    assert "No jobs yet" in shell("jobs", "list")
    assert "No such jobs" in shell("jobs", "list", "--state", "failed")
    assert "0 waiting, 0 running, 0 ended" in shell("jobs", "stats")
    assert "No job has failed" in shell("jobs", "requeue", "--failed")
    assert shell.json("list") == []


def test_jobs_are_listed_by_state_and_key(shell: Shell) -> None:
    shell("keys", "create", "app")
    first, second = shell.queue(key_id=1), shell.queue()
    shell("jobs", "cancel", str(second))
    assert [row["id"] for row in shell.json("list")] == [second, first]
    assert [row["id"] for row in shell.json("list", "--state", "cancelled")] == [second]
    assert [row["id"] for row in shell.json("list", "--state", "Queued")] == [first]
    for word, id in (("app", first), ("1", first), ("admin", second)):
        assert [row["id"] for row in shell.json("list", "--key", word)] == [id]
    assert [row["key"] for row in shell.json("list")] == ["admin", "app"]
    assert "1 of 2 jobs" in shell("jobs", "list", "--limit", "1")


def test_each_job_has_one_line_where_a_program_reads(shell: Shell) -> None:
    shell("keys", "create", "an-application-with-a-long-name-" + "x" * 60)
    ids = [shell.queue(key_id=1) for _ in range(3)]
    lines = shell("jobs", "list").splitlines()
    assert [line.split()[0] for line in lines] == ["ID", *map(str, reversed(ids))]


def test_planned_job_is_listed_as_queued(shell: Shell) -> None:
    id = shell.queue(run_after=FAR)
    assert [row["id"] for row in shell.json("list", "--state", "queued")] == [id]
    row = shell.json("show", str(id))
    assert (row["state"], row["notBefore"], row["position"]) == (
        "Queued",
        "2109-05-15T07:35:11Z",
        None,
    )


def test_content_is_shown_only_when_asked_for(shell: Shell) -> None:
    id = shell.queue(ref_id="my-ref")

    async def complete(store: SqliteJobs) -> None:
        done = Completed(result=b'{"answer":"secret answer"}', worker="fake")
        await store.finish((await claimed(store)).fence, done)

    shell.work(complete)
    assert "secret" not in shell("jobs", "show", "my-ref") + str(shell.json("show", str(id)))
    shown = shell("jobs", "show", "my-ref", "--content")
    assert "secret question" in shown
    assert "secret answer" in shown
    row = shell.json("show", "my-ref", "--content")
    assert (row["id"], row["state"], row["provider"]) == (id, "Completed", "fake")
    assert row["answer"] == {"answer": "secret answer"}


def test_archived_job_is_found(shell: Shell) -> None:
    id = shell.queue(ref_id="old")
    shell.fail()
    assert shell.work(lambda store: store.archive(FAR)) == 1
    assert [row["id"] for row in shell.json("list", "--state", "failed")] == [id]
    assert shell.json("show", "old")["errorMessage"] == "No provider answered."
    assert shell.json("stats")["archived"] == 1


def test_ref_id_of_two_keys_is_not_guessed(shell: Shell) -> None:
    first, second = shell.queue(ref_id="same", key_id=1), shell.queue(ref_id="same", key_id=2)
    said = shell("jobs", "cancel", "same", code=1)
    assert f"{first}, {second}. Give the id." in said
    assert {row["state"] for row in shell.json("list")} == {"Queued"}


def test_waiting_job_is_cancelled_and_its_callback_made(shell: Shell) -> None:
    id = shell.queue(reply_to="https://app.example/hook")
    assert shell.json("cancel", str(id)) == {"cancelled": [id], "told": [], "errors": {}}
    row = shell.json("show", str(id))
    assert row["state"] == "Cancelled"
    assert [each["state"] for each in row["callbacks"]] == ["Pending"]
    assert "Pending, 0 attempts" in shell("jobs", "show", str(id))


def test_running_job_is_told_to_stop(shell: Shell) -> None:
    id = shell.queue()
    job = shell.work(claimed)
    assert shell.json("cancel", str(id))["told"] == [id]
    assert "stops it within 5 seconds" in shell("jobs", "cancel", str(id))
    beat = shell.work(lambda store: store.heartbeat("host:1:1:x", [job.fence], until=FAR))
    assert [fence.job_id for fence in beat.cancelled] == [id]


def test_what_cannot_be_cancelled_is_told_and_the_rest_done(shell: Shell) -> None:
    ended, waiting = shell.queue(), shell.queue()
    shell("jobs", "cancel", str(ended))
    answer = shell.json("cancel", "99", str(ended), str(waiting), code=1)
    assert answer["cancelled"] == [waiting]
    assert answer["errors"] == {
        "99": "There is no such job.",
        str(ended): "It has ended and stays as it is.",
    }


@pytest.mark.parametrize("command", ["requeue", "retry"])
def test_failed_job_waits_again(shell: Shell, command: str) -> None:
    id = shell.queue()
    shell.fail()
    assert shell.json(command, str(id)) == {"queued": [id], "errors": {}}
    assert shell.json("list")[0]["state"] == "Queued"


def test_all_that_failed_wait_again_but_no_cancelled(shell: Shell) -> None:
    first = shell.queue()
    shell.fail()
    shell.work(lambda store: store.archive(FAR))
    second = shell.queue()
    shell.fail()
    cancelled = shell.queue()
    shell("jobs", "cancel", str(cancelled))
    assert shell.json("requeue", "--failed") == {"queued": [first, second], "errors": {}}
    assert shell("jobs", "requeue", str(cancelled)) == "1 job queued again.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "nope"], "nope: There is no such job. `ai-server jobs list` shows them."),
        (["follow", "99"], "99: There is no such job."),
        (["cancel", "99"], "99: There is no such job."),
        (["requeue"], "give --failed"),
        (["requeue", "1", "--failed"], "give --failed"),
        (["requeue", "1"], "1: The job is Queued; only Failed and Cancelled"),
        (["list", "--state", "done"], "--state done: use Queued, Started, Completed, Failed"),
        (["list", "--key", "nobody"], "There is no key 'nobody'"),
    ],
)
def test_failure_says_what_to_do(shell: Shell, words: list[str], says: str) -> None:
    shell.queue()
    assert says in shell("jobs", *words, code=1).replace("\n", " ")


def test_stats_count_what_waits_runs_and_ended(shell: Shell) -> None:
    for _ in range(3):
        shell.queue()
    shell.fail()
    shell.work(claimed)
    found = shell.json("stats")
    assert (found["waiting"], found["running"], found["ended"]) == (1, 1, 1)
    assert found["by"]["model"] == {"m": 1}
    assert found["by"]["key"] == {"admin": 1}
    assert [(row["name"], row["failed"]) for row in found["lastDay"]] == [
        ("OpenAiChatCompletion", 1)
    ]
    assert "1 waiting, 1 running, 1 ended" in shell("jobs", "stats")


def test_ended_job_is_followed_to_its_exit_code(shell: Shell) -> None:
    id = shell.queue()
    shell.fail()
    assert "Failed after" in shell("jobs", "follow", str(id), code=1)
    line = shell.json("follow", str(id), code=1)
    assert (line["state"], line["errorMessage"]) == ("Failed", "No provider answered.")


def test_every_change_is_followed_once(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    async def follow(store: SqliteJobs) -> list[Seen]:
        await store.enqueue(a_job())
        job = await store.enqueue(a_job())

        async def begin() -> None:
            for _ in range(2):
                await claimed(store)

        async def report() -> None:
            found = await store.find(id=job.id)
            assert found is not None
            await store.progress([Progress(fence=found.fence, progress=0.5, log="half\n")])

        async def end() -> None:
            found = await store.find(id=job.id)
            assert found is not None
            await store.finish(found.fence, Completed(result=b"{}", worker="fake"))

        async def nothing() -> None: ...

        steps = iter((nothing, begin, nothing, report, nothing, end))

        async def pause() -> None:
            await next(steps)()

        return [seen async for seen in changes(store, job.id, pause=pause)]

    seen = shell.work(follow)
    assert [(each.job.state, each.position) for each in seen] == [
        ("Queued", 2),
        ("Started", None),
        ("Started", None),
        ("Completed", None),
    ]
    teller = Teller()
    for each in seen:
        teller.tell(each)
    *lines, end = capsys.readouterr().out.splitlines()
    assert lines == [
        "Queued, place 2 in line",
        "Started, attempt 1 of 3",
        "half",
        "50% Started",
    ]
    assert re.fullmatch(r"Completed after \d+\.\d s at fake", end)


def shown_calls(page: str) -> list[str]:
    """The calls of a page that queue and ask, in their order."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run_shown(code: str, server: RunningServer, key: str, folder: Path) -> str:
    return subprocess.run(
        ["sh", "-e", "-c", code.replace("http://localhost:5006", server.base_url)],
        cwd=folder,
        env={**os.environ, "AI_SERVER_KEY": key},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


@pytest.mark.parametrize("page", ["README.md", "docs/jobs.md"])
def test_shown_calls_are_queued_and_answered(
    data_folder: Path, fake: FakeUpstream, page: str
) -> None:
    server = RunningServer.start(
        data_folder, {"LOCAL_MODELS": "false", "AUTH_SECRET": "as-of-a-test-of-the-pages"}
    )
    try:
        models = [{"model": "local"}]
        provider = {"name": "fake", "aiTypeId": "Custom", "apiBaseUrl": fake.base_url}
        post(server, "/api/CreateAiProvider", {**provider, "models": models})
        key = post(server, "/api/AdminCreateApiKey", {"name": "x"})["result"]
        Image.new("RGB", (80, 40)).save(data_folder / "cat.jpg")
        said = "".join(run_shown(code, server, key, data_folder) for code in shown_calls(page))
        shell = Shell(data_folder)
        assert shell("jobs", "follow", "greeting-1").startswith("Completed after")
        assert "echo: Hello!" in shell("jobs", "show", "greeting-1", "--content")
    finally:
        server.stop()
    assert "event: finished" in said
    assert "echo: Hello!" in said
