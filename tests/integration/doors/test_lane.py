"""The hot lane and the slow path give the same answers and leave the same behind."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fakes.upstream import (
    DONE,
    FAULTS,
    Exchange,
    FakeUpstream,
    Script,
    answer_normally,
    completion,
    error_in_stream,
    raw,
    scripted,
    sse,
    status,
    stream_frames,
)
from gateway import SECRET, Reply, TestGateway, running

CHAT = "/v1/chat/completions"
LANES = pytest.mark.parametrize("lane", ["auto", "off"])
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
TIMING = re.compile(r"gateway;dur=\d+\.\d\d, upstream;dur=\d+\.\d\d")
# What differs from call to call, wherever it runs.
OF_ITS_OWN = {"id", "dateTime", "requestDuration", "meta", "attempts"}
TIMES = {"upstreamMs", "firstTokenMs"}


class Gate:
    """A script that waits, so that a test can look at the call while it runs."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, exchange: Exchange) -> None:
        await self._open.wait()
        await self._script(exchange)


@asynccontextmanager
async def warm(
    folder: Path, migrated: bytes, upstream: FakeUpstream, lane: str, **settings: str
) -> AsyncGenerator[TestGateway]:
    """A gateway whose connection to its provider is open, as the lane needs it."""
    async with running(folder, migrated, HOT_LANE=lane, **settings) as gateway:
        await gateway.provider("fake", upstream.base_url)
        assert (await gateway.chat()).status == 200
        yield gateway


def in_lane(gateway: TestGateway) -> int:
    lane = gateway.app._lane
    return len(lane.running) if lane is not None else 0


async def ask(gateway: TestGateway, request_id: str, **more: Any) -> Reply:
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "one two"}], **more}
    return await gateway.call("POST", CHAT, body, headers={"x-request-id": request_id})


TOOLS = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


async def tool_call(exchange: Exchange) -> None:
    """A call of a tool, whole or as a stream of its pieces."""
    if not exchange.request.json().get("stream"):
        answer = completion(exchange.request)
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        await status(200, answer)(exchange)
        return
    pieces = [{**CALL, "index": 0}, {"index": 0, "function": {"arguments": "{}"}}]
    deltas = [{"role": "assistant", "content": None}, *({"tool_calls": [p]} for p in pieces), {}]
    reasons = [None, None, None, "tool_calls"]
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in zip(deltas, reasons, strict=True)
    ]
    await scripted([*map(sse, chunks), DONE])(exchange)


async def whole_answer(exchange: Exchange) -> None:
    await status(200, completion(exchange.request))(exchange)


async def split_frames(exchange: Exchange) -> None:
    """The normal stream with its bytes cut anywhere."""
    stream = b"".join(stream_frames(exchange.request))
    await scripted([stream[at : at + 7] for at in range(0, len(stream), 7)])(exchange)


STREAM = {"stream": True}
WITH_USAGE = {**STREAM, "stream_options": {"include_usage": True}}


class Case(NamedTuple):
    script: Script = answer_normally
    asks: dict[str, Any] = {}
    status: int = 200


CASES = {
    "plain": Case(),
    "stream": Case(asks=STREAM),
    "stream with usage": Case(asks=WITH_USAGE),
    "stream in odd pieces": Case(split_frames, STREAM),
    "stream without its end": Case(FAULTS["no-done"], STREAM),
    "tools": Case(tool_call, TOOLS),
    "streamed tools": Case(tool_call, {**TOOLS, **STREAM}),
    "whole answer for a stream": Case(whole_answer, STREAM),
    "whole answer for a stream with usage": Case(whole_answer, WITH_USAGE),
    "error before the first word": Case(error_in_stream(after=0), STREAM, 502),
    "error after the role": Case(error_in_stream(after=1), STREAM, 502),
    "error in the stream": Case(error_in_stream(after=2), STREAM),
    "stream that breaks off": Case(FAULTS["truncated-stream"], STREAM),
    "answer that breaks off": Case(FAULTS["reset-mid-body"], {}, 502),
    "answer that is none": Case(FAULTS["invalid-json"], {}, 502),
    "refused request": Case(status(400, {"error": {"message": "no", "code": "bad"}}), {}, 400),
    "refused stream": Case(status(422, {"error": {"message": "no"}}), STREAM, 422),
    "unknown model there": Case(status(404, {"error": {"message": "unknown"}}), {}, 404),
    "limited": Case(FAULTS["rate-limited"], {}, 429),
    "limited stream": Case(FAULTS["rate-limited"], STREAM, 429),
    "failed": Case(FAULTS["server-error"], {}, 502),
    "refused key": Case(status(401, {"error": {"message": "no"}}), {}, 502),
}


