"""How a provider has been doing: what failures mean for the calls that follow."""

from datetime import datetime
from enum import Enum, StrEnum

from aiserver.kit.clock import Clock


class FailureKind(Enum):
    """Why an attempt failed.

    REQUEST is the caller's own mistake: nobody else is asked, and the provider is blamed for
    nothing. Every other kind goes to the next provider that serves the model.
    """

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    RESET = "reset"
    BROKEN = "broken"
    OVERLOADED = "overloaded"
    LIMITED = "limited"
    CREDENTIALS = "credentials"
    MODEL_MISSING = "model_missing"
    REQUEST = "request"


class State(StrEnum):
    """A provider at the moment of a choice, in words that a person can read.

    READY, WARM and TRIAL take a call, BUSY would with a free slot. FAILING, OFFLINE and LACKING
    are asked only when no other is left; the others never.
    """

    READY = "ready"
    WARM = "warm"
    TRIAL = "trial"
    BUSY = "busy"
    TRIED = "tried"
    FAILING = "failing"
    OFFLINE = "offline"
    LACKING = "lacks the model"
    COOLING = "cooling"
    MISCONFIGURED = "misconfigured"
    TAKEN_OFFLINE = "taken offline"


WINDOW_SECONDS = 30.0
FEWEST_OUTCOMES = 5
MOST_FAILED = 0.5
FIRST_OPEN_SECONDS, MOST_OPEN_SECONDS = 5.0, 60.0
FIRST_COOLING_SECONDS, MOST_COOLING_SECONDS = 2.0, 30.0
LEAST_RETRY_AFTER, MOST_RETRY_AFTER = 1.0, 600.0
LACKING_SECONDS = 300.0
MOST_LACKING = 256
UNREACHABLE_IN_A_ROW = 3

_BUCKETS = 10
_BUCKET_SECONDS = WINDOW_SECONDS / _BUCKETS
_ALIVE = (FailureKind.REQUEST, FailureKind.MODEL_MISSING)


class _Window:
    """Outcomes of the last 30 seconds, counted in buckets of three."""

    def __init__(self) -> None:
        self._newest = 0
        self._fine = [0] * _BUCKETS
        self._failed = [0] * _BUCKETS

    def add(self, now: float, *, failed: bool) -> None:
        newest = int(now / _BUCKET_SECONDS)
        if newest != self._newest:
            self._move(newest)
        counts = self._failed if failed else self._fine
        counts[newest % _BUCKETS] += 1

    def too_many_failed(self) -> bool:
        failed = sum(self._failed)
        total = failed + sum(self._fine)
        return total >= FEWEST_OUTCOMES and failed >= total * MOST_FAILED

    def clear(self) -> None:
        self._fine = [0] * _BUCKETS
        self._failed = [0] * _BUCKETS

    def _move(self, newest: int) -> None:
        for bucket in range(max(self._newest + 1, newest - _BUCKETS + 1), newest + 1):
            self._fine[bucket % _BUCKETS] = self._failed[bucket % _BUCKETS] = 0
        self._newest = newest


