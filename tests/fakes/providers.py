"""Providers without a store, and a clock that stands still."""

from datetime import UTC, datetime, timedelta
from typing import Any

from aiserver.kit.clock import Clock
from aiserver.providers.operations import AiProviderModel
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider

NOW = datetime(2026, 11, 22, tzinfo=UTC)


class StillClock:
    """Moves only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds - 1000)

    def monotonic(self) -> float:
        return self.seconds


class FakeStore:
    def __init__(self, *providers: Provider) -> None:
        self.providers = list(providers)
        self.number = 0

    async def all(self) -> list[Provider]:
        return list(self.providers)

    async def revision(self) -> int:
        return self.number

    def put(self, *providers: Provider) -> None:
        self.providers = list(providers)
        self.number += 1


def provider(number: int, *models: str, **more: Any) -> Provider:
    """`models` as name or name=upstream-name."""
    listed = [
        AiProviderModel(model=m.split("=")[0], api_model=m.partition("=")[2] or None)
        for m in models
    ]
    return Provider(
        id=number,
        name=more.pop("name", f"p{number}"),
        source="admin",
        ai_type_id=more.pop("ai_type_id", "Custom"),
        created=NOW,
        models=listed,
        **more,
    )


def refreshed(pool: ProviderPool) -> bool:
    """What `refresh` answers; a FakeStore never makes it wait."""
    try:
        pool.refresh().send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("It waits.")


def pool_on(store: FakeStore, clock: Clock | None = None, **more: Any) -> ProviderPool:
    """A pool that has read what this store holds."""
    fake: Any = store
    pool = ProviderPool(fake, clock=clock or StillClock(), **more)
    refreshed(pool)
    return pool


def pool_of(*providers: Provider, clock: Clock | None = None, **more: Any) -> ProviderPool:
    return pool_on(FakeStore(*providers), clock, **more)
