"""The connection pool against a real socket, on both event loops."""

import asyncio
import contextlib
import gc
import ipaddress
import json
import random
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiserver.kit.upstream import (
    Target,
    Timeouts,
    UpstreamPool,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamReset,
    UpstreamResponse,
    UpstreamTimeout,
    UpstreamTruncated,
)
from fakes.upstream import (
    EarlyAnswer,
    Exchange,
    FakeUpstream,
    Slow,
    answer_normally,
    closed_port,
    raw,
)

MEGABYTE = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
NewLoop = Callable[[], asyncio.AbstractEventLoop]
BOTH_LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest.fixture
async def pool() -> AsyncIterator[UpstreamPool]:
    opened = UpstreamPool()
    yield opened
    await opened.aclose()
    assert (opened.open_connections, opened.idle_connections) == (0, 0)


def run_on(
    new_loop: NewLoop, scenario: Callable[[UpstreamPool, FakeUpstream], Awaitable[None]]
) -> None:
    async def run() -> None:
        async with FakeUpstream() as fake:
            pool = UpstreamPool()
            await scenario(pool, fake)
            await pool.aclose()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def chat(fake: FakeUpstream) -> Target:
    return Target.parse(fake.base_url + "/v1/chat/completions")


def question(text: str = "hello", *, model: str = "m", stream: bool = False) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "stream": stream}).encode()


def text_of(body: bytes) -> str:
    if not body.startswith(b"data:"):
        return json.loads(body)["choices"][0]["message"]["content"]
    frames = [line[6:] for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(item)["choices"][0]["delta"].get("content", "") for item in frames)


async def ask(
    pool: UpstreamPool, fake: FakeUpstream, body: bytes | None = None, **more: float
) -> bytes:
    response = await pool.send(
        chat(fake), body=body or question(), timeouts=Timeouts(**{"first_byte": 5, "gap": 5} | more)
    )
    return await response.read(MEGABYTE)


