"""A call over the providers of its model: who is asked, what the caller reads, nothing left held."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiserver.chat import relay as relay_module
from aiserver.chat.outcomes import Tries
from aiserver.chat.relay import MOST_CHANGES, Opened, Relay, closed, rest
from aiserver.contract.errors import (
    ApiError,
    InvalidRequest,
    TooBusy,
    UpstreamFailed,
    UpstreamTimedOut,
)
from aiserver.contract.trace import Trace
from aiserver.kit.upstream import UpstreamReset
from aiserver.providers.health import FailureKind
from aiserver.providers.pool import ProviderPool
from fakes.providers import StillClock, pool_of, provider
from fakes.relaying import (
    EVENTS,
    FIRST,
    JSON,
    LAST,
    STREAM,
    WHOLE,
    WORD,
    Line,
    Say,
    ScriptedUpstreams,
    answers,
    chat,
    never,
    raises,
    refusing,
    relay_over,
    trace,
    well,
)
from fakes.upstream import sse


def outcomes(of: Trace) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.outcome) for attempt in of.attempts]


def by_name(**scripts: Say) -> ScriptedUpstreams:
    """Each provider behaves in its own way; who is not named, well."""

    async def say(line: Line) -> Any:
        return await scripts.get(line.provider, well)(line)

    return ScriptedUpstreams(say)


def in_turn(*scripts: Say) -> ScriptedUpstreams:
    """Requests are answered in this way, in this order; then well."""
    left = list(scripts)

    async def say(line: Line) -> Any:
        return await (left.pop(0) if left else well)(line)

    return ScriptedUpstreams(say)


def running(pool: ProviderPool) -> int:
    return sum(pool.running(each.id) for each in pool.providers())


async def read(opened: Opened) -> bytes:
    """The whole stream, as a door reads it."""
    try:
        return b"".join([piece async for piece in rest(opened)])
    finally:
        closed(opened)


async def failing(relay: Relay, of: Trace, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await relay.complete(chat(**more), of)
    return raised.value


async def test_next_provider_answers_after_a_failure() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    upstreams = by_name(p1=raises(refusing(500)))
    of = trace()
    answered = await relay_over(pool, upstreams).complete(chat(), of)
    assert answered.body == WHOLE
    assert outcomes(of) == [("p1", "overloaded"), ("p2", "ok")]
    assert (of.provider, of.status, running(pool)) == ("p2", 200, 0)


async def test_call_pinned_to_a_provider_fails_over_to_nobody() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    upstreams = by_name(p1=raises(refusing(500)))
    of = trace()
    with pytest.raises(UpstreamFailed, match="status 500"):
        await relay_over(pool, upstreams).complete(chat(), of, "P1")
    assert outcomes(of) == [("p1", "overloaded")]


async def test_model_that_the_only_provider_lacks_is_404() -> None:
    pool = pool_of(provider(1, "a"))
    missing = refusing(404, "no such model", code="model_not_found")
    error = await failing(relay_over(pool, by_name(p1=raises(missing))), trace())
    assert (error.http_status, error.error_reason) == (404, "model_not_found")
    assert error.message == "no such model"


async def test_one_that_lacks_the_model_does_not_speak_for_one_that_fails() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    upstreams = by_name(p1=raises(refusing(500)), p2=raises(refusing(404)))
    assert (await failing(relay_over(pool, upstreams), trace())).http_status == 502


@pytest.mark.parametrize("seconds", [None, 90.0])
async def test_wait_that_the_provider_asks_for_is_passed_on(seconds: float | None) -> None:
    limited = refusing(429)
    limited.retry_after = limited.error.retry_after = seconds
    pool = pool_of(provider(1, "a"))
    relay = relay_over(pool, by_name(p1=raises(limited)), wait=5)
    first = await failing(relay, trace())
    assert (first.http_status, first.error_reason) == (429, "rate_limit_exceeded")
    assert first.retry_after == (seconds or 2.0)
    # Nobody is asked any more; who comes now reads the same.
    second = await failing(relay, trace())
    assert (second.http_status, second.retry_after) == (503, seconds or 2.0)


async def test_shortest_wait_of_several_is_passed_on() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"), provider(3, "a"))
    waits = {"p1": 40.0, "p2": 7.0}

    async def say(line: Line) -> Any:
        limited = refusing(429 if line.provider in waits else 500)
        limited.retry_after = limited.error.retry_after = waits.get(line.provider)
        raise limited

    error = await failing(relay_over(pool, ScriptedUpstreams(say)), trace())
    assert (error.http_status, error.retry_after) == (429, 7.0)


async def test_callers_mistake_goes_to_nobody_else() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    upstreams = ScriptedUpstreams(raises(refusing(400, "bad max_tokens")))
    error = await failing(relay_over(pool, upstreams), trace())
    assert (error.http_status, len(upstreams.lines)) == (400, 1)


async def test_provider_of_another_dialect_is_passed_over() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    of = trace()
    error = await failing(relay_over(pool, ScriptedUpstreams()), of, only="ollama")
    assert isinstance(error, InvalidRequest)
    assert "does not speak ollama" in error.message
    assert outcomes(of) == [("p1", "request"), ("p2", "request")]
    mixed = pool_of(provider(1, "a", priority=1), provider(2, "a", ai_type_id="Ollama"))
    of = trace()
    await relay_over(mixed, ScriptedUpstreams()).complete(chat(only="ollama"), of)
    assert outcomes(of) == [("p1", "request"), ("p2", "ok")]


async def test_provider_that_is_not_set_up_is_passed_over() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    upstreams = ScriptedUpstreams()
    upstreams.trouble["p1"] = UpstreamFailed("no key", reason="provider_misconfigured")
    of = trace()
    await relay_over(pool, upstreams).complete(chat(), of)
    assert outcomes(of) == [("p1", "unreachable"), ("p2", "ok")]


async def test_deadline_is_for_the_whole_call() -> None:
    pool = pool_of(provider(1, "a"))
    upstreams = ScriptedUpstreams()
    of = trace()
    of.started -= 50
    await relay_over(pool, upstreams, total=60).complete(chat(), of)
    assert 9 < upstreams.lines[0].timeouts.total <= 10
    late = trace()
    late.started -= 60
    with pytest.raises(UpstreamTimedOut):
        await relay_over(pool, upstreams, total=60).complete(chat(), late)
    assert late.attempts == []


async def test_wait_for_a_slot_counts_to_the_deadline() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    held = pool.choose("a")
    assert held is not None
    of = trace()
    of.started -= 60
    with pytest.raises(TooBusy):
        await relay_over(pool, ScriptedUpstreams(), total=60.01, wait=30).complete(chat(), of)
    assert pool.waiting == 0


async def test_time_is_up_between_providers() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    of = trace()

    async def say(line: Line) -> Any:
        # As if this had taken all of it.
        of.started -= 1000
        raise refusing(500)

    upstreams = ScriptedUpstreams(say)
    relay = relay_over(pool, upstreams, total=0.02)
    with pytest.raises(ApiError) as raised:
        await relay.complete(chat(), of)
    assert raised.value.http_status == 502


async def test_endpoint_that_is_not_ready_in_time_is_passed_over() -> None:
    class Loading(ScriptedUpstreams):
        async def of(self, provider: Any) -> Any:
            await asyncio.Event().wait()

    of = trace()
    error = await failing(relay_over(pool_of(provider(1, "a")), Loading(), total=0.02), of)
    assert error.http_status == 504
    assert outcomes(of) == [("p1", "unreachable")]


async def test_output_before_the_first_word_is_held_to_its_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "MAX_HELD", 5 * len(FIRST))
    pool = pool_of(provider(1, "a"))
    upstreams = in_turn(answers(EVENTS, *[FIRST] * 20, *STREAM))
    of = trace()
    opened = await relay_over(pool, upstreams).stream(chat(stream=True), of)
    assert len(opened.held) <= 6 * len(FIRST)
    assert not opened.reader.begun
    assert (await read(opened)).endswith(b"[DONE]\n\n")
    assert outcomes(of) == [("p1", "ok")]


async def test_stream_that_dies_silent_goes_to_the_next() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    upstreams = in_turn(answers(EVENTS, FIRST, error=UpstreamReset()))
    of = trace()
    opened = await relay_over(pool, upstreams).stream(chat(stream=True), of)
    await read(opened)
    assert outcomes(of) == [("p1", "reset"), ("p2", "ok")]
    assert running(pool) == 0


async def test_stream_that_spoke_is_not_begun_again() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    upstreams = in_turn(answers(EVENTS, FIRST, WORD, error=UpstreamReset()))
    of = trace()
    opened = await relay_over(pool, upstreams).stream(chat(stream=True), of)
    with pytest.raises(ApiError):
        await read(opened)
    assert outcomes(of) == [("p1", "reset")]
    assert of.attempts[0].lost
    assert (of.status, running(pool)) == (502, 0)


async def test_parameters_are_left_out_one_by_one_and_shown() -> None:
    pool = pool_of(provider(1, "a"))
    upstreams = in_turn(
        raises(refusing(400, "Unsupported parameter: 'temperature'")),
        raises(refusing(400, "Unsupported parameter: 'top_p'")),
    )
    of = trace()
    relay = relay_over(pool, upstreams)
    sampling = {"temperature": 1, "top_p": 1, "seed": 1}
    await relay.complete(chat(members=sampling), of)
    assert [attempt.dropped for attempt in of.attempts] == [
        (),
        ("temperature",),
        ("temperature", "top_p"),
    ]
    assert outcomes(of) == [("p1", "request"), ("p1", "request"), ("p1", "ok")]
    again = trace()
    await relay.complete(chat(members=sampling), again)
    assert outcomes(again) == [("p1", "ok")]
    assert set(upstreams.lines[-1].body) == {"messages", "model", "seed"}


async def test_one_provider_is_asked_again_so_often_and_no_more() -> None:
    pool = pool_of(provider(1, "a"))
    names = ["temperature", "top_p", "seed", "user", "top_k"]

    async def say(line: Line) -> Any:
        first = next(name for name in names if name in line.body)
        raise refusing(400, f"Unsupported parameter: '{first}'")

    upstreams = ScriptedUpstreams(say)
    error = await failing(relay_over(pool, upstreams), trace(), members=dict.fromkeys(names, 1))
    assert error.http_status == 400
    assert len(upstreams.lines) == MOST_CHANGES + 1


async def test_members_without_a_place_upstream_are_shown() -> None:
    pool = pool_of(provider(1, "a", ai_type_id="Mistral AI"))
    of = trace()
    upstreams = ScriptedUpstreams()
    members = {"seed": 1, "logit_bias": {"1": 2}, "user": None, "store": True}
    await relay_over(pool, upstreams).complete(chat(members=members), of)
    assert of.attempts[0].dropped == ("logit_bias", "store")
    assert set(upstreams.lines[0].body) == {"messages", "model", "random_seed"}


@pytest.mark.parametrize("own", [{}, {"stream_options": {"include_obfuscation": False}}])
async def test_usage_that_only_we_asked_for_is_given_up(own: dict[str, Any]) -> None:
    pool = pool_of(provider(1, "a"))
    refusal = refusing(400, "json: unknown field 'stream_options'")
    upstreams = in_turn(raises(refusal))
    relay = relay_over(pool, upstreams)
    for expected in ([("p1", "request"), ("p1", "ok")], [("p1", "ok")]):
        of = trace()
        await read(await relay.stream(chat(stream=True, members=own), of))
        assert outcomes(of) == expected
    assert ["stream_options" in line.body for line in upstreams.lines] == [True, False, False]


async def test_hot_lanes_failure_is_taken_up() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    of = left_by_the_lane(pool, refusing(500))
    upstreams = ScriptedUpstreams()
    await relay_over(pool, upstreams).complete(chat(), of)
    assert outcomes(of) == [("p1", "overloaded"), ("p2", "ok")]
    assert (len(upstreams.lines), running(pool)) == (1, 0)


async def test_caller_that_leaves_after_the_hot_lane_frees_its_slot() -> None:
    pool = pool_of(provider(1, "a"))
    of = left_by_the_lane(pool, refusing(400, "Unsupported parameter: 'temperature'"))
    relay = relay_over(pool, ScriptedUpstreams(never))
    calling = asyncio.create_task(relay.complete(chat(members={"temperature": 1}), of))
    for _ in range(5):
        await asyncio.sleep(0)
    assert running(pool) == 1
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert outcomes(of) == [("p1", "request"), ("p1", "cancelled")]
    assert running(pool) == 0


def test_what_nobody_takes_up_is_ended_and_freed() -> None:
    pool = pool_of(provider(1, "a"))
    of = left_by_the_lane(pool, refusing(429))
    assert of.left is not None
    of.left.drop()
    of.left.drop()
    assert outcomes(of) == [("p1", "limited")]
    assert (running(pool), pool.state(1).value) == (0, "cooling")


def left_by_the_lane(pool: ProviderPool, failure: Any) -> Trace:
    """A call that the hot lane began, and gave up with this failure."""
    of = trace()
    tries = Tries(of)
    lease = pool.choose("a")
    assert lease is not None
    tries.begin(lease)
    tries.interrupted = (lease, failure)
    of.left = tries
    return of


SCRIPTS: list[Say] = [
    well,
    never,
    raises(RuntimeError("a bug")),
    raises(UpstreamFailed("misconfigured")),
    raises(InvalidRequest("cannot carry it")),
    raises(refusing(400, "Unsupported parameter: 'temperature'")),
    raises(refusing(400, "Unsupported parameter: 'stream_options'")),
    raises(refusing(400, "bad")),
    *(raises(refusing(code)) for code in (401, 404, 429, 500, 504)),
    answers(JSON, WHOLE),
    answers(JSON, b"{"),
    answers(JSON, b'{"error": {"message": "no"}}'),
    answers(EVENTS, *STREAM),
    answers(EVENTS, FIRST),
    answers(EVENTS, FIRST, WORD),
    answers(EVENTS, FIRST, error=UpstreamReset()),
    answers(EVENTS, FIRST, WORD, error=UpstreamReset()),
    answers(EVENTS, FIRST, WORD, LAST),
    answers(EVENTS, b"data: [\n\n"),
    answers(EVENTS, FIRST, ends=False),
    answers(EVENTS, FIRST, WORD, ends=False),
    answers(EVENTS, FIRST, sse({"error": {"message": "no"}}), ends=False),
    answers(EVENTS, FIRST, WORD, sse({"error": {"message": "no"}}), ends=False),
    answers(EVENTS, *STREAM, ends=False),
    answers(JSON, b"{", ends=False),
]
PROVIDERS = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), min_size=1, max_size=3)
# Streamed; cancelled after so many turns of the loop; so many pieces read; pinned to one provider.
CALLS = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 30) | st.none(), st.integers(0, 3) | st.none(), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROVIDERS, st.lists(st.sampled_from(SCRIPTS), max_size=12), CALLS, st.booleans())
def test_however_calls_end_nothing_stays_held(
    providers: list[tuple[int, int]],
    scripts: list[Say],
    calls: list[tuple[bool, int | None, int | None, bool]],
    resumes: bool,
) -> None:
    """Slots, waiters and upstream answers are freed, and every attempt has an outcome."""

    async def run() -> None:
        pool = pool_of(
            *(
                provider(number, "a", concurrency=slots, priority=priority)
                for number, (slots, priority) in enumerate(providers, 1)
            ),
            clock=StillClock(),
        )
        upstreams = in_turn(*scripts)
        relay = relay_over(pool, upstreams)
        traces = [trace() for _ in calls]
        if resumes:
            traces[0] = left_by_the_lane(pool, refusing(500))
        tasks = [
            asyncio.create_task(one_call(relay, of, stream, pieces, "p1" if pinned else None))
            for of, (stream, _, pieces, pinned) in zip(traces, calls, strict=True)
        ]
        for turn in range(60):
            for task, (_, after, _, _) in zip(tasks, calls, strict=True):
                if after == turn:
                    task.cancel()
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # As the doors do for a call that was gone before it ran.
        if traces[0].left is not None:
            traces[0].left.drop()
        assert running(pool) == 0
        assert pool.waiting == 0
        assert not any(line.open for line in upstreams.lines)
        for of in traces:
            check(of)

    asyncio.run(run())


async def one_call(
    relay: Relay, of: Trace, stream: bool, pieces: int | None, pinned: str | None
) -> None:
    asked = chat(stream=stream, members={"temperature": 1})
    if not stream:
        await relay.complete(asked, of, pinned)
        return
    opened = await relay.stream(asked, of, pinned)
    events = rest(opened)
    try:
        read = 0
        async for _ in events:
            read += 1
            if pieces is not None and read > pieces:
                break
    finally:
        await events.aclose()
        closed(opened)


def check(of: Trace) -> None:
    kinds = {"ok", "cancelled", *(kind.value for kind in FailureKind)}
    assert all(attempt.outcome in kinds for attempt in of.attempts)
    assert all(0 <= attempt.began <= attempt.ended for attempt in of.attempts)
    ended = [outcome for _, outcome in outcomes(of)]
    assert ended.count("ok") <= 1
    assert "ok" not in ended[:-1]
    asked = [name for name, outcome in outcomes(of) if outcome != "request"]
    assert len(asked) == len(set(asked))
    if of.usage is not None:
        assert of.attempts
