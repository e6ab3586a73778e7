"""Which provider takes a call: it serves the model, has a free slot, and carries least."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from aiserver.contract.errors import ModelNotFound, NotFound, TooBusy
from aiserver.providers.store import Provider, ProviderStore

# Callers that may wait for a slot at once; a queue without a bound would be a leak.
MOST_WAITING = 1000


class Candidate(msgspec.Struct):
    """A provider with what this process knows of it."""

    provider: Provider
    models: dict[str, str]
    running: int = 0

    @property
    def free(self) -> bool:
        return self.provider.concurrency == 0 or self.running < self.provider.concurrency

    @property
    def load(self) -> float:
        return self.running / (self.provider.concurrency or 64)


class Lease:
    """A slot of a provider, held until `release`."""

    def __init__(self, pool: "ProviderPool", candidate: Candidate, api_model: str) -> None:
        self._pool = pool
        self._candidate = candidate
        self._held = True
        self.provider = candidate.provider
        self.api_model = api_model

    def release(self) -> None:
        """Frees the slot; again: does nothing."""
        if self._held:
            self._held = False
            self._pool.freed(self._candidate)


class ProviderPool:
    """All providers in memory, renewed when their revision in the store moved.

    `qualified` gives the full name that another stands for: `m` or `m:latest` for `m:tag`.
    """

    def __init__(
        self, store: ProviderStore, qualified: Callable[[str], str | None] = lambda _: None
    ) -> None:
        self._store = store
        self._qualified = qualified
        self._revision = -1
        self._candidates: dict[int, Candidate] = {}
        self._listed: dict[int, dict[str, str]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    def refresh(self) -> bool:
        """Reads the providers again if they changed. Raises StorageError; then the old stay."""
        revision = self._store.revision()
        if revision == self._revision:
            return False
        before = self._candidates
        self._candidates = {}
        for provider in self._store.all():
            candidate = before.get(provider.id) or Candidate(provider, {})
            candidate.provider = provider
            candidate.models = self._models_of(provider)
            self._candidates[provider.id] = candidate
        self._listed = {i: m for i, m in self._listed.items() if i in self._candidates}
        self._revision = revision
        self._wake()
        return True

    def providers(self) -> list[Provider]:
        return [candidate.provider for candidate in self._candidates.values()]

    def served_by(self, provider: Provider) -> list[str]:
        """The names that callers can ask this provider for."""
        candidate = self._candidates.get(provider.id)
        return list(candidate.models) if candidate else []

    def learn(self, provider_id: int, names: Iterable[str]) -> None:
        """What an upstream lists; counts only while the provider names no models itself."""
        self._listed[provider_id] = {name: name for name in names}
        if (candidate := self._candidates.get(provider_id)) is not None:
            candidate.models = self._models_of(candidate.provider)

    def models(self, *, asleep: Callable[[Provider], bool] = lambda _: False) -> dict[str, str]:
        """Every model that can be asked for, with the first provider of those not `asleep`."""
        found: dict[str, str] = {}
        for candidate in self._usable():
            for model in () if asleep(candidate.provider) else candidate.models:
                found.setdefault(model, candidate.provider.name)
        return found

    def running(self, provider_id: int) -> int:
        candidate = self._candidates.get(provider_id)
        return candidate.running if candidate else 0

    def choose(self, model: str, *, provider: str | None = None) -> Lease | None:
        """A slot, or None when all that serve the model are busy.

        Raises NotFound for an unknown provider name and ModelNotFound when nobody serves the model.
        """
        named = self._named(provider)
        served = model
        able = [c for c in named if served in c.models]
        if not able and (full := self._qualified(model)) is not None:
            served = full
            able = [c for c in named if served in c.models]
        if not able:
            raise ModelNotFound(self._unserved(model, provider), param="model")
        free = [c for c in able if c.free]
        if not free:
            return None
        chosen = min(free, key=lambda c: (-c.provider.priority, c.load, c.provider.id))
        chosen.running += 1
        return Lease(self, chosen, chosen.models[served])

    async def acquire(self, model: str, *, provider: str | None, wait: float) -> Lease:
        """As `choose`, waiting at most `wait` seconds for a slot. Raises TooBusy then."""
        lease = self.choose(model, provider=provider)
        if lease is not None:
            return lease
        if len(self._waiting) >= MOST_WAITING:
            raise TooBusy(f"{MOST_WAITING} calls are waiting for a provider.", retry_after=5)
        try:
            async with asyncio.timeout(wait):
                while (lease := self.choose(model, provider=provider)) is None:
                    await self._next_change()
                return lease
        except TimeoutError:
            raise TooBusy(
                f"Every provider of {model} is busy; no slot was free within {wait:g} s. "
                "Try again later, or raise the provider's concurrency.",
                retry_after=5,
            ) from None

    def freed(self, candidate: Candidate) -> None:
        candidate.running -= 1
        self._wake()

    async def _next_change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _wake(self) -> None:
        # All of them: the one that has waited longest may want another model.
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _usable(self) -> list[Candidate]:
        return [c for c in self._candidates.values() if c.provider.enabled]

    def _named(self, name: str | None) -> list[Candidate]:
        usable = self._usable()
        if name is None:
            return usable
        named = [c for c in usable if c.provider.name.casefold() == name.casefold()]
        if not named:
            known = ", ".join(c.provider.name for c in usable) or "none"
            raise NotFound(
                f"There is no provider {name!r}. Known providers: {known}.",
                param="provider",
                reason="provider_not_found",
            )
        return named

    def _unserved(self, model: str, provider: str | None) -> str:
        at = f" at provider {provider}" if provider else ""
        return f"Model {model} not found{at}. GET /v1/models lists the models that can be used."

    def _models_of(self, provider: Provider) -> dict[str, str]:
        if provider.models:
            return {m.model: m.api_model or m.model for m in provider.models}
        return self._listed.get(provider.id, {})
