"""Two providers of one model, one of them in trouble under load: no call fails, none is repeated."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from acceptance.running import RunningServer
from fakes.load import OK, Caller, Kept, PacedUpstream, history_of, load, passed
from fakes.upstream import (
    DONE,
    Exchange,
    Script,
    raw,
    reset,
    scripted,
    sse,
    stall,
    status,
    stream_frames,
)
from gateway import SECRET, TestGateway, running

LANES = ("auto", "off")
AT_ONCE = 50
SERVICE_SECONDS = 0.003
# Short, so that a provider that stalls is given up soon; a busy machine must not look like one.
HASTY = {"PROVIDER_FIRST_BYTE": "1s", "PROVIDER_GAP": "1s"}
PATIENT = {"PROVIDER_FIRST_BYTE": "2s", "PROVIDER_GAP": "2s"}
OVERLOADED: dict[str, Any] = {"error": {"message": "overloaded", "type": "overloaded_error"}}


def either(*, whole: Script, streamed: Script) -> Script:
    """The first for a plain call, the second for a stream."""

    async def script(exchange: Exchange) -> None:
        wanted = streamed if exchange.request.json().get("stream") else whole
        await wanted(exchange)

    return script


async def opened_and_closed(exchange: Exchange) -> None:
    """A stream that ends before its model said anything."""
    await exchange.start_stream()
    await exchange.chunk(stream_frames(exchange.request)[0])
    exchange.close()


async def opened_and_silent(exchange: Exchange) -> None:
    await exchange.start_stream()
    await exchange.until_gone()


def failing(code: int, *headers: str) -> Script:
    return status(code, {"error": {"message": "no", "type": "server_error"}}, *headers)


# Without a script the provider itself is killed.
FAULTS: dict[str, Script | None] = {
    "killed": None,
    "reset": reset,
    "stalled": stall,
    "stalled after its head": opened_and_silent,
    "limited": failing(429, "Retry-After: 1"),
    "overloaded within 200": either(
        whole=status(200, OVERLOADED), streamed=scripted([sse(OVERLOADED), DONE])
    ),
    "status 500": failing(500),
    "status 503": failing(503),
    "status 529": status(529, OVERLOADED),
    "truncated": either(
        whole=raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half": ', then="close"),
        streamed=opened_and_closed,
    ),
    "not HTTP": raw(b"\x00\x01\x02 nonsense \xff\r\n\r\n", then="close"),
    "not JSON": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html>\n"),
}


async def begin(upstream: PacedUpstream, fault: Script | None) -> None:
    if fault is None:
        await upstream.kill()
    upstream.fault = fault


async def end(upstream: PacedUpstream, fault: Script | None) -> None:
    if fault is None:
        await upstream.revive()
    upstream.fault = None


# A kept connection that ends without a word counts as closed while idle: the request is sent again.
ASKED_AGAIN = {"reset": 3, "killed": 3}


@dataclass
class Pair:
    gateway: TestGateway
    caller: Caller
    first: PacedUpstream
    second: PacedUpstream

    async def warm(self) -> None:
        """Has a connection to each provider kept, without which a call never takes the hot lane."""
        outcomes = await load(
            lambda number: self.caller.ask(f"warm-{number}"), calls=20, at_once=10
        )
        assert outcomes == {OK: 20}


@asynccontextmanager
async def pair(
    folder: Path, migrated: bytes, environment: dict[str, str], *, preferred: bool = False
) -> AsyncGenerator[Pair]:
    """A gateway in the test's loop with providers `first` and `second` of one model.

    `preferred`: as long as it does well, the first one gets every call.
    """
    async with (
        PacedUpstream(SERVICE_SECONDS) as first,
        PacedUpstream(SERVICE_SECONDS) as second,
        running(folder, migrated, **environment) as gateway,
    ):
        await gateway.provider("first", first.base_url, priority=int(preferred))
        await gateway.provider("second", second.base_url)
        caller = Caller(gateway.url, SECRET)
        try:
            yield Pair(gateway, caller, first, second)
        finally:
            await caller.close()


def asked_once(kept: dict[str, Kept]) -> bool:
    """Whether no call asked a provider twice."""
    return all(
        len({attempt["provider"] for attempt in call.attempts}) == len(call.attempts)
        for call in kept.values()
    )


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_call_fails_while_one_of_two_is_in_trouble(
    tmp_path: Path, migrated: bytes, fault: str, lane: str
) -> None:
    calls, script = 200, FAULTS[fault]
    # A busy machine may keep a provider that is well from answering for half a second.
    bounds = HASTY if fault.startswith("stalled") else {}
    async with pair(tmp_path, migrated, {"HOT_LANE": lane, **bounds}) as two:
        outcomes = await load(
            lambda number: two.caller.ask(f"call-{number}", stream=number % 2 == 1),
            calls=calls,
            at_once=AT_ONCE,
            at={60: lambda: begin(two.first, script), 150: lambda: end(two.first, script)},
        )
        assert outcomes == {OK: calls}
        assert two.caller.connections.ended == 0
        assert max(two.first.asked.values()) <= ASKED_AGAIN.get(fault, 1)
        assert max(two.second.asked.values()) == 1
    kept = history_of(tmp_path)
    assert len(kept) == calls
    assert {call.status for call in kept.values()} == {200}
    assert any(len(call.attempts) == 2 for call in kept.values())
    assert asked_once(kept)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("lane", LANES)
async def test_call_that_fails_over_is_answered_once(
    tmp_path: Path, migrated: bytes, lane: str, stream: bool
) -> None:
    async with pair(tmp_path, migrated, {"HOT_LANE": lane}, preferred=True) as two:
        assert await two.caller.ask("warm") == OK
        two.first.fault = FAULTS["overloaded within 200"]
        assert await two.caller.ask("overloaded", stream=stream) == OK
        two.first.fault = None
        # On the same connection, where an answer too many would come first.
        assert await two.caller.ask("after", stream=stream) == OK
        assert two.first.asked == {"warm": 1, "overloaded": 1, "after": 1}
        assert two.second.asked == {"overloaded": 1}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", ["killed", "reset", "status 500"])
async def test_no_call_fails_when_trouble_moves_to_the_other(
    tmp_path: Path, migrated: bytes, fault: str, lane: str
) -> None:
    calls, script = 500, FAULTS[fault]
    async with pair(tmp_path, migrated, {"HOT_LANE": lane}) as two:
        outcomes = await load(
            lambda number: two.caller.ask(f"call-{number}", stream=number % 2 == 1),
            calls=calls,
            at_once=AT_ONCE,
            at={
                60: lambda: begin(two.first, script),
                200: lambda: end(two.first, script),
                # Long before the first one is trusted again.
                300: lambda: begin(two.second, script),
                400: lambda: end(two.second, script),
            },
        )
        assert outcomes == {OK: calls}


async def breaks_off(exchange: Exchange) -> None:
    await spoken(exchange)
    exchange.reset()


async def ends_early(exchange: Exchange) -> None:
    await spoken(exchange)
    exchange.close()


async def falls_silent(exchange: Exchange) -> None:
    await spoken(exchange)
    await exchange.until_gone()


async def is_overloaded(exchange: Exchange) -> None:
    await spoken(exchange)
    await exchange.chunk(sse(OVERLOADED))
    await exchange.chunk(DONE)
    await exchange.end_stream()


async def spoken(exchange: Exchange) -> None:
    """The first word."""
    await exchange.start_stream()
    for frame in stream_frames(exchange.request)[:2]:
        await exchange.chunk(frame)


BREAKS: dict[str, tuple[Script, int, str]] = {
    "breaks off": (breaks_off, 502, "reset"),
    "ends early": (ends_early, 502, "reset"),
    "falls silent": (falls_silent, 504, "timeout"),
    "is overloaded": (is_overloaded, 502, "overloaded"),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", BREAKS)
async def test_stream_that_broke_is_not_continued_elsewhere(
    tmp_path: Path, migrated: bytes, fault: str, lane: str
) -> None:
    script, code, outcome = BREAKS[fault]
    async with pair(tmp_path, migrated, {"HOT_LANE": lane, **HASTY}, preferred=True) as two:
        assert await two.caller.ask("warm", stream=True) == OK
        two.first.fault = script
        reply = await two.gateway.chat(stream=True, content="never finished")
        events = reply.events()
        assert (reply.status, events[0]["choices"][0]["delta"]["content"]) == (200, "")
        assert events[1]["choices"][0]["delta"]["content"] == "echo: ne"
        assert "error" in events[2]
        assert len(events) == 3
        assert (two.first.asked["never finished"], two.second.asked) == (1, {})
        request_id = reply.headers["x-request-id"]
    kept = history_of(tmp_path)[request_id]
    assert (kept.status, kept.provider, kept.lost) == (code, "first", 1)
    assert kept.error
    assert [attempt["outcome"] for attempt in kept.attempts] == [outcome]


async def trickles(exchange: Exchange) -> None:
    """A stream of comments that never says a word."""
    await exchange.start_stream()
    while True:
        await exchange.chunk(b": patience\n\n")
        await passed(0.02)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("fault", [stall, trickles])
async def test_providers_share_one_deadline(
    tmp_path: Path, migrated: bytes, fault: Script, lane: str, stream: bool
) -> None:
    async with pair(tmp_path, migrated, {"HOT_LANE": lane, "PROVIDER_TOTAL": "0.4s"}) as two:
        await two.warm()
        two.first.fault = two.second.fault = fault
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await two.gateway.chat(stream=stream)
        assert reply.status == 504
        assert 0.35 < loop.time() - began < 0.7


def tell(line: str) -> None:
    """Shown with -s: the figures of a long run."""
    sys.stdout.write(f"{line}\n")


async def until_back(caller: Caller, upstream: PacedUpstream, name: str, *, stream: bool) -> float:
    """Seconds of light load until the provider answers again; every call must be answered."""
    loop = asyncio.get_running_loop()
    began, served = loop.time(), upstream.served
    for number in count():
        assert await caller.ask(f"{name}-after-{number}", stream=stream) == OK
        if upstream.served > served:
            break
        assert loop.time() - began < 20, f"{name}: not asked again"
        await passed(0.01)
    return loop.time() - began


@asynccontextmanager
async def apart(
    data: Path, lane: str
) -> AsyncGenerator[tuple[Caller, PacedUpstream, PacedUpstream]]:
    """As `pair`, with the gateway in a process of its own."""
    environment = {"HOT_LANE": lane, "AUTH_SECRET": SECRET, "LOCAL_MODELS": "false", **PATIENT}
    async with PacedUpstream(SERVICE_SECONDS) as first, PacedUpstream(SERVICE_SECONDS) as second:
        server = await asyncio.to_thread(RunningServer.start, data, environment)
        caller = Caller(f"http://127.0.0.1:{server.port}", SECRET)
        try:
            await caller.provider("first", first.base_url)
            await caller.provider("second", second.base_url)
            yield caller, first, second
        finally:
            await caller.close()
            server.stop()


async def through(
    caller: Caller, victim: PacedUpstream, fault: str, *, stream: bool, told: str
) -> None:
    """2,000 calls, in the middle thousand of which the victim is in trouble."""
    loop, script = asyncio.get_running_loop(), FAULTS[fault]
    began, served = loop.time(), victim.served
    outcomes = await load(
        lambda number: caller.ask(f"{fault.replace(' ', '-')}-{number}", stream=stream),
        calls=2000,
        at_once=AT_ONCE,
        at={500: partial(begin, victim, script), 1500: partial(end, victim, script)},
    )
    tell(
        f"{told} {fault:22} {dict(outcomes)} in {loop.time() - began:.1f} s, "
        f"{victim.served - served} by the one in trouble"
    )
    assert outcomes == {OK: 2000}


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("lane", LANES)
async def test_2000_calls_a_fault_in_turn_all_answered(
    tmp_path: Path, lane: str, stream: bool
) -> None:
    told = f"{lane:4} {'streamed' if stream else 'plain':8}"
    async with apart(tmp_path, lane) as (caller, first, _):
        for fault in FAULTS:
            await through(caller, first, fault, stream=stream, told=told)
            back = await until_back(caller, first, fault.replace(" ", "-"), stream=stream)
            tell(f"{told} {fault:22} asked again after {back:.1f} s")
        assert caller.connections.ended == 0
    kept = history_of(tmp_path)
    assert {call.status for call in kept.values()} == {200}
    assert asked_once(kept)
    for fault in FAULTS:
        name = fault.replace(" ", "-")
        tries = Counter(
            " > ".join(f"{a['provider']} {a['outcome']}" for a in kept[f"{name}-{n}"].attempts)
            for n in range(2000)
        )
        tell(f"{told} {fault:22} {dict(tries)}")
        assert any(" > " in way for way in tries)


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("lane", LANES)
async def test_2000_calls_a_fault_all_answered_while_trouble_moves_on(
    tmp_path: Path, lane: str, stream: bool
) -> None:
    told = f"{lane:4} {'streamed' if stream else 'plain':8} moving on"
    async with apart(tmp_path, lane) as (caller, *two):
        for number, fault in enumerate(FAULTS):
            await through(caller, two[number % 2], fault, stream=stream, told=told)
            if fault == "limited":
                # It asked for a second's rest: until then it is the other's trouble alone.
                await until_back(caller, two[number % 2], "rested", stream=stream)
        assert caller.connections.ended == 0
    kept = history_of(tmp_path)
    assert len(kept) >= 2000 * len(FAULTS)
    assert {call.status for call in kept.values()} == {200}
    assert asked_once(kept)
