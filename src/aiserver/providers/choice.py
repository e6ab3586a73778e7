"""The choice among the providers of a model: well before others, then priority, then load."""

from collections.abc import Callable, Collection, Mapping

from aiserver.contract.trace import Considered
from aiserver.providers.health import Health, State
from aiserver.providers.store import Provider

# What a provider without a limit counts as when loads are compared.
UNLIMITED = 64
# How much more loaded one that has the model in memory may be: four calls, or half its slots.
WARM_CALLS, WARM_PART = 4, 0.5
# Just as loaded as the margin allows is not too loaded.
_HAIR = 1e-9

_READY, _WARM, _TRIAL = State.READY, State.WARM, State.TRIAL
_BUSY, _TRIED = State.BUSY, State.TRIED
_TAKES = (State.READY, State.TRIAL)
_LAST_RESORT = (State.FAILING, State.OFFLINE, State.LACKING)


class Candidate:
    """A provider with what this process knows of it; `share` is one call's part of its capacity."""

    __slots__ = (
        "health",
        "id",
        "limit",
        "mapped",
        "margin",
        "models",
        "name",
        "priority",
        "provider",
        "running",
        "share",
        "step",
        "warm",
        "weight",
    )

    def __init__(self, provider: Provider, health: Health) -> None:
        self.running = 0
        self.models: Mapping[str, str] = {}
        self.mapped: Mapping[str, str] = {}
        self.take_over(provider, health)

    def take_over(self, provider: Provider, health: Health) -> None:
        """Becomes what its row says now; the calls that it runs stay counted."""
        self.provider = provider
        self.health = health
        self.warm: frozenset[str] = frozenset()
        self.id = provider.id
        self.name = provider.name
        self.limit = provider.concurrency
        self.priority = provider.priority
        self.weight = provider.weight
        self.share = 1 / (provider.weight * (provider.concurrency or UNLIMITED))
        self.step = 1 / provider.weight
        self.margin = min(WARM_CALLS * self.share, WARM_PART * self.step) + _HAIR

    @property
    def free(self) -> bool:
        return not self.limit or self.running < self.limit


class Place:
    """A candidate for one name; `upstream` is its own name for the model.

    `turn` grows with every call that it is given, by less the more weight it has. `seen` is how it
    was when last looked at, which is often how it is.
    """

    __slots__ = ("candidate", "seen", "turn", "upstream")

    def __init__(self, candidate: Candidate, upstream: str) -> None:
        self.candidate = candidate
        self.upstream = upstream
        self.turn = 0.0
        c = candidate
        self.seen = Considered(c.name, 0, c.limit, c.priority, c.weight, State.READY)


class Route:
    """Who serves a name that callers ask for, by priority; `served` is the name as they list it.

    `turn` is how far the turns have come: one that was away is not owed what it missed.
    """

    __slots__ = ("places", "served", "turn")

    def __init__(self, served: str, names: Mapping[Candidate, str]) -> None:
        self.served = served
        order = sorted(names, key=lambda c: (-c.priority, c.id))
        self.places = tuple(Place(c, names[c]) for c in order)
        self.turn = 0.0


# Where a slot is, None while those that are left are busy; who was looked at; if it is a trial.
Choice = tuple[Place | None, tuple[Considered, ...], bool]


class NobodyLeft(Exception):
    """Every provider of the model was tried or is out of service.

    `reasons` are the states by provider; `retry_after` is in seconds, None when no cooling ends.
    """

    def __init__(self, reasons: dict[str, str], retry_after: float | None = None) -> None:
        told = ", ".join(f"{name} ({state})" for name, state in reasons.items())
        super().__init__(f"No provider of this model is left to ask: {told}.")
        self.reasons = reasons
        self.retry_after = retry_after


def choose(route: Route, tried: Collection[int], clock: Callable[[], float]) -> Choice:
    """Takes no slot yet. Raises NobodyLeft."""
    served, floor = route.served, route.turn
    best: Place | None = None
    best_load = best_turn = 0.0
    best_priority, best_state = 0, _READY
    waits = False
    considered: list[Considered] = []
    for place in route.places:
        c = place.candidate
        running, limit = c.running, c.limit
        if tried and c.id in tried:
            state = _TRIED
        else:
            state = _READY if c.health.calm else c.health.state(served, clock())
        if state is _READY or state is _TRIAL:
            if limit and running >= limit:
                state = _BUSY
                waits = True
            else:
                load = running * c.share
                if c.warm and state is _READY and place.upstream in c.warm:
                    state = _WARM
                    load -= c.margin
                turn = place.turn if place.turn > floor else floor
                if best is None or (
                    c.priority == best_priority
                    and (load < best_load or (load == best_load and turn < best_turn))
                ):
                    best, best_load, best_turn = place, load, turn
                    best_priority, best_state = c.priority, state
        seen = place.seen
        if seen.running != running or seen.state is not state:
            seen = place.seen = Considered(c.name, running, limit, c.priority, c.weight, state)
        considered.append(seen)
    if best is not None:
        _given(route, best, best_turn)
        return best, tuple(considered), best_state is _TRIAL
    if waits:
        return None, tuple(considered), False
    return _last_resort(route, tried, clock(), tuple(considered))


def _last_resort(
    route: Route, tried: Collection[int], now: float, considered: tuple[Considered, ...]
) -> Choice:
    """Those that fail, when nobody else is left to this call: one bad moment locks nobody out."""
    able = [(p, p.candidate, p.candidate.health.state(route.served, now)) for p in route.places]
    left: list[tuple[bool, float, int, Place]] = []
    if not any(state in _TAKES for _, c, state in able if c.id not in tried):
        left = [
            (state is State.LACKING, c.health.blamed_at, c.id, place)
            for place, c, state in able
            if c.id not in tried and state in _LAST_RESORT
        ]
    if not left:
        ends = [end for _, c, _ in able if (end := c.health.cooling_ends(now)) is not None]
        reasons = {each.provider: each.state for each in considered}
        raise NobodyLeft(reasons, min(ends) - now if ends else None)
    free = [each for each in left if each[3].candidate.free]
    if not free:
        return None, considered, False
    best = min(free)[3]
    _given(route, best, max(best.turn, route.turn))
    return best, considered, False


def _given(route: Route, chosen: Place, turn: float) -> None:
    route.turn = turn
    chosen.turn = turn + chosen.candidate.step
