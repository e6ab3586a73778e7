"""The choice of a provider: who serves, who is free, who does well, who waits and for how long."""

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from aiserver.contract.errors import ModelNotFound, NotFound, TooBusy
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.health import FailureKind, State
from aiserver.providers.names import MOST_ROUTES
from aiserver.providers.pool import MOST_WAITING, Lease, NobodyLeft, ProviderPool
from aiserver.providers.store import Provider
from fakes.providers import FakeStore, StillClock, pool_of, pool_on, provider, refreshed

UNLIMITED = 0


def taken(pool: ProviderPool, model: str = "a", **more: object) -> Lease:
    lease = pool.choose(model, **more)  # pyright: ignore[reportArgumentType]
    assert lease is not None
    return lease


def failing(pool: ProviderPool, *ids: int) -> None:
    """Opens the breakers of these providers of `a`."""
    others = {p.id for p in pool.providers()} - set(ids)
    for _ in range(5 * len(ids)):
        lease = taken(pool, tried=others)
        lease.failed(FailureKind.OVERLOADED)
        lease.release()


def test_provider_that_serves_the_model_is_chosen() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "b=upstream-b"))
    lease = pool.choose("b")
    assert lease is not None
    assert (lease.provider.id, lease.api_model) == (2, "upstream-b")


def test_higher_priority_comes_first() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a", priority=5))
    chosen = [lease.provider.id for _ in range(3) if (lease := pool.choose("a"))]
    assert chosen == [2, 2, 2]


def test_load_is_shared_by_capacity() -> None:
    pool = pool_of(provider(1, "a", concurrency=2), provider(2, "a", concurrency=4))
    chosen = [lease.provider.id for _ in range(6) if (lease := pool.choose("a"))]
    assert sorted(chosen) == [1, 1, 2, 2, 2, 2]
    assert chosen[:3] == [1, 2, 2]
    assert pool.choose("a") is None


def test_named_provider_is_used_in_any_case() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a", name="Mine"))
    lease = pool.choose("a", provider="mine")
    assert lease is not None
    assert lease.provider.id == 2


def test_unknown_provider_lists_the_known() -> None:
    with pytest.raises(NotFound, match=r"no provider 'x'. Known providers: p1, p2"):
        pool_of(provider(1, "a"), provider(2, "b")).choose("a", provider="x")


def test_unknown_model_is_named() -> None:
    with pytest.raises(ModelNotFound, match="Model x not found"):
        pool_of(provider(1, "a")).choose("x")
    with pytest.raises(ModelNotFound, match="at provider p1"):
        pool_of(provider(1, "a"), provider(2, "b")).choose("b", provider="p1")


def test_disabled_provider_takes_nothing() -> None:
    pool = pool_of(provider(1, "a", enabled=False))
    assert pool.models() == {}
    with pytest.raises(ModelNotFound):
        pool.choose("a")


def test_listed_models_count_only_without_own_ones() -> None:
    pool = pool_of(provider(1), provider(2, "own"))
    pool.learn(1, ["x", "y"])
    pool.learn(2, ["z"])
    assert pool.models() == {"x": "p1", "y": "p1", "own": "p2"}


def test_released_slot_is_free_again() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    lease = pool.choose("a")
    assert lease is not None
    assert pool.choose("a") is None
    lease.release()
    lease.release()
    assert pool.running(1) == 0
    assert pool.choose("a") is not None


async def test_caller_waits_for_a_slot() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    first = await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release()
    assert (await waiting).provider.id == 1


async def test_wait_ends_with_what_was_full() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    await pool.acquire("a", provider=None, wait=1)
    with pytest.raises(TooBusy, match="Every provider of a is busy") as caught:
        await pool.acquire("a", provider=None, wait=0.01)
    assert caught.value.retry_after


