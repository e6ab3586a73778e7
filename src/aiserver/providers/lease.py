"""A slot of a provider, held by one call, and what the call says of how it went."""

from collections.abc import Callable

from aiserver.contract.trace import Considered
from aiserver.providers.choice import Candidate, Place
from aiserver.providers.health import FailureKind, Health, State
from aiserver.providers.store import Provider


class Slots:
    """What a lease tells of itself: the slot is free again, the provider's health changed."""

    __slots__ = ("changed", "freed")

    def __init__(
        self,
        freed: Callable[[Candidate, bool], None],
        changed: Callable[[Candidate, Health, State, str], None],
    ) -> None:
        self.freed = freed
        self.changed = changed


class Lease:
    """A slot, held until `release`; `model` is the name as served, `api_model` the upstream's.

    `considered` are the providers as they were when this one was chosen.
    """

    __slots__ = (
        "_candidate",
        "_health",
        "_held",
        "_round",
        "_slots",
        "_told",
        "_trial",
        "api_model",
        "considered",
        "model",
        "provider",
    )

    provider: Provider
    model: str
    api_model: str
    considered: tuple[Considered, ...]

    def __init__(
        self,
        slots: Slots,
        place: Place,
        served: str,
        considered: tuple[Considered, ...],
        trial: bool,
    ) -> None:
        candidate = place.candidate
        health = candidate.health
        self._slots = slots
        self._candidate = candidate
        self._health = health
        self._round = health.round
        self._trial = trial
        self._held = True
        self._told = False
        self.provider = candidate.provider
        self.model = served
        self.api_model = place.upstream
        self.considered = considered
        candidate.running += 1
        if trial:
            health.trying = True

    def release(self) -> None:
        """Frees the slot; again: does nothing."""
        if self._held:
            self._held = False
            if self._trial and self._health.round == self._round:
                self._health.trying = False
            self._slots.freed(self._candidate, self._trial)

    def succeeded(self) -> None:
        """The call was answered. Only the first word on a call counts, here or in `failed`."""
        if not self._told:
            self._told = True
            state = self._health.succeeded(self._round, self.model)
            if state is not None:
                self._slots.changed(self._candidate, self._health, state, self.model)

    def failed(self, kind: FailureKind, *, retry_after: float | None = None) -> None:
        """The call failed; `retry_after` is what the upstream asked for, in seconds."""
        if not self._told:
            self._told = True
            state = self._health.failed(kind, self._round, self.model, retry_after=retry_after)
            if state is not None:
                self._slots.changed(self._candidate, self._health, state, self.model)