async def open_together(
    pool: UpstreamPool, fake: FakeUpstream, count: int
) -> list[Callable[[], Awaitable[bytes]]]:
    """Connections at work at the same time; each call of the answer ends that one."""

    async def begin() -> Callable[[], Awaitable[bytes]]:
        gate = Slow()
        fake.next(gate)
        response = await pool.send(chat(fake), body=question(stream=True))

        def finish() -> Awaitable[bytes]:
            gate.release(20)
            return response.read(MEGABYTE)

        return finish

    return [await begin() for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def converse_in_parallel(pool: UpstreamPool, fake: FakeUpstream) -> None:
    dice = random.Random(7)
    models = ["m"] * 6 + ["fault:interim-first", "fault:garbage-after", "fault:chunk-extensions"]
    models += ["fault:reset", "fault:reset-mid-body", "fault:truncated", "fault:truncated-stream"]
    outcomes = {"answered": 0, "failed": 0, "left": 0}

    async def caller(number: int) -> None:
        for turn in range(8):
            text = f"caller {number} turn {turn} " + "x" * dice.randrange(3000)
            body = question(text, model=dice.choice(models), stream=dice.random() < 0.5)
            try:
                async with await pool.send(chat(fake), body=body) as response:
                    if dice.random() < 0.1:
                        outcomes["left"] += 1
                        continue
                    answer = await response.read(MEGABYTE)
            except UpstreamReset:
                outcomes["failed"] += 1
            else:
                assert text_of(answer) == f"echo: {text}"
                outcomes["answered"] += 1

    await asyncio.gather(*(caller(number) for number in range(64)))
    assert sum(outcomes.values()) == 64 * 8
    assert outcomes["answered"] > 200
    assert outcomes["failed"] > 50
    assert fake.connections.count < len(fake.requests)


@BOTH_LOOPS
def test_no_crosstalk_among_concurrent_calls(new_loop: NewLoop):
    run_on(new_loop, converse_in_parallel)


async def test_connection_is_reused(pool: UpstreamPool, fake: FakeUpstream):
    for text in ("one", "two", "three"):
        assert text_of(await ask(pool, fake, question(text))) == f"echo: {text}"
        assert text_of(await ask(pool, fake, question(text, stream=True))) == f"echo: {text}"
    assert fake.connections.count == 1
    assert (pool.open_connections, pool.idle_connections) == (1, 1)


async def test_newest_idle_is_used_first(pool: UpstreamPool, fake: FakeUpstream):
    gates = await open_together(pool, fake, 3)
    for turn in (2, 0, 1):
        await gates[turn]()
    assert pool.idle_connections == 3
    before = [exchange.written for exchange in fake.exchanges]
    await ask(pool, fake)
    after = [exchange.written for exchange in fake.exchanges]
    assert [new > old for new, old in zip(after, before, strict=True)] == [False, True, False]


async def test_request_is_sent_as_given(pool: UpstreamPool, fake: FakeUpstream):
    headers = [(b"Authorization", b"Bearer s"), (b"Connection", b"close"), (b"X-Two", b"1")]
    response = await pool.send(chat(fake), headers=headers, body=question())
    await response.read(MEGABYTE)
    [request] = fake.requests
    assert sorted(request.headers) == [
        ("Authorization", "Bearer s"),
        ("X-Two", "1"),
        ("accept-encoding", "identity"),
        ("content-length", str(len(question()))),
        ("host", f"127.0.0.1:{fake.port}"),
    ]


async def test_own_host_and_encoding_win(pool: UpstreamPool, fake: FakeUpstream):
    headers = [(b"Host", b"example.test"), (b"Accept-Encoding", b"gzip")]
    await (await pool.send(chat(fake), headers=headers, body=question())).read(MEGABYTE)
    [request] = fake.requests
    assert request.header("host") == "example.test"
    assert [value for name, value in request.headers if name.lower() == "accept-encoding"] == [
        "gzip"
    ]


async def test_get_sends_no_length(pool: UpstreamPool, fake: FakeUpstream):
    models = Target.parse(fake.base_url + "/v1/models")
    response = await pool.send(models, method=b"GET")
    assert json.loads(await response.read(MEGABYTE))["data"][0]["id"] == "fake-model"
    assert fake.requests[0].header("content-length") is None


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\nb", b"a\rb", b"a\0b"])
async def test_header_injection_is_refused(pool: UpstreamPool, fake: FakeUpstream, value: bytes):
    with pytest.raises(ValueError, match="line break"):
        await pool.send(chat(fake), headers=[(b"X-Name", value)])
    with pytest.raises(ValueError, match="line break"):
        await pool.send(chat(fake), headers=[(value, b"x")])
    assert fake.connections.count == 0


async def test_repeated_headers_are_joined(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 0\r\nx-a: 2\r\nX-E:\r\n\r\n"))
    response = await pool.send(chat(fake), body=question())
    assert response.headers == {b"x-a": b"1, 2", b"content-length": b"0", b"x-e": b""}


async def test_interim_answers_are_skipped(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(chat(fake), body=question(model="fault:interim-first"))
    assert response.status == 200
    assert b"link" not in response.headers
    assert text_of(await response.read(MEGABYTE)) == "echo: hello"
    assert pool.idle_connections == 1


async def test_endless_interim_answers_fail(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000, then="stall"))
    with pytest.raises(UpstreamProtocolError, match="over the limit"):
        await ask(pool, fake)


async def test_protocol_switch_is_an_error(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"))
    with pytest.raises(UpstreamProtocolError):
        await ask(pool, fake)


async def test_chunk_extensions_and_trailers_pass(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(chat(fake), body=question(model="fault:chunk-extensions"))
    assert text_of(await response.read(MEGABYTE)) == "echo: hello"
    assert b"x-trailer" not in response.headers
    assert pool.idle_connections == 1


async def test_redirect_is_returned(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(chat(fake), body=question(model="fault:redirect"))
    assert response.status == 302
    assert response.headers[b"location"].startswith(b"http://elsewhere")
    assert await response.read(0) == b""


async def test_early_answer_is_not_reused(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(EarlyAnswer(413))
    response = await pool.send(chat(fake), body=b"x" * 48 * MEGABYTE)
    assert response.status == 413
    assert b"too large" in await response.read(MEGABYTE)
    assert pool.idle_connections == 0
    await until(lambda: pool.open_connections == 0)


@pytest.mark.parametrize("extra", [b"\n", b"\r\n", b"x", b"HTTP/1.1 200 OK\r\n", OK])
@pytest.mark.parametrize("answer", [OK, CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"])
async def test_surplus_byte_drops_connection(
    pool: UpstreamPool, fake: FakeUpstream, answer: bytes, extra: bytes
):
    fake.next(raw(answer + extra))
    assert await ask(pool, fake) == b"hi"
    assert pool.idle_connections == 0
    assert text_of(await ask(pool, fake)) == "echo: hello"
    assert fake.connections.count == 2


async def test_byte_on_idle_drops_connection(pool: UpstreamPool, fake: FakeUpstream):
    await ask(pool, fake)
    fake.exchanges[0].transport.write(OK)
    await until(lambda: pool.open_connections == 0)
    assert text_of(await ask(pool, fake)) == "echo: hello"


async def test_half_closed_idle_is_dropped(pool: UpstreamPool, fake: FakeUpstream):
    await ask(pool, fake)
    fake.exchanges[0].transport.write_eof()
    await until(lambda: pool.open_connections == 0)
    assert pool.idle_connections == 0
    assert text_of(await ask(pool, fake)) == "echo: hello"


async def test_dying_idle_is_passed_over(pool: UpstreamPool, fake: FakeUpstream):
    await ask(pool, fake)
    next(iter(pool._open))._transport.abort()
    assert pool.idle_connections == 1
    assert text_of(await ask(pool, fake, question("again"))) == "echo: again"
    assert len(fake.requests) == 2


async def test_refused_after_dying_idle_was_not_sent(pool: UpstreamPool, fake: FakeUpstream):
    await ask(pool, fake)
    next(iter(pool._open))._transport.abort()
    fake.stop_listening()
    with pytest.raises(UpstreamRefused) as caught:
        await ask(pool, fake)
    assert not caught.value.sent


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_stale_connection_is_retried(pool: UpstreamPool, fake: FakeUpstream, end: str):
    fake.next("normal", raw(b"", then=end))
    await ask(pool, fake)
    assert text_of(await ask(pool, fake, question("again"))) == "echo: again"
    assert fake.connections.count == 2
    assert len(fake.requests) == 3


async def test_stale_connection_is_retried_once(pool: UpstreamPool, fake: FakeUpstream):
    fake.next("normal", "reset", "reset")
    await ask(pool, fake)
    with pytest.raises(UpstreamReset) as caught:
        await ask(pool, fake)
    assert caught.value.sent
    assert len(fake.requests) == 3


async def test_fresh_reset_is_not_retried(pool: UpstreamPool, fake: FakeUpstream):
    with pytest.raises(UpstreamReset) as caught:
        await ask(pool, fake, question(model="fault:reset"))
    assert caught.value.sent
    assert len(fake.requests) == 1


async def test_begun_answer_is_not_retried(pool: UpstreamPool, fake: FakeUpstream):
    fake.next("normal", raw(b"HTTP/1.1 2", then="reset"))
    await ask(pool, fake)
    with pytest.raises(UpstreamReset):
        await ask(pool, fake)
    assert len(fake.requests) == 2


async def test_refused_after_stale_may_have_been_sent(pool: UpstreamPool):
    async with FakeUpstream() as fake:
        target = chat(fake)

        async def close_everything(exchange: Exchange) -> None:
            fake.stop_listening()
            exchange.reset()

        fake.next("normal", close_everything)
        await ask(pool, fake)
        with pytest.raises(UpstreamRefused) as caught:
            await pool.send(target, body=question())
        assert caught.value.sent


async def test_closed_port_is_refused(pool: UpstreamPool):
    with pytest.raises(UpstreamRefused, match=r"no connection to 127\.0\.0\.1") as caught:
        await pool.send(Target("127.0.0.1", closed_port(), False, "/?key=secret"))
    assert not caught.value.sent
    assert "secret" not in str(caught.value)


async def test_unusable_name_is_refused(pool: UpstreamPool):
    with pytest.raises(UpstreamRefused):
        await pool.send(Target("a" * 70 + ".invalid", 80, False, "/"))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: yes\r\n" * 6000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Endless: " + b"x" * 400_000,
        b"HTTP/1.1 200 " + b"x" * 400_000,
    ],
)
async def test_header_limit_is_kept(pool: UpstreamPool, fake: FakeUpstream, answer: bytes):
    fake.next(raw(answer, then="stall"))
    with pytest.raises(UpstreamProtocolError, match="over the limit"):
        await ask(pool, fake)
    await fake.cancelled.reach(1)


@pytest.mark.parametrize(
    "rest",
    [
        b"f" * 20 + b"\r\nhi",
        b"2;" + b"x" * 600_000,
        b"2\r\nhi\r\n0\r\nX-Trailer: " + b"x" * 600_000 + b"\r\n\r\n",
        b"zz\r\nhi",
    ],
)
async def test_bad_chunk_is_an_error(pool: UpstreamPool, fake: FakeUpstream, rest: bytes):
    fake.next(raw(CHUNKED + rest, then="stall"))
    with pytest.raises(UpstreamProtocolError):
        await ask(pool, fake)
    await fake.cancelled.reach(1)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
    ],
)
async def test_invalid_http_is_an_error(pool: UpstreamPool, fake: FakeUpstream, answer: bytes):
    fake.next(raw(answer, then="stall"))
    with pytest.raises(UpstreamProtocolError) as caught:
        await ask(pool, fake)
    assert caught.value.sent
    assert pool.idle_connections == 0


async def test_body_over_limit_is_refused(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(chat(fake), body=question(model="fault:huge-error"))
    assert response.status == 500
    with pytest.raises(UpstreamProtocolError, match="over the limit"):
        await response.read(MEGABYTE)
    await fake.cancelled.reach(1)
    await until(lambda: pool.open_connections == 0)


async def test_body_at_limit_is_read(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(OK), raw(OK))
    assert await (await pool.send(chat(fake))).read(2) == b"hi"
    with pytest.raises(UpstreamProtocolError):
        await (await pool.send(chat(fake))).read(1)


@pytest.mark.parametrize("model", ["fault:truncated", "fault:truncated-stream"])
async def test_truncated_body_is_told(pool: UpstreamPool, fake: FakeUpstream, model: str):
    with pytest.raises(UpstreamTruncated):
        await ask(pool, fake, question(model=model))


async def test_reset_midbody_gives_data_first(pool: UpstreamPool, fake: FakeUpstream):
    async with await pool.send(chat(fake), body=question(model="fault:reset-mid-body")) as response:
        assert await anext(response) == b'{"half": '
        with pytest.raises(UpstreamReset):
            await anext(response)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_close_ends_unframed_body(pool: UpstreamPool, fake: FakeUpstream, version: bytes):
    fake.next(raw(b"HTTP/" + version + b" 200 OK\r\n\r\nwhole", then="close"))
    assert await ask(pool, fake) == b"whole"
    assert pool.idle_connections == 0


async def test_close_before_answer_is_reset(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 200 OK\r\nX-Half:", then="close"))
    with pytest.raises(UpstreamReset) as caught:
        await ask(pool, fake)
    assert not isinstance(caught.value, UpstreamTruncated)


@pytest.mark.parametrize("line", [b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK\r\nConnection: close"])
async def test_keepalive_refusal_is_respected(pool: UpstreamPool, fake: FakeUpstream, line: bytes):
    fake.next(raw(line + b"\r\nContent-Length: 2\r\n\r\nhi"))
    assert await ask(pool, fake) == b"hi"
    assert pool.idle_connections == 0


@pytest.mark.parametrize("code", [b"204 No Content", b"304 Not Modified\r\nContent-Length: 9"])
async def test_bodiless_status_ends_at_once(pool: UpstreamPool, fake: FakeUpstream, code: bytes):
    fake.next(raw(b"HTTP/1.1 " + code + b"\r\n\r\n"))
    assert await ask(pool, fake) == b""
    assert pool.idle_connections == 1
    assert text_of(await ask(pool, fake)) == "echo: hello"
    assert fake.connections.count == 1


async def test_head_has_no_body(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"))
    response = await pool.send(chat(fake), method=b"HEAD")
    assert response.headers[b"content-length"] == b"500"
    assert await response.read(0) == b""
    assert text_of(await ask(pool, fake)) == "echo: hello"


async def test_first_byte_timeout(pool: UpstreamPool, fake: FakeUpstream):
    with pytest.raises(UpstreamTimeout) as caught:
        await ask(pool, fake, question(model="fault:stall"), first_byte=0.02)
    assert (caught.value.phase, caught.value.sent) == ("first-byte", True)
    await fake.cancelled.reach(1)


async def test_interim_answer_is_no_first_byte(pool: UpstreamPool, fake: FakeUpstream):
    fake.next(raw(b"HTTP/1.1 102 Processing\r\n\r\n", then="stall"))
    with pytest.raises(UpstreamTimeout) as caught:
        await ask(pool, fake, first_byte=0.02, gap=5)
    assert caught.value.phase == "first-byte"


async def test_gap_timeout(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(
        chat(fake),
        body=question(model="fault:stall-mid-stream"),
        timeouts=Timeouts(gap=0.02),
    )
    with pytest.raises(UpstreamTimeout) as caught:
        await response.read(MEGABYTE)
    assert caught.value.phase == "gap"
    await fake.cancelled.reach(1)


async def test_gap_restarts_with_each_read(pool: UpstreamPool, fake: FakeUpstream):
    slow = Slow()
    fake.next(slow)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for turn in range(6):
        loop.call_later(0.05 * turn, slow.release, 1)
    answer = await ask(pool, fake, question("in six frames", stream=True), gap=0.2)
    assert text_of(answer) == "echo: in six frames"
    assert loop.time() - began > 0.2


async def set_deadlines_at_hand(pool: UpstreamPool, fake: FakeUpstream) -> None:
    await ask(pool, fake)
    connection, now = next(iter(pool._open)), asyncio.get_running_loop().time()
    for near in (0.0003, 0.0002, 0.0003):
        connection.expect_by(now + near, now + 5)
    await until(lambda: pool.open_connections == 0)


@BOTH_LOOPS
def test_deadline_at_hand_can_move(new_loop: NewLoop):
    run_on(new_loop, set_deadlines_at_hand)


async def test_total_timeout(pool: UpstreamPool, fake: FakeUpstream):
    with pytest.raises(UpstreamTimeout) as caught:
        await ask(pool, fake, question(model="fault:stall-mid-stream"), total=0.02)
    assert caught.value.phase == "total"


async def test_unread_answer_meets_total_timeout(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(
        chat(fake),
        body=question(model="fault:huge-error"),
        timeouts=Timeouts(gap=0.01, total=0.08),
    )
    await fake.cancelled.reach(1)
    with pytest.raises(UpstreamTimeout) as caught:
        await response.read(50 * MEGABYTE)
    assert caught.value.phase == "total"


@pytest.mark.parametrize(("connect", "total", "phase"), [(0.02, 5, "connect"), (5, 0.02, "total")])
async def test_connect_timeout(pool: UpstreamPool, connect: float, total: float, phase: str):
    # The system accepts the connection; nobody answers the handshake of TLS.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target("127.0.0.1", silent.getsockname()[1], True, "/")
        with pytest.raises(UpstreamTimeout) as caught:
            await pool.send(target, timeouts=Timeouts(connect=connect, total=total))
    assert (caught.value.phase, caught.value.sent) == (phase, False)
    assert pool.open_connections == 0


async def test_long_timer_does_not_delay_short_one(pool: UpstreamPool, fake: FakeUpstream):
    await ask(pool, fake)
    with pytest.raises(UpstreamTimeout):
        await ask(pool, fake, question(model="fault:stall"), first_byte=0.02)
    assert fake.connections.count == 1


async def test_idle_connection_expires(fake: FakeUpstream):
    pool = UpstreamPool(idle_seconds=0.02)
    await ask(pool, fake)
    assert pool.idle_connections == 1
    await until(lambda: pool.open_connections == 0)
    assert pool.idle_connections == 0
    await pool.aclose()


async def test_idle_connections_are_bounded(fake: FakeUpstream):
    pool = UpstreamPool(max_idle_per_origin=2)
    for finish in await open_together(pool, fake, 5):
        await finish()
    await until(lambda: pool.open_connections == 2)
    assert pool.idle_connections == 2
    await pool.aclose()


@pytest.mark.parametrize("model", ["fault:stall", "fault:stall-mid-stream"])
async def test_cancel_drops_connection(pool: UpstreamPool, fake: FakeUpstream, model: str):
    call = asyncio.create_task(ask(pool, fake, question(model=model)))
    await fake.received.reach(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await fake.cancelled.reach(1)
    await until(lambda: pool.open_connections == 0)


async def cancel_at_each_step(pool: UpstreamPool, fake: FakeUpstream) -> None:
    for steps in range(40):
        call = asyncio.create_task(ask(pool, fake, question(f"step {steps}", stream=True)))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert text_of(await call) == f"echo: step {steps}"
        assert text_of(await ask(pool, fake, question("next"))) == "echo: next"
        await until(lambda: pool.open_connections == pool.idle_connections)


@BOTH_LOOPS
def test_cancel_at_any_step_leaks_nothing(new_loop: NewLoop):
    run_on(new_loop, cancel_at_each_step)


async def test_close_midstream_cancels_upstream(pool: UpstreamPool, fake: FakeUpstream):
    slow = Slow()
    fake.next(slow)
    slow.release(1)
    response = await pool.send(chat(fake), body=question(stream=True))
    await anext(response)
    response.close()
    response.close()
    await fake.cancelled.reach(1)
    with pytest.raises(UpstreamReset):
        await anext(response)
    assert pool.idle_connections == 0


async def test_close_after_end_keeps_connection(pool: UpstreamPool, fake: FakeUpstream):
    async with await pool.send(chat(fake), body=question()) as response:
        await response.read(MEGABYTE)
    assert pool.idle_connections == 1


async def test_second_reader_is_refused(pool: UpstreamPool, fake: FakeUpstream):
    response = await pool.send(chat(fake), body=question(model="fault:stall-mid-stream"))
    await anext(response)
    first = asyncio.create_task(response.read(MEGABYTE))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one task at a time"):
        await response.read(MEGABYTE)
    response.close()
    with pytest.raises(UpstreamReset):
        await first


async def leave_body_unread(pool: UpstreamPool, fake: FakeUpstream) -> None:
    body = bytes(range(256)) * 4096 * 40
    fake.next(raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    response = await pool.send(chat(fake))
    for _ in range(500):
        await asyncio.sleep(0)
    # Only what two reads bring is here; the rest is in the sockets or still at the upstream.
    assert fake.exchanges[0].transport.get_write_buffer_size() > 10 * MEGABYTE
    chunks = [chunk async for chunk in response]
    assert max(map(len, chunks)) <= 768 * 1024
    assert b"".join(chunks) == body
    assert pool.idle_connections == 1


@BOTH_LOOPS
def test_unread_body_is_held_back(new_loop: NewLoop):
    run_on(new_loop, leave_body_unread)


async def test_paused_connection_is_reusable(pool: UpstreamPool, fake: FakeUpstream):
    body = b"x" * 300 * 1024
    fake.next(raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    response = await pool.send(chat(fake))
    for _ in range(50):
        await asyncio.sleep(0)
    assert await response.read(MEGABYTE) == body
    assert text_of(await ask(pool, fake)) == "echo: hello"
    fake.exchanges[0].transport.write_eof()
    await until(lambda: pool.open_connections == 0)


async def test_closed_pool_fails_calls(fake: FakeUpstream):
    pool = UpstreamPool()
    call = asyncio.create_task(ask(pool, fake, question(model="fault:stall")))
    await fake.received.reach(1)
    await pool.aclose()
    assert pool.open_connections == 0
    with pytest.raises(UpstreamReset):
        await call
    with pytest.raises(UpstreamRefused, match="closed"):
        await ask(pool, fake)


async def test_closed_pool_opens_no_connection(fake: FakeUpstream):
    pool = UpstreamPool()
    fake.next("normal", "stall")
    await ask(pool, fake)
    call = asyncio.create_task(ask(pool, fake))
    await fake.received.reach(2)
    await pool.aclose()
    with pytest.raises(UpstreamRefused, match="closed") as caught:
        await call
    assert caught.value.sent
    with pytest.raises(UpstreamRefused, match="closed") as caught:
        await ask(pool, fake)
    assert not caught.value.sent
    assert fake.connections.count == 1


async def test_reprs_hold_no_secrets(pool: UpstreamPool, fake: FakeUpstream):
    target = Target.parse(fake.base_url + "/v1/chat/completions?key=secret")
    fake.next(raw(b"HTTP/1.1 200 OK\r\nX-Secret: secret\r\nContent-Length: 6\r\n\r\nsecret"))
    response = await pool.send(target, headers=[(b"X-Key", b"secret")], body=b"secret")
    assert "secret" not in repr((target, response, pool, vars(pool)))
    await response.read(MEGABYTE)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.test", Target("a.test", 80, False, "/")),
        ("https://A.test/v1?x=1#part", Target("a.test", 443, True, "/v1?x=1")),
        ("https://[::1]:8443/v1", Target("::1", 8443, True, "/v1")),
    ],
)
def test_address_is_parsed(url: str, expected: Target):
    assert Target.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    ["ftp://a.test", "a.test/v1", "http:///v1", "http://u:p@a.test", "http://a.test/a b",
     "http://a.test/\r\nX: y", "http://bücher.test", "http://a.test:0", "http://a.test:99999"],
)  # fmt: skip
def test_bad_address_is_refused(url: str):
    with pytest.raises(ValueError):  # noqa: PT011 - the port's message is the standard library's
        Target.parse(url)


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "fake.pem"
    path.write_bytes(key.private_bytes(pem, form, plain) + signed.public_bytes(pem))
    return path


@pytest.fixture
async def secure_fake(tmp_path: Path) -> AsyncIterator[FakeUpstream]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate(tmp_path))
    async with FakeUpstream(tls=context) as running:
        yield running


@pytest.fixture
async def trusting_pool(tmp_path: Path, secure_fake: FakeUpstream) -> AsyncIterator[UpstreamPool]:
    opened = UpstreamPool(tls=ssl.create_default_context(cafile=tmp_path / "fake.pem"))
    yield opened
    await opened.aclose()
    assert opened.open_connections == 0


async def test_tls_connection_is_reused(trusting_pool: UpstreamPool, secure_fake: FakeUpstream):
    assert text_of(await ask(trusting_pool, secure_fake)) == "echo: hello"
    answer = await ask(trusting_pool, secure_fake, question("x" * 900_000))
    assert len(text_of(answer)) == 900_006
    assert secure_fake.connections.count == 1


async def test_tls_close_cancels_upstream(trusting_pool: UpstreamPool, secure_fake: FakeUpstream):
    body = question(model="fault:stall-mid-stream")
    async with await trusting_pool.send(chat(secure_fake), body=body) as response:
        await anext(response)
    await secure_fake.cancelled.reach(1)


async def test_tls_truncation_is_told(trusting_pool: UpstreamPool, secure_fake: FakeUpstream):
    with pytest.raises(UpstreamTruncated):
        await ask(trusting_pool, secure_fake, question(model="fault:truncated"))


async def test_unknown_certificate_is_refused(pool: UpstreamPool, secure_fake: FakeUpstream):
    with pytest.raises(UpstreamRefused, match="certificate") as caught:
        await pool.send(chat(secure_fake), headers=[(b"X-Key", b"secret")], body=question())
    assert not caught.value.sent
    assert secure_fake.started.count == 0
    assert pool.open_connections == 0


class Plain(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        transport.close()


async def test_plain_port_refuses_tls(pool: UpstreamPool):
    plain = await asyncio.get_running_loop().create_server(Plain, "127.0.0.1", 0)
    async with plain:
        target = Target("127.0.0.1", plain.sockets[0].getsockname()[1], True, "/")
        with pytest.raises(UpstreamRefused):
            await pool.send(target)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_split_gives_same_answer(data: st.DataObject):
    pieces = data.draw(st.lists(st.binary(min_size=1, max_size=20), max_size=6))
    body = b"".join(pieces)
    if data.draw(st.booleans()):
        chunks = b"".join(b"%x;e=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        wire = CHUNKED + chunks + b"0\r\nX-T: 1\r\n\r\n"
    else:
        wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    wire = b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n" + wire
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=8)))

    async def script(exchange: Exchange) -> None:
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
            await exchange.send(wire[start:end])
            for _ in range(3):
                await asyncio.sleep(0)

    async def check() -> None:
        pool = UpstreamPool()
        async with FakeUpstream() as fake:
            fake.next(script, answer_normally)
            response: UpstreamResponse = await pool.send(chat(fake))
            assert await response.read(MEGABYTE) == body
            assert pool.idle_connections == 1
            assert text_of(await ask(pool, fake)) == "echo: hello"
            assert fake.connections.count == 1
            await pool.aclose()

    asyncio.run(check())


async def test_lost_connection_is_freed_at_once(pool: UpstreamPool, fake: FakeUpstream):
    gc.disable()
    try:
        await ask(pool, fake)
        connection = weakref.ref(next(iter(pool._open)))
        fake.exchanges[0].transport.write_eof()
        await until(lambda: pool.open_connections == 0)
        await until(lambda: connection() is None)
    finally:
        gc.enable()


async def test_late_reset_is_not_run_twice(pool: UpstreamPool, fake: FakeUpstream) -> None:
    async def work_then_die(exchange: Exchange) -> None:
        await asyncio.wait((asyncio.ensure_future(exchange.gone.wait()),), timeout=0.4)
        exchange.reset()

    fake.next(answer_normally, work_then_die)
    await ask(pool, fake)
    with pytest.raises(UpstreamReset):
        await ask(pool, fake)
    assert len(fake.requests) == 2


async def test_early_tls_refusal_is_not_reused(
    trusting_pool: UpstreamPool, secure_fake: FakeUpstream
) -> None:
    secure_fake.next(EarlyAnswer(413))
    body = b"x" * 48 * MEGABYTE
    response = await trusting_pool.send(chat(secure_fake), body=body)
    assert b"too large" in await response.read(MEGABYTE)
    assert trusting_pool.idle_connections == 0