async def test_waiting_callers_are_bounded() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    await pool.acquire("a", provider=None, wait=1)
    waiting = [
        asyncio.create_task(pool.acquire("a", provider=None, wait=30)) for _ in range(MOST_WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooBusy, match=f"{MOST_WAITING} calls are waiting"):
        await pool.acquire("a", provider=None, wait=30)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_caller_that_gave_up_takes_no_slot() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    first = await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.release()
    assert pool.running(1) == 0


async def test_new_provider_is_seen_by_those_who_wait() -> None:
    store = FakeStore(provider(1, "a", concurrency=1))
    pool = pool_on(store)
    await pool.acquire("a", provider=None, wait=1)
    waiting = asyncio.create_task(pool.acquire("a", provider=None, wait=5))
    await asyncio.sleep(0)
    store.put(*store.providers, provider(2, "a"))
    refreshed(pool)
    assert (await waiting).provider.id == 2


def test_running_calls_outlive_a_change() -> None:
    store = FakeStore(provider(1, "a", concurrency=2))
    pool = pool_on(store)
    lease = pool.choose("a")
    assert lease is not None
    store.put(provider(1, "a", concurrency=1))
    refreshed(pool)
    assert pool.choose("a") is None
    lease.release()
    assert pool.choose("a") is not None


@pytest.mark.parametrize(
    ("asked", "served", "upstream"),
    [
        ("own", "own", "up"),
        ("llama", "llama:70b", "llama:70b"),
        ("llama:latest", "llama:70b", "llama:70b"),
        ("P1/own", "own", "up"),
        ("p1/llama", "llama:70b", "llama:70b"),
        ("p1/x", "p1/x", "literal"),
        ("custom", "custom:latest", "custom:latest"),
        ("bare:latest", "bare", "bare"),
    ],
)
def test_name_leads_to_what_is_served(asked: str, served: str, upstream: str) -> None:
    pool = pool_of(
        provider(1, "own=up", "llama:70b", "x", "bare"),
        provider(2, "p1/x=literal", "custom:latest"),
        qualified={"llama": "llama:70b", "llama:latest": "llama:70b"}.get,
    )
    lease = taken(pool, asked)
    assert (lease.model, lease.api_model) == (served, upstream)


def test_type_gives_the_upstreams_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"llama:70b": "meta/llama-70b", "phi": "microsoft/phi"}
    monkeypatch.setattr(BY_ID["OpenRouter"].wire, "api_models", names)
    pool = pool_of(
        provider(1, "llama:70b", "phi=own-name", ai_type_id="OpenRouter"),
        provider(2, ai_type_id="OpenRouter"),
        qualified={"llama": "llama:70b", "gemma": "gemma:9b"}.get,
    )
    pool.learn(2, ["meta/llama-70b", "microsoft/phi"])
    assert taken(pool, "llama").api_model == "meta/llama-70b"
    assert taken(pool, "phi").api_model == "own-name"
    assert taken(pool, "phi", provider="p2").api_model == "microsoft/phi"
    with pytest.raises(ModelNotFound):
        pool.choose("gemma")


def test_names_that_are_kept_are_bounded() -> None:
    name = "abcdefghijklmn"
    pool = pool_of(provider(1, "a", name=name))
    for number in range(MOST_ROUTES + 1):
        spelled = "".join(c.upper() if number >> i & 1 else c for i, c in enumerate(name))
        taken(pool, f"{spelled}/a").release()
    assert len(pool._names._routes) == 1


def test_choice_shows_what_it_was_made_from() -> None:
    clock = StillClock()
    pool = pool_of(
        provider(1, "a", concurrency=1, priority=2, weight=3),
        provider(2, "a"),
        provider(3, "a"),
        provider(4, "a"),
        clock=clock,
    )
    taken(pool)
    limited = taken(pool, tried={3, 4})
    limited.failed(FailureKind.LIMITED, retry_after=3)
    lease = taken(pool, tried=[3])
    assert [tuple(getattr(c, f) for f in c.__struct_fields__) for c in lease.considered] == [
        ("p1", 1, 1, 2, 3, "busy"),
        ("p2", 1, 0, 0, 1, "cooling"),
        ("p3", 0, 0, 0, 1, "tried"),
        ("p4", 0, 0, 0, 1, "ready"),
    ]


def test_choice_shows_the_load_of_its_moment() -> None:
    pool = pool_of(provider(1, "a"))
    assert [taken(pool).considered[0].running for _ in range(3)] == [0, 1, 2]


def test_idle_equals_take_turns() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a", weight=2), provider(3, "a"))
    given: Counter[int] = Counter()
    for _ in range(40):
        lease = taken(pool)
        given[lease.provider.id] += 1
        lease.release()
    assert given == {1: 10, 2: 20, 3: 10}


