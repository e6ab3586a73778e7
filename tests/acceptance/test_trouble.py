"""Storage in trouble: calls that need no disk go on, the others say so, readiness tells the truth."""

import asyncio
import io
from pathlib import Path

import pytest

from aiserver.kit import db, log
from aiserver.kit.db import Connection
from fakes.upstream import FakeUpstream, status
from gateway import SECRET, TestGateway, running


async def test_locked_database_is_a_503_and_chat_goes_on(serving: TestGateway) -> None:
    blocker = db.connect_for_migration(serving.data / "app.db")
    blocker.execute("BEGIN IMMEDIATE")
    reply = await serving.call("POST", "/api/AdminCreateApiKey", {"name": "x"})
    assert (reply.status, reply.problem()["errorCode"]) == (503, "ServiceUnavailable")
    assert int(reply.headers["retry-after"]) > 0
    assert "nothing was changed" in reply.problem()["message"]
    assert (await serving.chat()).status == 200
    blocker.execute("ROLLBACK")
    blocker.close()
    assert (await serving.call("POST", "/api/AdminCreateApiKey", {"name": "x"})).status == 200


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_disk_that_takes_nothing_is_a_503_and_chat_goes_on(
    serving: TestGateway, trouble: str
) -> None:
    database = serving.database
    pages = database.read("PRAGMA page_count")[0][0]

    def break_it(connection: Connection) -> None:
        if trouble == "full":
            connection.rows(f"PRAGMA max_page_count = {pages}")
        else:
            connection.rows("PRAGMA query_only = 1")

    await database.write(break_it)
    notes = {"name": "x", "notes": "n" * 10_000}
    replies = [await serving.call("POST", "/api/AdminCreateApiKey", notes) for _ in range(5)]
    assert replies[-1].status == 503
    key_calls = await serving.call("GET", "/api/AdminQueryApiKeys")
    assert key_calls.status == 200
    assert (await serving.chat()).status == 200


async def test_readiness_tells_when_storage_cannot_be_read(serving: TestGateway) -> None:
    key = await serving.key()
    assert (await serving.call("GET", "/health/ready", key=None)).status == 200
    database = serving.database
    database._reader.close()
    await serving.app._changes.look()
    reply = await serving.call("GET", "/health/ready", key=None)
    assert reply.status == 503
    assert "storage" in reply.json()["problems"]
    assert (await serving.call("GET", "/health/live", key=None)).status == 200
    assert (await serving.chat(key=key)).status == 200
    database._reader = database._connect(read_only=True)
    await serving.app._changes.look()
    assert (await serving.call("GET", "/health/ready", key=None)).status == 200


async def test_no_secret_reaches_log_or_answer(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    canaries = {
        "admin": SECRET,
        "upstream": "canary-upstream-key-1",
        "environment": "canary-environment-key-2",
    }
    logged = io.StringIO()
    answers: list[bytes] = []
    variables = {"OPENAI_API_KEY": canaries["environment"], "OPENAI_BASE_URL": upstream.base_url}
    async with running(tmp_path / "data", migrated, LOG_LEVEL="debug", **variables) as gateway:
        log.configure(level="debug", form="json", redact=gateway.app.redact, stream=logged)
        await gateway.provider("mine", upstream.base_url, apiKey=canaries["upstream"])
        canaries["own"] = await gateway.key()
        everything = " ".join(canaries.values())
        upstream.next(*(status(code, {"error": {"message": everything}}) for code in (400, 500)))
        for key in canaries.values():
            answers.append((await gateway.chat(key=key)).body)
            answers.append((await gateway.call("GET", f"/api/{key}?key={key}", key=key)).body)
            answers.append((await gateway.call("GET", "/api/QueryAiProviders", key=key)).body)
        log.get("test").error("told", secrets=list(canaries.values()), nested={"x": everything})
        try:
            raise RuntimeError(everything)
        except RuntimeError:
            log.get("test").exception("failed")
        asyncio.get_running_loop().call_exception_handler({"message": everything})
    log.configure(level="warning", form="json", redact=str)
    shown = logged.getvalue() + b"".join(answers).decode()
    assert "told" in logged.getvalue()
    for name, canary in canaries.items():
        assert canary not in shown, name
