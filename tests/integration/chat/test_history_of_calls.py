"""What a call leaves behind: its row for administrators, its entry in the ledger, and no secret."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.upstream import (
    Exchange,
    FakeUpstream,
    Script,
    closed_port,
    completion,
    error_in_stream,
    sse,
    status,
    stream_frames,
)
from gateway import Reply, TestGateway, running

CHAT = "/v1/chat/completions"
LANES = pytest.mark.parametrize("lane", ["auto", "off"])
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
PRICES = [{"type": "Open AI", "model": "fake-model", "input": "2.5", "output": 10}]
BUSY = status(503, {"error": {"message": "busy now"}})


@asynccontextmanager
async def opened(
    folder: Path, migrated: bytes, upstream: FakeUpstream, lane: str = "auto", **settings: str
) -> AsyncGenerator[TestGateway]:
    """A gateway with a provider `fake` of a priced type, its connection warm for the lane."""
    overrides = folder / "data" / "overrides"
    overrides.mkdir(parents=True)
    (overrides / "prices.json").write_text(json.dumps(PRICES))
    async with running(folder / "data", migrated, HOT_LANE=lane, **settings) as gateway:
        await gateway.provider("fake", upstream.base_url, aiTypeId="Open AI", apiKey=UPSTREAM_KEY)
        assert (await gateway.chat()).status == 200
        yield gateway


UPSTREAM_KEY = "sk-canary-upstream-0123456789abcdef"


async def ask(gateway: TestGateway, request_id: str, **more: Any) -> Reply:
    key, headers = more.pop("key", None), more.pop("headers", {})
    message = {"role": "user", "content": more.pop("content", "one two three")}
    body = {"model": "fake-model", "messages": [message], **more}
    sent = {**headers, "x-request-id": request_id}
    given = {} if key is None else {"key": key}
    return await gateway.call("POST", CHAT, body, headers=sent, **given)


async def ledger(gateway: TestGateway) -> list[dict[str, Any]]:
    """Its rows in order, once everything is written."""
    await gateway.app._ledger.flush()
    columns = ("id", "key_id", "provider", "model", "prompt_tokens", "completion_tokens")
    names = (*columns, "cost", "lost")
    rows = await gateway.rows(f"SELECT {', '.join(names)} FROM ledger ORDER BY id")
    return [dict(zip(names, row, strict=True)) for row in rows]


@LANES
@STREAMED
async def test_call_is_kept_with_its_tokens_and_cost(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, stream: bool
) -> None:
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        key = await gateway.key()
        assert (await ask(gateway, "r1", key=key, stream=stream)).status == 200
        entry = await gateway.recorded("r1")
        assert (entry["statusCode"], entry["userAuthId"]) == (200, "1")
        facts = entry["meta"]
        # "echo: one two three" are four words.
        assert (facts["promptTokens"], facts["completionTokens"]) == ("3", "4")
        assert float(facts["cost"]) == pytest.approx(3 * 2.5e-6 + 4 * 10e-6)
        assert (facts["provider"], facts["model"]) == ("fake", "fake-model")
        assert facts["streamed"] == ("true" if stream else "false")
        assert ("firstTokenMs" in facts) == stream
        [_, row] = await ledger(gateway)
        assert row["id"] == entry["id"]
        assert (row["key_id"], row["provider"], row["model"]) == (1, "fake", "fake-model")
        assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 4)
        # In picodollars.
        assert (row["cost"], row["lost"]) == (47_500_000, 0)
        sums = (await gateway.call("GET", "/api/GetSummaryStats")).json()
        [line] = sums["providerStats"]
        assert (line["name"], line["total"]) == ("fake", 2)


async def without_usage(exchange: Exchange) -> None:
    answer = completion(exchange.request)
    del answer["usage"]
    await status(200, answer)(exchange)


@LANES
async def test_what_is_not_reported_stays_unknown(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        upstream.next(without_usage)
        assert (await ask(gateway, "r1")).status == 200
        facts = (await gateway.recorded("r1"))["meta"]
        assert not {"promptTokens", "completionTokens", "cost", "firstTokenMs"} & facts.keys()
        row = (await ledger(gateway))[-1]
        assert (row["prompt_tokens"], row["completion_tokens"], row["cost"]) == (None, None, None)


@LANES
@STREAMED
async def test_failover_is_told_to_administrators_alone(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, stream: bool
) -> None:
    async with FakeUpstream() as other, opened(tmp_path, migrated, upstream, lane) as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        upstream.next(status(503, {"error": {"message": f"no room for {UPSTREAM_KEY}"}}))
        key = await gateway.key()
        reply = await ask(gateway, "r1", key=key, stream=stream)
        assert reply.status == 200
        assert b"no room" not in reply.body
        refused = await gateway.call("GET", "/api/RequestLogs", key=key)
        assert refused.status == 401
        entry = await gateway.recorded("r1")
        assert entry["meta"]["provider"] == "spare"
        first, second = entry["attempts"]
        assert (first["provider"], first["outcome"], first["status"]) == ("fake", "overloaded", 503)
        assert first["detail"] == "no room for ***"
        assert (second["provider"], second["outcome"]) == ("spare", "ok")
        assert first["began"] <= first["ended"] <= second["began"] <= second["ended"]
        # Name, running, slots, priority, weight, state: as they stood when each was chosen.
        assert first["considered"] == [
            ["fake", 0, 0, 0, 1, "ready"],
            ["spare", 0, 0, -1, 1, "ready"],
        ]
        assert [(name, state) for name, *_, state in second["considered"]] == [
            ("fake", "tried"),
            ("spare", "ready"),
        ]


@LANES
async def test_nothing_that_was_said_or_sent_is_kept(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        key = await gateway.key()
        canaries = {"x-canary": "canary-header-5d1f"}
        for number, stream in enumerate((False, True)):
            said = {"content": "canary-prompt-77aa", "stream": stream}
            assert (
                await ask(gateway, f"r{number}", key=key, headers=canaries, **said)
            ).status == 200
        upstream.next(BUSY, error_in_stream(after=2))
        await ask(gateway, "r2", key=key, headers=canaries, content="canary-prompt-77aa")
        await ask(
            gateway, "r3", key=key, headers=canaries, content="canary-prompt-77aa", stream=True
        )
        await gateway.recorded("r3")
        await gateway.app._ledger.flush()
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        kept = {path.name: path.read_bytes() for path in files}
    months = b"".join(content for name, content in kept.items() if name.startswith("history-"))
    assert b"OpenAiChatCompletion" in months
    everything = b"".join(kept.values())
    for canary in ("canary-prompt", "canary-header", "canary-upstream", key):
        assert canary.encode() not in everything


@STREAMED
async def test_prompts_are_kept_where_the_operator_says_so(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, stream: bool
) -> None:
    async with opened(tmp_path, migrated, upstream, KEEP_PROMPTS="true") as gateway:
        key = await gateway.key()
        await ask(gateway, "r1", key=key, content="canary-prompt-77aa", stream=stream)
        entry = await gateway.recorded("r1")
        assert json.loads(entry["requestBody"])["messages"][0]["content"] == "canary-prompt-77aa"
        # A stream's frames hold eight letters each.
        assert ("echo: ca" if stream else "echo: canary") in entry["responseDto"]
        assert key not in json.dumps(entry)


@LANES
async def test_history_that_cannot_be_written_is_a_warning(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "history").write_text("a file stands in the way")
    async with running(tmp_path / "data", migrated, HOT_LANE=lane) as gateway:
        await gateway.provider("fake", upstream.base_url)
        for _ in range(2):
            assert (await gateway.chat()).status == 200
        gateway.app.history.wake()
        ready = await gateway.call("GET", "/health/ready", key=None)
        while "warnings" not in ready.json():
            ready = await gateway.call("GET", "/health/ready", key=None)
        assert ready.status == 200
        assert ready.json()["status"] == "ready"
        assert "cannot be written" in ready.json()["warnings"]["history"]
        # What was used is kept all the same.
        assert len(await ledger(gateway)) == 2


async def usage_twice(exchange: Exchange) -> None:
    """A stream that tells what it used so far, and never ends."""
    counted = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    delta = {"index": 0, "delta": {"content": "word"}}
    await exchange.start_stream()
    await exchange.chunk(sse({"choices": [delta], "usage": counted}))
    await exchange.until_gone()


async def words_only(exchange: Exchange) -> None:
    await exchange.start_stream()
    for frame in stream_frames(exchange.request)[:2]:
        await exchange.chunk(frame)
    await exchange.until_gone()


@LANES
@pytest.mark.parametrize(("script", "tokens", "lost"), [(usage_twice, 1, 0), (words_only, None, 1)])
async def test_left_stream_is_settled_with_what_was_reported(
    tmp_path: Path,
    migrated: bytes,
    upstream: FakeUpstream,
    lane: str,
    script: Script,
    tokens: int | None,
    lost: int,
) -> None:
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        upstream.next(script)
        message = {"role": "user", "content": "hello"}
        body = {"model": "fake-model", "stream": True, "messages": [message]}
        sent = {"x-request-id": "r1"}
        async with await gateway.open("POST", CHAT, body, headers=sent) as response:
            await anext(aiter(response))
            response.close()
        entry = await gateway.recorded("r1")
        assert entry["statusCode"] == 499
        assert entry["attempts"][0]["outcome"] == "cancelled"
        row = (await ledger(gateway))[-1]
        assert row["id"] == entry["id"]
        assert (row["completion_tokens"], row["lost"]) == (tokens, lost)
        assert (row["cost"] is None) == (tokens is None)


@LANES
async def test_ledger_has_each_settled_call_once(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    # Each with who answers it and how many answers may have been lost; every other is a stream.
    scripts: list[tuple[Script | str, str, int]] = [
        *[("normal", "fake", 0)] * 4,
        (BUSY, "spare", 0),
        ("error-first", "spare", 0),
        ("reset-mid-body", "spare", 1),
        ("error-in-stream", "fake", 1),
    ]
    async with FakeUpstream() as other, opened(tmp_path, migrated, upstream, lane) as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        calls: list[tuple[int, str, int]] = []
        for number, (script, provider, lost) in enumerate(scripts):
            upstream.next(script)
            assert (await ask(gateway, f"r{number}", stream=number % 2 == 1)).status == 200
            calls.append(((await gateway.recorded(f"r{number}"))["id"], provider, lost))
        assert (await ask(gateway, "none", model="unknown")).status == 404
        rows = await ledger(gateway)
        # The first is the one that opened the connection.
        assert [(row["id"], row["provider"], row["lost"]) for row in rows[1:]] == calls


@LANES
@STREAMED
async def test_limit_of_every_provider_is_a_429(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, stream: bool
) -> None:
    async with FakeUpstream() as other, opened(tmp_path, migrated, upstream, lane) as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        slow_down = {"error": {"message": "slow down"}}
        upstream.next(status(429, slow_down, "Retry-After: 30"))
        other.next(status(429, slow_down, "Retry-After: 7"))
        reply = await ask(gateway, "r1", stream=stream)
        assert (reply.status, reply.headers["retry-after"]) == (429, "7")
        assert "Every provider of fake-model limits its calls" in reply.problem()["message"]
        assert [a["outcome"] for a in (await gateway.recorded("r1"))["attempts"]] == ["limited"] * 2
        again = await ask(gateway, "r2", stream=stream)
        assert again.status == 503
        assert 1 <= int(again.headers["retry-after"]) <= 7
        assert "fake is cooling, spare is cooling" in again.problem()["message"]
        assert (await gateway.recorded("r2"))["attempts"] == []


@LANES
async def test_keys_that_all_providers_refuse_are_the_operators(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with FakeUpstream() as other, opened(tmp_path, migrated, upstream, lane) as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        upstream.next(status(401, {"error": {"message": f"bad key {UPSTREAM_KEY}"}}))
        other.next(status(403, {"error": {"message": "not allowed"}}))
        reply = await ask(gateway, "r1")
        assert reply.status == 502
        assert reply.json()["error"]["code"] == "provider_credentials"
        assert "ask your administrator" in reply.problem()["message"]
        assert b"canary" not in reply.body
        again = await ask(gateway, "r2")
        assert again.status == 503
        assert "fake is misconfigured, spare is misconfigured" in again.problem()["message"]


@LANES
async def test_provider_out_of_service_is_named_with_its_state(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        offline = await gateway.call("POST", "/api/ChangeAiProviderStatus", {"provider": "FAKE"})
        assert offline.json()["result"] == "fake was taken offline"
        asked = len(upstream.requests)
        reply = await ask(gateway, "r1")
        assert reply.status == 503
        assert reply.json()["error"]["code"] == "providers_unavailable"
        assert "fake is taken offline" in reply.problem()["message"]
        assert int(reply.headers["retry-after"]) >= 1
        assert len(upstream.requests) == asked
        online = {"provider": "fake", "online": True}
        await gateway.call("POST", "/api/ChangeAiProviderStatus", online)
        assert (await ask(gateway, "r2")).status == 200


async def test_lone_provider_is_not_locked_out_by_a_bad_moment(gateway: TestGateway) -> None:
    await gateway.provider("gone", f"http://127.0.0.1:{closed_port()}")
    for _ in range(6):
        assert (await gateway.chat()).status == 502


@LANES
async def test_secret_where_an_error_is_cut_is_nowhere(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    said = ("no " * 700)[:1980] + f" {UPSTREAM_KEY} was sent"
    async with opened(tmp_path, migrated, upstream, lane) as gateway:
        upstream.next(status(400, {"error": {"message": said}}))
        reply = await ask(gateway, "r1")
        assert reply.status == 400
        entry = await gateway.recorded("r1")
    for text in (reply.body.decode(), json.dumps(entry)):
        assert "no no no" in text
        assert UPSTREAM_KEY[:8] not in text