def test_provider_that_was_away_is_owed_nothing() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    for _ in range(100):
        taken(pool, tried=[2]).release()
    given: list[int] = []
    for _ in range(4):
        lease = taken(pool)
        given.append(lease.provider.id)
        lease.release()
    assert given == [2, 1, 2, 1]


def test_weight_counts_as_capacity() -> None:
    pool = pool_of(provider(1, "a", weight=3), provider(2, "a"))
    given = Counter(taken(pool).provider.id for _ in range(40))
    assert given == {1: 30, 2: 10}


@pytest.mark.parametrize(("limit", "callers"), [(UNLIMITED, 150), (8, 24), (8, 200), (40, 90)])
def test_shares_follow_speed(limit: int, callers: int) -> None:
    speeds = {1: 1, 2: 2, 3: 4, 4: 8}
    pool = pool_of(*(provider(i, "a", concurrency=limit) for i in speeds))
    running: list[tuple[float, int, Lease]] = []
    order, now, idle = count(), 0.0, callers
    given: Counter[int] = Counter()
    for _ in range(6000):
        while idle and (lease := pool.choose("a")) is not None:
            ends = now + 1 / speeds[lease.provider.id]
            heapq.heappush(running, (ends, next(order), lease))
            idle -= 1
        now, _, lease = heapq.heappop(running)
        lease.succeeded()
        lease.release()
        given[lease.provider.id] += 1
        idle += 1
    for id, speed in speeds.items():
        assert given[id] / given.total() == pytest.approx(speed / 15, rel=0.1)


def test_loaded_model_is_preferred_within_bounds() -> None:
    pool = pool_of(provider(1, "a=x:latest", concurrency=4), provider(2, "a=x", concurrency=4))
    pool.warm(2, {"x:latest"})
    leases = [taken(pool) for _ in range(8)]
    assert [lease.provider.id for lease in leases[:5]] == [2, 2, 2, 1, 2]
    assert [c.state for c in leases[0].considered] == ["ready", "warm"]
    assert pool.running(1) == pool.running(2) == 4


def test_loaded_model_does_not_beat_priority() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    pool.warm(2, {"a"})
    assert taken(pool).provider.id == 1


def test_failing_provider_is_passed_over_until_its_trial() -> None:
    clock = StillClock()
    pool = pool_of(provider(1, "a", priority=9), provider(2, "a"), clock=clock)
    failing(pool, 1)
    assert taken(pool).provider.id == 2
    clock.seconds += 5
    trial = taken(pool)
    assert trial.provider.id == 1
    assert trial.considered[0].state == State.TRIAL
    assert taken(pool).provider.id == 2
    trial.release()
    again = taken(pool)
    assert again.provider.id == 1
    again.succeeded()
    assert [taken(pool).provider.id for _ in range(3)] == [1, 1, 1]


def test_one_failure_disables_nobody() -> None:
    pool = pool_of(provider(1, "a", priority=1), provider(2, "a"))
    for kind in (FailureKind.OVERLOADED, FailureKind.UNREACHABLE):
        lease = taken(pool)
        lease.failed(kind)
        lease.release()
        assert taken(pool).provider.id == 1


def test_lone_provider_is_never_locked_out() -> None:
    pool = pool_of(provider(1, "a"))
    failing(pool, 1)
    assert taken(pool).considered[0].state == State.FAILING
    for _ in range(3):
        taken(pool).failed(FailureKind.UNREACHABLE)
    assert taken(pool).considered[0].state == State.OFFLINE


def test_least_recently_failed_comes_first_when_all_fail() -> None:
    clock = StillClock()
    pool = pool_of(provider(1, "a"), provider(2, "a"), provider(3, "a"), clock=clock)
    failing(pool, 2)
    clock.seconds += 1
    failing(pool, 1)
    clock.seconds += 1
    failing(pool, 3)
    assert taken(pool).provider.id == 2
    assert taken(pool, tried=[2]).provider.id == 1
    assert taken(pool, tried=[1, 2]).provider.id == 3


def test_failing_provider_waits_while_another_is_left() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"), provider(3, "a"))
    failing(pool, 2)
    assert taken(pool, tried=[1]).provider.id == 3
    assert taken(pool, tried=[1, 3]).provider.id == 2
    with pytest.raises(NobodyLeft) as caught:
        pool.choose("a", tried=[1, 2, 3])
    assert caught.value.reasons == {"p1": "tried", "p2": "tried", "p3": "tried"}