def compared(entry: dict[str, Any]) -> dict[str, Any]:
    """A row without its times: which of them there are stays."""
    facts = {name: name in TIMES or value for name, value in entry["meta"].items()}
    # Under a millisecond it is left out.
    facts.pop("upstreamMs", None)
    attempts = [
        {name: value for name, value in attempt.items() if name not in ("began", "ended")}
        for attempt in entry["attempts"]
    ]
    kept = {name: value for name, value in entry.items() if name not in OF_ITS_OWN}
    return {**kept, "meta": facts, "attempts": attempts}


class Outcome(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    row: dict[str, Any]
    asked: list[tuple[list[tuple[str, str]], Any]]


async def outcome(folder: Path, migrated: bytes, lane: str, case: Case) -> Outcome:
    async with FakeUpstream() as upstream, warm(folder, migrated, upstream, lane) as gateway:
        gate = Gate(case.script)
        upstream.next(gate)
        calling = asyncio.ensure_future(ask(gateway, "same", **case.asks))
        await upstream.received.reach(2)
        assert in_lane(gateway) == (lane == "auto")
        gate.open()
        reply = await calling
        row = compared(await gateway.recorded("same"))
        # The next call on this connection gets its own answer, and nothing of the one before.
        after = await ask(gateway, "after", model="unknown")
        assert (after.status, after.headers["x-request-id"]) == (404, "after")
        assert len(upstream.requests) == 2
        assert gateway.app._pool.running(1) == 0
        request = upstream.requests[-1]
        # The lane keeps the caller's own spaces between members.
        apart = ("host", "content-length")
        headers = [pair for pair in request.headers if pair[0].lower() not in apart]
        asked = [(headers, request.json())]
    given = {name: text for name, text in reply.headers.items() if name != "date"}
    assert TIMING.fullmatch(given.pop("server-timing"))
    return Outcome(reply.status, given, reply.body, row, asked)


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_are_the_same(tmp_path: Path, migrated: bytes, name: str) -> None:
    case = CASES[name]
    hot = await outcome(tmp_path / "hot", migrated, "auto", case)
    slow = await outcome(tmp_path / "slow", migrated, "off", case)
    assert hot.status == case.status
    assert hot.body == slow.body
    assert hot == slow


async def words_only(exchange: Exchange) -> None:
    await exchange.start_stream()
    for frame in stream_frames(exchange.request)[:2]:
        await exchange.chunk(frame)
    await exchange.until_gone()


@STREAMED
async def test_caller_that_hangs_up_is_the_same_on_both_ways(
    tmp_path: Path, migrated: bytes, stream: bool
) -> None:
    rows: list[dict[str, Any]] = []
    for lane in ("auto", "off"):
        async with (
            FakeUpstream() as upstream,
            warm(tmp_path / lane, migrated, upstream, lane) as gateway,
        ):
            upstream.next(words_only if stream else "stall")
            calling = asyncio.ensure_future(until_the_first_word(gateway, stream))
            await upstream.received.reach(2)
            assert in_lane(gateway) == (lane == "auto")
            if stream:
                await calling
            else:
                calling.cancel()
            await upstream.cancelled.reach()
            rows.append(compared(await gateway.recorded("left")))
            assert gateway.app._pool.running(1) == 0
            assert in_lane(gateway) == 0
    hot, slow = rows
    assert hot["statusCode"] == 499
    assert [attempt["outcome"] for attempt in hot["attempts"]] == ["cancelled"]
    assert hot == slow


async def until_the_first_word(gateway: TestGateway, stream: bool) -> None:
    message = {"role": "user", "content": "one two"}
    body = {"model": "fake-model", "messages": [message], "stream": stream}
    sent = {"x-request-id": "left"}
    async with await gateway.open("POST", CHAT, body, headers=sent) as response:
        await anext(aiter(response))
        response.close()


@LANES
@STREAMED
async def test_answer_says_what_the_gateway_took(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, stream: bool
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        timing = (await gateway.chat(stream=stream)).headers["server-timing"]
        assert TIMING.fullmatch(timing)
        upstream.next("server-error")
        failed = (await gateway.chat(stream=stream)).headers["server-timing"]
        assert TIMING.fullmatch(failed)


async def test_answer_without_a_provider_says_so(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/api/QueryAiProviders")
    assert reply.headers["server-timing"].endswith("upstream;dur=0.00")


@LANES
@STREAMED
async def test_request_id_reaches_the_upstream(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, stream: bool
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        reply = await ask(gateway, "mine-1", stream=stream)
        assert reply.headers["x-request-id"] == "mine-1"
        assert upstream.requests[-1].header("x-request-id") == "mine-1"
        made = (await gateway.chat(stream=stream)).headers["x-request-id"]
        assert made
        assert upstream.requests[-1].header("x-request-id") == made
        assert (await gateway.recorded(made))["statusCode"] == 200


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({"Max_Tokens": 5}, {}),
        ({"provider": "fake"}, {}),
        ({"tag": "t"}, {}),
        ({}, {"origin": "https://example.com"}),
        ({"messages": [{"role": "user", "content": "x", "images": []}]}, {}),
    ],
    ids=["another spelling", "named provider", "own member", "page", "typed client"],
)
async def test_what_the_lane_leaves_is_served_all_the_same(
    tmp_path: Path,
    migrated: bytes,
    upstream: FakeUpstream,
    more: dict[str, Any],
    headers: dict[str, str],
) -> None:
    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        gate = Gate(answer_normally)
        upstream.next(gate)
        body = {"model": "fake-model", "messages": [{"role": "user", "content": "x"}], **more}
        calling = asyncio.ensure_future(gateway.call("POST", CHAT, body, headers=headers))
        await upstream.received.reach(2)
        assert in_lane(gateway) == 0
        gate.open()
        assert (await calling).status == 200


@pytest.mark.parametrize("setting", [{"KEEP_PROMPTS": "true"}, {"HOT_LANE": "off"}])
async def test_settings_turn_the_lane_off(
    tmp_path: Path, migrated: bytes, setting: dict[str, str]
) -> None:
    async with running(tmp_path, migrated, **{"HOT_LANE": "auto", **setting}) as gateway:
        assert gateway.app._lane is None


async def test_cold_connection_is_the_slow_paths(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with running(tmp_path, migrated, HOT_LANE="auto") as gateway:
        await gateway.provider("fake", upstream.base_url)
        for number, hot in enumerate((False, True), 1):
            gate = Gate(answer_normally)
            upstream.next(gate)
            calling = asyncio.ensure_future(gateway.chat())
            await upstream.received.reach(number)
            assert in_lane(gateway) == hot
            gate.open()
            assert (await calling).status == 200


async def test_failed_provider_is_passed_over_from_the_lane(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with FakeUpstream() as other, warm(tmp_path, migrated, upstream, "auto") as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        for fault in ("server-error", "reset-mid-body", "invalid-json", "rate-limited"):
            upstream.next(fault)
            asked = (len(upstream.requests), len(other.requests))
            assert (await gateway.chat(content=fault)).json()["choices"][0]["message"][
                "content"
            ] == f"echo: {fault}"
            assert (len(upstream.requests), len(other.requests)) == (asked[0] + 1, asked[1] + 1)
            await gateway.call(
                "POST", "/api/ChangeAiProviderStatus", {"provider": "fake", "online": True}
            )


async def test_key_without_the_model_is_refused_beside_the_lane(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        key = await gateway.key(models=["another"])
        assert (await gateway.chat(key=key)).status == 403
        assert (await gateway.chat(key="ak-" + "f" * 32)).status == 401
        assert len(upstream.requests) == 1


@LANES
async def test_refused_key_is_counted_once(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        for _ in range(3):
            assert (await gateway.chat(key="ak-" + "f" * 32)).status == 401
        text = (await gateway.call("GET", "/metrics")).body.decode()
        assert "aiserver_unauthenticated_total 3.0" in text


async def test_calls_of_the_lane_are_counted_for_the_scraper(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        assert (await gateway.chat(stream=True)).status == 200
        text = (await gateway.call("GET", "/metrics")).body.decode()
        labels = 'operation="OpenAiChatCompletion",outcome="2xx",provider="fake"'
        lines = [line for line in text.splitlines() if line.startswith("aiserver_calls_total")]
        assert f"aiserver_calls_total{{{labels}}} 2.0" in lines


async def test_unused_body_is_not_held(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        reader = gateway.app.gateway._reader
        upstream.next("normal", "error-first", "server-error", "reset")
        for _ in range(4):
            await gateway.chat(stream=True, content="x" * 5000)
        await gateway.call("POST", CHAT, json.dumps({"model": "unknown"}).encode())
        assert reader.held == 0


def post(content: str, *headers: str) -> bytes:
    """A chat as bytes of its own connection; the content is its request id too."""
    message = {"role": "user", "content": content}
    body = json.dumps({"model": "fake-model", "messages": [message]})
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {SECRET}",
        f"X-Request-Id: {content}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", body]).encode()


@LANES
@pytest.mark.parametrize("close", [False, True], ids=["kept open", "closed after the last"])
async def test_pipelined_chats_are_answered_in_order(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str, close: bool
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        words = ["first", "second", "third"]
        upstream.next("normal", "server-error")
        closing = ["Connection: close"] if close else []
        sent = b"".join(post(word, *closing * (word == "third")) for word in words)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(sent)
        try:
            async with asyncio.timeout(3):
                read = await (reader.read() if close else reader.readuntil(b"echo: third"))
        finally:
            writer.close()
        answer = read.decode()
        assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["200", "502", "200"]
        assert re.findall(r"X-Request-Id: (\w+)", answer) == words
        assert re.findall(r"echo: (\w+)", answer) == ["first", "third"]


@LANES
async def test_chat_in_small_pieces_is_answered(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        sent = post("pieces", "Connection: close")
        for at in range(0, len(sent), 50):
            writer.write(sent[at : at + 50])
            await writer.drain()
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"echo: pieces" in answer


@STREAMED
async def test_caller_that_leaves_after_a_failure_frees_the_next_provider(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, stream: bool
) -> None:
    async with FakeUpstream() as other, warm(tmp_path, migrated, upstream, "auto") as gateway:
        await gateway.provider("spare", other.base_url, priority=-1)
        upstream.next("server-error")
        other.next("stall")
        calling = asyncio.ensure_future(until_the_first_word(gateway, stream))
        await other.received.reach()
        calling.cancel()
        await other.cancelled.reach()
        row = await gateway.recorded("left")
        assert row["statusCode"] == 499
        assert [attempt["outcome"] for attempt in row["attempts"]] == ["overloaded", "cancelled"]
        assert gateway.app._pool.running(1) == gateway.app._pool.running(2) == 0
        assert gateway.app.gateway._reader.held == 0


async def test_stale_connection_is_no_failure_of_the_provider(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        upstream.next("reset")
        assert (await ask(gateway, "again")).status == 200
        row = await gateway.recorded("again")
        assert [attempt["outcome"] for attempt in row["attempts"]] == ["ok"]


async def test_slow_reader_of_the_lane_is_not_read_ahead_of(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.start_stream()
        frame = sse({"choices": [{"index": 0, "delta": {"content": "x" * 60_000}}]})
        while True:
            await exchange.chunk(frame)

    async with warm(tmp_path, migrated, upstream, "auto") as gateway:
        upstream.next(endless)
        message = {"role": "user", "content": "hello"}
        body = {"model": "fake-model", "stream": True, "messages": [message]}
        async with await gateway.open("POST", CHAT, body) as response:
            await anext(aiter(response))
            exchange = upstream.exchanges[0]
            written = -1
            # The upstream stands still once every buffer on the way is full.
            while written != exchange.written:
                written = exchange.written
                for _ in range(200):
                    await asyncio.sleep(0)
            assert in_lane(gateway) == 1
            assert written < 32 * 1024 * 1024
            response.close()
        await upstream.cancelled.reach()


@LANES
async def test_failed_chat_keeps_its_place_and_headers_in_a_pipeline(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream, lane: str
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        gate = Gate(FAULTS["server-error"])
        upstream.next(gate)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        # The second is of nobody known: what it bears must not be read as the first one's.
        second = b"GET /api/AdminData HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: second\r\n"
        writer.write(post("first") + second + b"Connection: close\r\n\r\n")
        await upstream.received.reach(2)
        gate.open()
        try:
            async with asyncio.timeout(3):
                answer = (await reader.read()).decode()
        finally:
            writer.close()
        assert re.findall(r"HTTP/1.1 (\d+)", answer) == ["502", "401"]
        assert re.findall(r"X-Request-Id: (\w+)", answer) == ["first", "second"]
        assert (await gateway.recorded("first"))["statusCode"] == 502


ANSWER = json.dumps(
    {
        "id": "a",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "raw"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
SIZED = b"Content-Length: %d\r\n" % len(ANSWER)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ANSWER), ANSWER)


@LANES
@pytest.mark.parametrize(
    ("head", "body", "fine"),
    [
        (SIZED, ANSWER, True),
        (SIZED.lower() + b"X-Odd: \xff\r\n", ANSWER, True),
        (SIZED + b"Connection: keep-alive\r\n", ANSWER, True),
        (SIZED + b"Connection: close\r\n", ANSWER, True),
        (SIZED + b"connection:close\r\n", ANSWER, True),
        (b"X-Other: 1\r\n" + CHUNKED, IN_ONE_CHUNK, True),
        (SIZED + SIZED, ANSWER, False),
        (SIZED + CHUNKED, IN_ONE_CHUNK, False),
        (b"Content-Length: 3\r\n", ANSWER, False),
        (b"Content-Length : 3\r\n" + SIZED, ANSWER, False),
    ],
    ids=[
        *("sized", "odd bytes", "kept", "closed", "closed without a space", "chunked"),
        *("two lengths", "length and chunks", "short length", "spaced name"),
    ],
)
async def test_answer_with_an_odd_head_is_read_as_by_the_parser(
    tmp_path: Path,
    migrated: bytes,
    upstream: FakeUpstream,
    lane: str,
    head: bytes,
    body: bytes,
    fine: bool,
) -> None:
    async with warm(tmp_path, migrated, upstream, lane) as gateway:
        kind = b"Content-Type: application/json\r\n"
        upstream.next(raw(b"HTTP/1.1 200 OK\r\n" + kind + head + b"\r\n" + body))
        reply = await gateway.chat(content="odd")
        said = reply.json()["choices"][0]["message"]["content"] if reply.status == 200 else None
        assert (reply.status, said) == ((200, "raw") if fine else (502, None))
        # Whatever came of it, the next call gets its own answer.
        after = await gateway.chat(content="after")
        assert after.json()["choices"][0]["message"]["content"] == "echo: after"