class Health:
    """What this process has seen of one provider since its row last changed.

    `calm`: there is nothing to look at, so that a choice asks no more. `round` is what a call
    carries along from its choice to its outcome: an outcome of an earlier round neither ends nor
    prolongs what has begun since. `taken_offline` is an administrator's word, which nothing here
    undoes. `blamed_at` is when the provider last failed, in monotonic seconds.
    """

    def __init__(self, clock: Clock, *, taken_offline: bool = False) -> None:
        self.calm = not taken_offline
        self.round = 0
        self.blamed_at = 0.0
        self.offline_since: datetime | None = None
        self.misconfigured = False
        self.trying = False
        self._taken_offline = taken_offline
        self._clock = clock
        self._window = _Window()
        self._failing_until: float | None = None
        self._failing_seconds = FIRST_OPEN_SECONDS
        self._cooling_until = 0.0
        self._cooling_seconds = FIRST_COOLING_SECONDS
        self._unreachable = 0
        self._lacking: dict[str, float] = {}

    def state(self, model: str | None, now: float) -> State:
        """READY, TRIAL or why not; `model` as it is served."""
        if self._taken_offline:
            return State.TAKEN_OFFLINE
        if self.misconfigured:
            return State.MISCONFIGURED
        if self._cooling_until > now:
            return State.COOLING
        if self.offline_since is not None:
            return State.OFFLINE
        if self._failing_until is not None:
            waits = self.trying or self._failing_until > now
            return State.FAILING if waits else State.TRIAL
        if model is not None and self._lacks(model, now):
            return State.LACKING
        # A success has yet to end the growth of the next cooling.
        self.calm = not self._lacking and self._cooling_seconds == FIRST_COOLING_SECONDS
        return State.READY

    def changes_at(self, now: float) -> float | None:
        """When time alone will make it better, in monotonic seconds."""
        if self._cooling_until > now:
            return self._cooling_until
        if self._failing_until is not None and self._failing_until > now:
            return self._failing_until
        return None

    def cooling_ends(self, now: float) -> float | None:
        return self._cooling_until if self._cooling_until > now else None

    def succeeded(self, round: int, model: str) -> State | None:
        """READY when this ended an offline or failing time, else None."""
        self._window.add(self._clock.monotonic(), failed=False)
        self._unreachable = 0
        if self.calm:
            return None
        self._lacking.pop(model, None)
        return self._answered(round)

    def failed(
        self, kind: FailureKind, round: int, model: str, *, retry_after: float | None = None
    ) -> State | None:
        """The state that begins with this failure, None when nothing changes."""
        now = self._clock.monotonic()
        if kind in _ALIVE:
            self._unreachable = 0
            lacking = kind is FailureKind.MODEL_MISSING
            if lacking:
                self._lack(model, now)
            return self._answered(round) or (State.LACKING if lacking else None)
        if kind is FailureKind.LIMITED:
            self._unreachable = 0
            return self._cool(retry_after, now)
        self.blamed_at = now
        if kind is FailureKind.CREDENTIALS:
            return self._misconfigure()
        self._unreachable = self._unreachable + 1 if kind is FailureKind.UNREACHABLE else 0
        if self._unreachable >= UNREACHABLE_IN_A_ROW and self.offline_since is None:
            return self._go_offline()
        return self._blame(round, now)

    def probed(self, problem: FailureKind | None) -> State | None:
        """What a probe found; None is an answer as it should be."""
        if problem is None:
            return self._clear()
        if problem in _ALIVE or problem is FailureKind.LIMITED:
            # It answered, which says nothing about its key.
            return None if self.misconfigured else self._clear()
        self.blamed_at = self._clock.monotonic()
        if problem is FailureKind.CREDENTIALS:
            return self._misconfigure()
        if self.misconfigured or self.offline_since is not None:
            return None
        return self._go_offline()

    def _blame(self, round: int, now: float) -> State | None:
        self._window.add(now, failed=True)
        if self._failing_until is None:
            if not self._window.too_many_failed():
                return None
            self._failing_seconds = FIRST_OPEN_SECONDS
        elif round != self.round:
            return None
        else:
            self._failing_seconds = min(self._failing_seconds * 2, MOST_OPEN_SECONDS)
        self._failing_until = now + self._failing_seconds
        self._window.clear()
        self._begin()
        return State.FAILING

    def _cool(self, retry_after: float | None, now: float) -> State | None:
        began = self._cooling_until <= now
        if retry_after is not None:
            seconds = min(MOST_RETRY_AFTER, max(LEAST_RETRY_AFTER, retry_after))
        elif began:
            seconds = self._cooling_seconds
            self._cooling_seconds = min(seconds * 2, MOST_COOLING_SECONDS)
        else:
            # One of the calls that were refused at the same moment.
            return None
        self._cooling_until = max(self._cooling_until, now + seconds)
        self.calm = False
        return State.COOLING if began else None

    def _misconfigure(self) -> State | None:
        if self.misconfigured:
            return None
        self.misconfigured = True
        self._begin()
        return State.MISCONFIGURED

    def _go_offline(self) -> State:
        self.offline_since = self._clock.now()
        self._begin()
        return State.OFFLINE

    def _begin(self) -> None:
        self.round += 1
        self.trying = False
        self.calm = False

    def _answered(self, round: int) -> State | None:
        """A call of this round got an answer: whatever kept calls away is over."""
        if round != self.round or self.misconfigured:
            return None
        if self._cooling_until <= self._clock.monotonic():
            self._cooling_seconds = FIRST_COOLING_SECONDS
        if self._failing_until is None and self.offline_since is None:
            return None
        return self._clear()

    def _clear(self) -> State | None:
        was = self.misconfigured or self.offline_since is not None
        was = was or self._failing_until is not None
        self.misconfigured = False
        self.offline_since = None
        self._failing_until = None
        self._unreachable = 0
        self.trying = False
        self._window.clear()
        if not was:
            return None
        self.round += 1
        return State.READY

    def _lack(self, model: str, now: float) -> None:
        if len(self._lacking) >= MOST_LACKING:
            del self._lacking[next(iter(self._lacking))]
        self._lacking.pop(model, None)
        self._lacking[model] = now + LACKING_SECONDS
        self.calm = False

    def _lacks(self, model: str, now: float) -> bool:
        until = self._lacking.get(model)
        if until is None:
            return False
        if until > now:
            return True
        del self._lacking[model]
        return False
