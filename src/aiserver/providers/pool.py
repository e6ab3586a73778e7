"""Which provider takes a call: it serves the model, does well, has a free slot, carries least."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from aiserver.contract.errors import TooBusy
from aiserver.kit import log
from aiserver.kit.clock import Clock, SystemClock
from aiserver.providers.choice import Candidate, NobodyLeft, choose
from aiserver.providers.health import FailureKind, Health, State
from aiserver.providers.lease import Lease, Slots
from aiserver.providers.names import Names, mapped_models, served_models
from aiserver.providers.standing import Standing
from aiserver.providers.store import Provider, ProviderStore
from aiserver.providers.waiting import Line, Waiter

__all__ = ["MOST_WAITING", "Lease", "NobodyLeft", "ProviderPool"]

# Callers that may wait for a slot at once; a queue without a bound would be a leak.
MOST_WAITING = 1000

_CLOCK = SystemClock()
_log = log.get("providers")
_TOLD = {
    State.READY: _log.info,
    State.FAILING: _log.warning,
    State.OFFLINE: _log.warning,
    State.LACKING: _log.warning,
    State.COOLING: _log.info,
}


class ProviderPool:
    """All providers in memory, renewed when their revision in the store moved.

    `qualified` gives the full name that another stands for: `m` or `m:latest` for `m:tag`. Slots
    and health are this process's own. An upstream that fails too often, or cannot be reached, is
    left alone for a while, unless nobody else serves the model: a lone provider is never locked
    out by one bad moment. An administrator's word on a provider is final.
    """

    def __init__(
        self,
        store: ProviderStore,
        qualified: Callable[[str], str | None] = lambda _: None,
        *,
        clock: Clock = _CLOCK,
    ) -> None:
        self._store = store
        self._qualified = qualified
        self._clock = clock
        self._now = clock.monotonic
        self._revision = -1
        self._reading = asyncio.Lock()
        self._candidates: dict[int, Candidate] = {}
        self._listed: dict[int, dict[str, str]] = {}
        self._told_misconfigured: dict[int, Provider] = {}
        self._names = Names(qualified)
        self._line = Line(self._serve, self._places, clock)
        self._tell_better: Callable[[], None] | None = None
        self._slots = Slots(self.freed, self._changed)

    async def refresh(self) -> bool:
        """Reads the providers again if they changed. Raises StorageError; then the old stay."""
        # One at a time: what was read first must not replace what was read later.
        async with self._reading:
            revision = await self._store.revision()
            if revision == self._revision:
                return False
            self._replace(await self._store.all())
            self._revision = revision
            return True

    def _replace(self, providers: list[Provider]) -> None:
        before = self._candidates
        self._candidates = {
            provider.id: self._renewed(before.get(provider.id), provider) for provider in providers
        }
        self._listed = {i: m for i, m in self._listed.items() if i in self._candidates}
        told = self._told_misconfigured.items()
        self._told_misconfigured = {i: p for i, p in told if i in self._candidates}
        self._names_changed()

    def providers(self) -> list[Provider]:
        return [candidate.provider for candidate in self._candidates.values()]

    def named(self, name: str) -> Provider | None:
        """The provider of this name, in any case."""
        wanted = name.casefold()
        return next((p for p in self.providers() if p.name.casefold() == wanted), None)

    def served_by(self, provider: Provider) -> list[str]:
        """The names that callers can ask this provider for."""
        candidate = self._candidates.get(provider.id)
        return list(candidate.models) if candidate else []

    def learn(self, provider_id: int, names: Iterable[str]) -> None:
        """What an upstream lists; counts only while the provider names no models itself."""
        self._listed[provider_id] = {name: name for name in names}
        if (candidate := self._candidates.get(provider_id)) is not None:
            self._name(candidate)
            self._names_changed()

    def warm(self, provider_id: int, models: Collection[str]) -> None:
        """The models that a provider has in memory, by its own names; it is preferred for them."""
        if (candidate := self._candidates.get(provider_id)) is not None:
            short = (name.removesuffix(":latest") for name in models)
            candidate.warm = frozenset((*models, *short))

    def models(self, *, asleep: Callable[[Provider], bool] = lambda _: False) -> dict[str, str]:
        """Every model that can be asked for, with the first provider of those not `asleep`."""
        found: dict[str, str] = {}
        for candidate in self._candidates.values():
            provider = candidate.provider
            if not provider.enabled or provider.offline is not None or asleep(provider):
                continue
            for model in candidate.models:
                found.setdefault(model, provider.name)
        return found

    @property
    def waiting(self) -> int:
        """How many callers wait for a slot."""
        return len(self._line.waiting)

    def running(self, provider_id: int) -> int:
        candidate = self._candidates.get(provider_id)
        return candidate.running if candidate else 0

    def state(self, provider_id: int) -> State:
        """How a provider does now, whatever model is asked for."""
        health = self._candidates[provider_id].health
        return health.state(None, self._now())

    def offline_since(self, provider: Provider) -> datetime | None:
        """An administrator's date, or when it stopped answering."""
        candidate = self._candidates.get(provider.id)
        return provider.offline or (candidate.health.offline_since if candidate else None)

    def choose(
        self, model: str, *, provider: str | None = None, tried: Collection[int] = ()
    ) -> Lease | None:
        """A slot, or None while those that are left are busy; `tried` are ids of providers.

        Raises NotFound for an unknown provider name, ModelNotFound when nobody serves the model
        and NobodyLeft when all who do were tried or are out of service.
        """
        route = self._names.route(model, provider)
        place, considered, trial = choose(route, tried, self._now)
        if place is None:
            return None
        return Lease(self._slots, place, route.served, considered, trial)

    def check(self, model: str, *, provider: str | None = None) -> None:
        """Raises NotFound or ModelNotFound as `choose` does, whoever is busy or out of service."""
        self._names.route(model, provider)

    def when_better(self, tell: Callable[[], None]) -> None:
        """`tell` is called once, when a provider changes."""
        self._tell_better = tell

    def standing(self) -> Standing:
        """For work that stands in the line without a task that waits."""
        return Standing(self._line, self._places)

    async def acquire(
        self,
        model: str,
        *,
        provider: str | None = None,
        tried: Collection[int] = (),
        wait: float,
    ) -> Lease:
        """As `choose`, waiting at most `wait` seconds for a slot. Raises TooBusy then."""
        lease = self.choose(model, provider=provider, tried=tried)
        if lease is not None:
            return lease
        if len(self._line.waiting) >= MOST_WAITING:
            raise TooBusy(f"{MOST_WAITING} calls are waiting for a provider.", retry_after=5)
        waiter = Waiter(model, provider, tried)
        self._line.join(waiter)
        try:
            async with asyncio.timeout(wait):
                return await waiter.turn
        except TimeoutError:
            waiter.give_up()
            raise TooBusy(
                f"Every provider of {model} is busy; no slot was free within {wait:g} s. "
                "Try again later, or raise the provider's concurrency.",
                retry_after=5,
            ) from None
        except asyncio.CancelledError:
            waiter.give_up()
            raise
        finally:
            self._line.leave(waiter)

    def freed(self, candidate: Candidate, trial: bool = False) -> None:
        candidate.running -= 1
        # Nobody waits for one slot more of a provider that had some already.
        if self._line.waiting and (trial or candidate.running == candidate.limit - 1):
            self._line.freed(candidate)

    def probed(self, provider: Provider, problem: FailureKind | None) -> None:
        """What a probe of a provider found; None is an answer as it should be."""
        candidate = self._candidates.get(provider.id)
        if candidate is None or candidate.provider != provider:
            return
        if (state := candidate.health.probed(problem)) is not None:
            self._changed(candidate, candidate.health, state, None)

    def forgive(self, provider_id: int) -> None:
        """Forgets what a provider did, at an administrator's word."""
        candidate = self._candidates.get(provider_id)
        if candidate is not None:
            candidate.health = self._health(candidate.provider)
            self._told_misconfigured.pop(provider_id, None)
            self._line.changed(candidate)

    def _serve(self, waiter: Waiter) -> Lease | None:
        return self.choose(waiter.model, provider=waiter.provider, tried=waiter.tried)

    def _places(self, waiter: Waiter) -> list[Candidate]:
        route = self._names.route(waiter.model, waiter.provider)
        return [place.candidate for place in route.places]

    def _changed(
        self, candidate: Candidate, health: Health, state: State, model: str | None
    ) -> None:
        if health is not candidate.health:
            # Its row was changed since this call began.
            return
        self._tell(candidate.provider, state, model)
        self._line.changed(candidate)
        self._better()

    def _tell(self, provider: Provider, state: State, model: str | None) -> None:
        if state is not State.MISCONFIGURED:
            named = {"model": model} if state is State.LACKING else {}
            _TOLD[state]("provider_state", provider=provider.name, state=state.value, **named)
        elif self._told_misconfigured.get(provider.id) != provider:
            self._told_misconfigured[provider.id] = provider
            _log.error(
                "provider_misconfigured",
                provider=provider.name,
                advice="It refuses this server's credentials; correct its key.",
            )

    def _renewed(self, candidate: Candidate | None, provider: Provider) -> Candidate:
        if candidate is None:
            candidate = Candidate(provider, self._health(provider))
        elif candidate.provider != provider:
            candidate.take_over(provider, self._health(provider))
        else:
            # Who keeps what belongs to a row by the row's identity, reads it anew.
            candidate.provider = provider
        self._name(candidate)
        return candidate

    def _health(self, provider: Provider) -> Health:
        return Health(self._clock, taken_offline=provider.offline is not None)

    def _name(self, candidate: Candidate) -> None:
        listed = self._listed.get(candidate.id, {})
        candidate.models = served_models(candidate.provider, listed, self._qualified)
        candidate.mapped = mapped_models(candidate.provider, listed)

    def _names_changed(self) -> None:
        self._names.renew(self._candidates.values())
        self._line.all_changed()
        self._better()

    def _better(self) -> None:
        tell, self._tell_better = self._tell_better, None
        if tell is not None:
            tell()