def test_those_that_rest_are_left_alone() -> None:
    clock = StillClock()
    pool = pool_of(provider(1, "a"), provider(2, "a"), provider(3, "a"), clock=clock)
    for seconds in (30, 20, 10):
        taken(pool).failed(FailureKind.LIMITED, retry_after=seconds)
    with pytest.raises(NobodyLeft) as caught:
        pool.choose("a")
    assert set(caught.value.reasons.values()) == {"cooling"}
    assert caught.value.retry_after == pytest.approx(10)
    clock.seconds += 10
    assert taken(pool)


def test_refused_credentials_take_out_of_service() -> None:
    store = FakeStore(provider(1, "a"))
    pool = pool_on(store)
    lease = taken(pool)
    lease.failed(FailureKind.CREDENTIALS)
    with pytest.raises(NobodyLeft, match="misconfigured") as caught:
        pool.choose("a")
    assert caught.value.retry_after is None
    store.put(provider(1, "a", api_key=b"another"))
    refreshed(pool)
    assert taken(pool)
    lease.failed(FailureKind.CREDENTIALS)
    assert pool.state(1) is State.READY


def test_unchanged_row_keeps_its_health() -> None:
    store = FakeStore(provider(1, "a"))
    pool = pool_on(store)
    taken(pool).failed(FailureKind.CREDENTIALS)
    store.put(provider(1, "a"), provider(2, "b"))
    refreshed(pool)
    assert pool.state(1) is State.MISCONFIGURED
    pool.forgive(1)
    assert pool.state(1) is State.READY


def test_provider_without_the_model_is_asked_last() -> None:
    pool = pool_of(provider(1, "a", "b", priority=1), provider(2, "a"))
    taken(pool).failed(FailureKind.MODEL_MISSING)
    assert taken(pool).provider.id == 2
    assert taken(pool, "b").provider.id == 1
    failing(pool, 2)
    assert taken(pool).provider.id == 2
    assert taken(pool, tried=[2]).provider.id == 1


def test_provider_that_was_taken_offline_gets_nothing() -> None:
    offline = StillClock().now()
    pool = pool_of(provider(1, "a", offline=offline))
    assert pool.models() == {}
    assert pool.offline_since(pool.providers()[0]) == offline
    with pytest.raises(NobodyLeft, match="taken offline"):
        pool.choose("a")


def test_only_the_first_word_on_a_call_counts() -> None:
    pool = pool_of(provider(1, "a"), provider(2, "a"))
    lease = taken(pool)
    for _ in range(10):
        lease.failed(FailureKind.OVERLOADED)
        lease.succeeded()
    assert pool.state(lease.provider.id) is State.READY


async def waiting_for(
    pool: ProviderPool, *models: str, wait: float = 5
) -> list[asyncio.Task[Lease]]:
    """One caller for each, in this order."""
    tasks: list[asyncio.Task[Lease]] = []
    for model in models:
        tasks.append(asyncio.create_task(pool.acquire(model, wait=wait)))
        await asyncio.sleep(0)
    return tasks


async def test_first_in_line_is_served_first() -> None:
    pool = pool_of(provider(1, "a", "b", concurrency=1))
    lease = taken(pool)
    for waiter in await waiting_for(pool, "a", "b", "a", "b"):
        assert pool.choose("a") is None
        lease.release()
        async with asyncio.timeout(5):
            lease = await waiter
    lease.release()
    assert not pool._line.waiting
    assert not pool._line._at


async def test_slot_goes_to_one_who_can_use_it() -> None:
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "b", concurrency=1))
    held = taken(pool)
    other = taken(pool, "b")
    first, second = await waiting_for(pool, "a", "b")
    other.release()
    assert (await second).provider.id == 2
    assert not first.done()
    held.release()
    assert (await first).provider.id == 1


async def test_caller_that_gives_up_hands_its_slot_on() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    held = taken(pool)
    first, second = await waiting_for(pool, "a", "a")
    held.release()
    first.cancel()
    assert (await second).provider.id == 1
    assert first.cancelled()
    assert pool.running(1) == 1


async def test_tried_provider_is_not_waited_for() -> None:
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "a", concurrency=1))
    first, second = taken(pool), taken(pool)
    waiter = asyncio.create_task(pool.acquire("a", tried=[first.provider.id], wait=5))
    await asyncio.sleep(0)
    first.release()
    await asyncio.sleep(0)
    assert not waiter.done()
    second.release()
    assert (await waiter).provider.id == second.provider.id


