"""Whether a provider takes calls: an administrator's word, a check, and what others see of it."""

import asyncio
from typing import Any

import pytest

from aiserver.contract.caller import ADMINISTRATOR
from aiserver.contract.errors import NotFound
from aiserver.contract.operation import Call, operation_of
from aiserver.contract.trace import Trace
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher
from aiserver.kit.tables import Tables
from aiserver.providers.handlers import ProviderHandlers
from aiserver.providers.health import FailureKind, State
from aiserver.providers.operations import (
    CreateAiProvider,
    GetActiveProviders,
    QueryAiProviders,
    UpdateAiProvider,
)
from aiserver.providers.pool import NobodyLeft, ProviderPool
from aiserver.providers.probes import Probes
from aiserver.providers.status_handlers import StatusHandlers
from aiserver.providers.status_operations import ChangeAiProviderStatus, CheckAiProviderStatus
from aiserver.providers.store import Provider, ProviderStore
from fakes.providers import StillClock


class Process:
    """One server process on the database; `answers` is what its probes meet."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self.store = ProviderStore(tables, Cipher(bytes(32)), clock, lambda _: None)
        self.pool = ProviderPool(self.store, clock=clock)
        self.answers: Exception | None = None
        self.changed = 0
        self.probes = Probes(self.pool, self.probe, clock)
        providers = ProviderHandlers(
            self.store, self.pool, changed=self.changes, asleep=lambda _: False
        )
        status = StatusHandlers(self.store, self.pool, self.probes, clock, changed=self.changes)
        self._handlers = providers.handlers() | status.handlers()

    @classmethod
    async def on(cls, tables: Tables, clock: Clock) -> "Process":
        process = cls(tables, clock)
        await process.pool.refresh()
        return process

    async def probe(self, provider: Provider) -> None:
        if self.answers is not None:
            raise self.answers

    def changes(self) -> None:
        self.changed += 1

    async def call(self, request: Any) -> Any:
        operation = operation_of(type(request))
        trace = Trace(id=1, at=0.0, started=0.0, operation=operation.name, request_id="r", key_id=0)
        call = Call(operation=operation, caller=ADMINISTRATOR, request_id="r", trace=trace)
        return await self._handlers[type(request)](request, call)

    async def says(self, request: Any) -> Any:
        return (await self.call(request)).result

    def state(self) -> State:
        return self.pool.state(1)

    async def dates(self) -> list[Any]:
        """The offline date of each provider, as it is listed."""
        rows = (await self.call(QueryAiProviders())).results
        return [row.offline_date for row in rows]

    async def active(self) -> list[str]:
        return [row.name for row in (await self.call(GetActiveProviders())).results]


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def process(tables: Tables, clock: StillClock) -> Process:
    process = await Process.on(tables, clock)
    create = CreateAiProvider(ai_type_id="Custom", name="Mine", selected_models=["a"])
    await process.call(create)
    return process


OFFLINE = ChangeAiProviderStatus(provider="mine", online=False)
ONLINE = ChangeAiProviderStatus(provider="MINE", online=True)
CHECK = CheckAiProviderStatus(provider="mine")


async def test_provider_goes_offline_and_comes_back(process: Process, clock: StillClock) -> None:
    assert await process.says(OFFLINE) == "Mine was taken offline"
    with pytest.raises(NobodyLeft, match="taken offline"):
        process.pool.choose("a")
    assert await process.dates() == [clock.now()]
    assert await process.active() == []
    assert await process.says(ONLINE) == "Mine is back online"
    assert process.pool.choose("a") is not None
    assert await process.dates() == [None]
    assert await process.active() == ["Mine"]
    assert process.changed == 3


async def test_offline_date_stays_as_it_was(process: Process, clock: StillClock) -> None:
    await process.call(OFFLINE)
    [since] = await process.dates()
    clock.seconds += 60
    await process.call(OFFLINE)
    assert await process.dates() == [since]


async def test_other_processes_see_it_and_a_restart_keeps_it(
    process: Process, tables: Tables, clock: StillClock
) -> None:
    other = await Process.on(tables, clock)
    await process.call(OFFLINE)
    await other.pool.refresh()
    assert other.state() is State.TAKEN_OFFLINE
    assert (await Process.on(tables, clock)).state() is State.TAKEN_OFFLINE
    await process.call(ONLINE)
    await other.pool.refresh()
    assert other.state() is State.READY


async def test_check_finds_out_and_keeps_it(process: Process, clock: StillClock) -> None:
    assert await process.says(CHECK) is True
    process.answers = ConnectionError("refused")
    assert await process.says(CHECK) is False
    assert process.state() is State.OFFLINE
    assert await process.dates() == [clock.now()]
    assert await process.active() == []
    process.answers = None
    assert await process.says(CHECK) is True
    assert process.state() is State.READY


async def test_check_does_not_undo_the_administrator(process: Process) -> None:
    await process.call(OFFLINE)
    assert await process.says(CHECK) is True
    await process.probes.round()
    assert process.state() is State.TAKEN_OFFLINE


async def test_online_forgives_what_was(process: Process) -> None:
    lease = process.pool.choose("a")
    assert lease is not None
    lease.failed(FailureKind.CREDENTIALS)
    lease.release()
    assert process.state() is State.MISCONFIGURED
    await process.call(ONLINE)
    assert process.state() is State.READY


async def test_caller_that_waits_is_told_when_it_is_taken_offline(process: Process) -> None:
    await process.call(UpdateAiProvider(id=1, concurrency=1))
    assert process.pool.choose("a") is not None
    waiting = asyncio.create_task(process.pool.acquire("a", wait=5))
    await asyncio.sleep(0)
    await process.call(OFFLINE)
    with pytest.raises(NobodyLeft, match="taken offline"):
        await waiting


async def test_unknown_provider_is_not_found(process: Process) -> None:
    for request in (
        ChangeAiProviderStatus(provider="nobody", online=True),
        CheckAiProviderStatus(provider="nobody"),
    ):
        with pytest.raises(NotFound, match="Provider not found"):
            await process.call(request)


async def test_weight_is_kept_and_shown(process: Process) -> None:
    create = CreateAiProvider(ai_type_id="Custom", name="other", selected_models=["b"], weight=5)
    await process.call(create)
    await process.call(UpdateAiProvider(id=1, weight=7))
    rows = (await process.call(QueryAiProviders())).results
    assert [row.weight for row in rows] == [7, 5]
    assert [p.weight for p in process.pool.providers()] == [7, 5]
