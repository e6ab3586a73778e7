"""Who is asked whether it is back, how often, and what an answer changes."""

import asyncio

import pytest

from aiserver.contract.errors import UpstreamFailed
from aiserver.providers.health import FailureKind, State
from aiserver.providers.pool import ProviderPool
from aiserver.providers.probes import MOST_AT_ONCE, Probes
from aiserver.providers.store import Provider
from fakes.providers import FakeStore, StillClock, pool_of, pool_on, provider, refreshed


class KindOfFailure(Exception):
    def __init__(self, kind: FailureKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


class Upstream:
    """Answers probes, or fails them with `error`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def probe(self, provider: Provider) -> None:
        self.asked.append(provider.name)
        if self.error is not None:
            raise self.error


class Ward:
    """Probes of one provider, and how it does."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.upstream = Upstream()
        self.store = FakeStore(provider(1, "a"))
        self.pool = pool_on(self.store, self.clock)
        self.probes = Probes(self.pool, self.upstream.probe, self.clock)

    def fails(self, kind: FailureKind) -> None:
        for _ in range(3):
            lease = self.pool.choose("a")
            assert lease is not None
            lease.failed(kind)
            lease.release()
            if kind is FailureKind.CREDENTIALS:
                return

    async def asked_within(self, seconds: int) -> list[int]:
        """After how many seconds the provider was asked, looking each second."""
        asked: list[int] = []
        for second in range(seconds):
            before = len(self.upstream.asked)
            await self.probes.round()
            if len(self.upstream.asked) > before:
                asked.append(second)
            self.clock.seconds += 1
        return asked

    def state(self) -> State:
        return self.pool.state(1)


@pytest.fixture
def ward() -> Ward:
    return Ward()


async def test_provider_that_is_well_is_not_asked(ward: Ward) -> None:
    assert await ward.asked_within(120) == []


async def test_offline_provider_is_asked_ever_less_often(ward: Ward) -> None:
    ward.fails(FailureKind.UNREACHABLE)
    ward.upstream.error = OSError("refused")
    assert await ward.asked_within(220) == [5, 15, 35, 75, 135, 195]
    assert ward.state() is State.OFFLINE


async def test_offline_provider_that_answers_is_back(ward: Ward) -> None:
    ward.fails(FailureKind.UNREACHABLE)
    assert ward.pool.offline_since(ward.pool.providers()[0]) is not None
    assert await ward.asked_within(60) == [5]
    assert ward.state() is State.READY
    assert ward.pool.offline_since(ward.pool.providers()[0]) is None


async def test_misconfigured_provider_is_asked_each_minute(ward: Ward) -> None:
    ward.fails(FailureKind.CREDENTIALS)
    ward.upstream.error = KindOfFailure(FailureKind.CREDENTIALS)
    assert await ward.asked_within(190) == [60, 120, 180]
    ward.upstream.error = None
    assert await ward.asked_within(120) == [50]
    assert ward.state() is State.READY


async def test_refused_key_is_no_outage(ward: Ward) -> None:
    ward.upstream.error = UpstreamFailed("no", reason="provider_credentials")
    assert not await ward.probes.check(ward.pool.providers()[0])
    assert ward.state() is State.MISCONFIGURED


async def test_provider_without_a_listing_counts_as_there(ward: Ward) -> None:
    ward.fails(FailureKind.UNREACHABLE)
    ward.upstream.error = KindOfFailure(FailureKind.MODEL_MISSING)
    assert await ward.probes.check(ward.pool.providers()[0])
    assert ward.state() is State.READY


async def test_administrators_word_is_not_probed_away(ward: Ward) -> None:
    ward.store.put(provider(1, "a", offline=ward.clock.now()))
    refreshed(ward.pool)
    assert await ward.asked_within(120) == []
    assert await ward.probes.check(ward.pool.providers()[0])
    assert ward.state() is State.TAKEN_OFFLINE


async def test_answer_for_a_row_that_changed_counts_no_more(ward: Ward) -> None:
    before = ward.pool.providers()[0]
    ward.upstream.error = OSError("refused")
    ward.store.put(provider(1, "a", api_base_url="http://another"))
    refreshed(ward.pool)
    assert not await ward.probes.check(before)
    assert ward.state() is State.READY


async def test_changed_provider_starts_its_pauses_anew(ward: Ward) -> None:
    ward.fails(FailureKind.UNREACHABLE)
    ward.upstream.error = OSError("refused")
    await ward.asked_within(100)
    ward.store.put(provider(1, "a", api_base_url="http://another"))
    refreshed(ward.pool)
    ward.fails(FailureKind.UNREACHABLE)
    assert await ward.asked_within(10) == [5]


async def test_probes_at_once_are_bounded() -> None:
    clock, going, most = StillClock(), 0, 0
    release = asyncio.Event()

    async def probe(_: Provider) -> None:
        nonlocal going, most
        going += 1
        most = max(most, going)
        if going == MOST_AT_ONCE:
            release.set()
        await release.wait()
        going -= 1

    pool: ProviderPool = pool_of(*(provider(i, "a") for i in range(1, 21)), clock=clock)
    probes = Probes(pool, probe, clock)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*(probes.check(p) for p in pool.providers()))
    assert results == [True] * 20
    assert most == MOST_AT_ONCE


async def test_probe_that_hangs_is_ended(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiserver.providers.probes.PROBE_SECONDS", 0.01)

    async def hang(_: Provider) -> None:
        await asyncio.Event().wait()

    probes = Probes(ward.pool, hang, ward.clock)
    assert not await probes.check(ward.pool.providers()[0])
    assert ward.state() is State.OFFLINE