async def test_caller_learns_at_once_that_nobody_is_left() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    held = taken(pool)
    [waiter] = await waiting_for(pool, "a")
    held.failed(FailureKind.CREDENTIALS)
    with pytest.raises(NobodyLeft, match="misconfigured"):
        await waiter
    with pytest.raises(NobodyLeft):
        await pool.acquire("a", wait=5)


async def test_caller_learns_at_once_that_its_model_is_gone() -> None:
    store = FakeStore(provider(1, "a", concurrency=1))
    pool = pool_on(store)
    taken(pool)
    [waiter] = await waiting_for(pool, "a")
    store.put(provider(1, "b", concurrency=1))
    refreshed(pool)
    with pytest.raises(ModelNotFound):
        await waiter


async def test_rest_that_ends_is_noticed_by_those_who_wait() -> None:
    clock = StillClock()
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "a"), clock=clock)
    taken(pool, tried=[2])
    resting = taken(pool)
    resting.failed(FailureKind.LIMITED, retry_after=1)
    clock.seconds += 0.99
    [waiter] = await waiting_for(pool, "a")
    clock.seconds += 0.02
    async with asyncio.timeout(5):
        assert (await waiter).provider.id == 2
    assert not pool._line._alarms


async def test_provider_that_is_back_serves_all_who_wait() -> None:
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "a"))
    taken(pool, tried=[2])
    taken(pool).failed(FailureKind.CREDENTIALS)
    waiters = await waiting_for(pool, "a", "a", "a")
    pool.probed(pool.providers()[1], None)
    assert [(await w).provider.id for w in waiters] == [2, 2, 2]


async def test_trial_that_ends_without_a_word_goes_to_the_next() -> None:
    clock = StillClock()
    pool = pool_of(provider(1, "a", concurrency=1), provider(2, "a"), clock=clock)
    failing(pool, 2)
    clock.seconds += 5
    taken(pool, tried=[2])
    trial = taken(pool)
    [waiter] = await waiting_for(pool, "a")
    trial.release()
    assert (await waiter).provider.id == 2


async def test_caller_that_cannot_be_served_blocks_nobody() -> None:
    pool = pool_of(provider(1, "a", "b", concurrency=1), provider(2, "a", concurrency=1))
    taken(pool, tried=[2]).failed(FailureKind.MODEL_MISSING)
    taken(pool)
    first, second = await waiting_for(pool, "a", "b")
    pool.freed(pool._candidates[1])
    assert (await second).model == "b"
    assert not first.done()
    first.cancel()


async def test_longer_line_costs_a_release_no_more() -> None:
    pool = pool_of(provider(1, "a", concurrency=1))
    lease = taken(pool)
    waiters = await waiting_for(pool, *["a"] * MOST_WAITING)
    asked = 0
    serve = pool._line._serve

    def counted(waiter: object) -> Lease | None:
        nonlocal asked
        asked += 1
        return serve(waiter)  # pyright: ignore[reportArgumentType]

    pool._line._serve = counted
    for waiter in waiters[:10]:
        lease.release()
        lease = await waiter
    assert asked == 10
    for waiter in waiters[10:]:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert not pool._line.waiting


LIMITS = st.tuples(*[st.sampled_from([1, 1, 2, 2, 3, 0])] * 3)


class Traffic(RuleBasedStateMachine):
    """Calls, failures, changes and callers that wait, in any order."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.clock = StillClock()
        self.held: set[Lease] = set()
        self.ordered: dict[asyncio.Task[Lease], tuple[str, frozenset[int]]] = {}
        self.loop = asyncio.new_event_loop()

    @initialize(limits=LIMITS)
    def begin(self, limits: tuple[int, int, int]) -> None:
        self.limits = limits
        self.store = FakeStore(*self.rows(limits))
        self.pool = pool_on(self.store, self.clock)

    def rows(self, limits: Iterable[int]) -> Iterator[Provider]:
        for id, (limit, models) in enumerate(zip(limits, ("ab", "a", "b"), strict=True), 1):
            yield provider(id, *models, concurrency=limit)

    def keep(self, lease: Lease) -> None:
        limit = self.limits[lease.provider.id - 1]
        mine = [held for held in self.held if held.provider.id == lease.provider.id]
        assert not limit or len(mine) < limit
        self.held.add(lease)

    def spin(self) -> None:
        async def pause() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pause())
        for task in [task for task in self.ordered if task.done()]:
            del self.ordered[task]
            if not task.cancelled() and task.exception() is None:
                self.keep(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), NobodyLeft)

    @rule(target=leases, model=st.sampled_from("ab"), tried=st.frozensets(st.integers(1, 3)))
    def choose(self, model: str, tried: frozenset[int]) -> Lease | None:
        try:
            lease = self.pool.choose(model, tried=tried)
        except NobodyLeft:
            return None
        if lease is not None:
            assert lease.provider.id not in tried
            self.keep(lease)
        return lease

    @rule(model=st.sampled_from("ab"), tried=st.frozensets(st.integers(1, 3), max_size=2))
    def wait(self, model: str, tried: frozenset[int]) -> None:
        task = self.loop.create_task(self.pool.acquire(model, tried=tried, wait=60))
        self.ordered[task] = (model, tried)
        self.spin()

    @rule(model=st.sampled_from("ab"), callers=st.integers(1, 8))
    def rush(self, model: str, callers: int) -> None:
        for _ in range(callers):
            self.wait(model, frozenset())

    @rule(id=st.integers(1, 3), kind=st.sampled_from(list(FailureKind)))
    def storm(self, id: int, kind: FailureKind) -> None:
        for _ in range(5):
            model, others = "b" if id == 3 else "a", frozenset({1, 2, 3} - {id})
            try:
                lease = self.pool.choose(model, tried=others)
            except NobodyLeft:
                return
            if lease is None:
                return
            self.keep(lease)
            lease.failed(kind)
            self.let_go(lease)
            self.spin()

    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        if which < len(self.ordered):
            list(self.ordered)[which].cancel()

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            self.let_go(lease)

    @rule(which=st.integers(0, 9))
    def release_one_that_waited(self, which: int) -> None:
        if self.held:
            self.let_go(sorted(self.held, key=id)[which % len(self.held)])

    def let_go(self, lease: Lease) -> None:
        self.held.discard(lease)
        lease.release()
        lease.release()

    @rule(lease=leases, kind=st.sampled_from([None, *FailureKind]))
    def tell(self, lease: Lease | None, kind: FailureKind | None) -> None:
        if lease is not None and kind is None:
            lease.succeeded()
        elif lease is not None and kind is not None:
            lease.failed(kind)

    @rule(id=st.integers(1, 3), kind=st.sampled_from([None, *FailureKind]))
    def probe(self, id: int, kind: FailureKind | None) -> None:
        self.pool.probed(self.pool.providers()[id - 1], kind)

    @rule(limits=LIMITS)
    def change(self, limits: tuple[int, int, int]) -> None:
        # Calls that were given before a limit fell are finished.
        self.limits = limits
        self.store.put(*self.rows(limits))
        refreshed(self.pool)

    @rule()
    def learn(self) -> None:
        self.pool.learn(1, ["z"])

    @rule(seconds=st.sampled_from([0.5, 5, 60]))
    def pass_time(self, seconds: float) -> None:
        self.clock.seconds += seconds
        for candidate in list(self.pool._line._alarms):
            self.pool._line._alarms[candidate].cancel()
            self.pool._line._rung(candidate)

    @invariant()
    def slots_are_held_or_wanted_by_nobody(self) -> None:
        self.spin()
        counted = Counter(lease.provider.id for lease in self.held)
        for id in (1, 2, 3):
            assert self.pool.running(id) == counted[id]
        for model, tried in self.ordered.values():
            try:
                assert self.pool.choose(model, tried=tried) is None
            except NobodyLeft:
                # One that it tried is well again: that tells it nothing until a slot is free.
                assert tried

    def teardown(self) -> None:
        for lease in list(self.held):
            self.let_go(lease)
        while self.ordered:
            for task in list(self.ordered):
                task.cancel()
            self.spin()
        for lease in list(self.held):
            self.let_go(lease)
        assert not self.pool._line.waiting
        assert not self.pool._line._at
        assert not self.pool._line._alarms
        assert all(self.pool.running(id) == 0 for id in (1, 2, 3))
        self.loop.close()


Traffic.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, derandomize=True, database=None, deadline=None
)
TestTraffic = Traffic.TestCase
