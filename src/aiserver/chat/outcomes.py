"""Keeps the attempts of one call, and says what the caller reads when none of them succeeded."""

import time

from aiserver.chat.failures import Failure
from aiserver.contract.errors import ApiError, Unavailable, UpstreamFailed, UpstreamRejected
from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.providers.health import FailureKind
from aiserver.providers.pool import Lease, NobodyLeft

_NONE: frozenset[int] = frozenset()


class Tries:
    """The attempts of one call, written into its trace as they happen."""

    __slots__ = ("_trace", "failures", "interrupted", "tried")

    def __init__(self, trace: Trace) -> None:
        self.tried: frozenset[int] = _NONE
        self.failures: tuple[Failure, ...] = ()
        self.interrupted: tuple[Lease, Failure | None] | None = None
        self._trace = trace

    def take_up(self) -> tuple[Lease, Failure | None] | None:
        """The slot that a faster path left to the slower one, and what came of it; once."""
        interrupted, self.interrupted = self.interrupted, None
        return interrupted

    def drop(self) -> None:
        """Frees what nobody has taken up; what came of it stands."""
        if (left := self.take_up()) is not None:
            lease, failure = left
            if failure is not None:
                self._end(failure.kind.value, failure)
                lease.failed(failure.kind, retry_after=failure.retry_after)
            lease.release()

    def undo(self) -> None:
        """The attempt that was begun never reached its provider."""
        self._trace.attempts.pop()

    def begin(self, lease: Lease, dropped: tuple[str, ...] = ()) -> None:
        trace = self._trace
        trace.served, trace.provider = lease.model, lease.provider.name
        trace.provider_model, trace.provider_type = lease.api_model, lease.provider.ai_type_id
        trace.attempts.append(
            Attempt(
                provider=lease.provider.name,
                model=lease.api_model,
                began=time.monotonic() - trace.started,
                considered=lease.considered,
                dropped=dropped,
            )
        )

    def lose(self, provider_id: int | None, failure: Failure) -> None:
        """An attempt that failed; the provider is not asked again when its id is given."""
        if provider_id is not None:
            self.tried |= {provider_id}
            self.failures += (failure,)
        self._end(failure.kind.value, failure)

    def begun(self) -> None:
        """The model's first word is here."""
        self._trace.first_token = time.monotonic()
        attempt = self._trace.attempts[-1]
        self._trace.waited += self._trace.first_token - self._trace.started - attempt.began

    def done(self, usage: Usage | None) -> None:
        self._trace.usage = usage
        self._end("ok")
        self._trace.status = 200

    def broke(self, failure: Failure, usage: Usage | None) -> None:
        """A stream that failed after its first word: what it cost is not known."""
        self._trace.usage = usage
        self._end(failure.kind.value, failure)
        self._trace.status = failure.error.http_status
        self._trace.error = failure.error.error_reason
        self._trace.message = failure.error.message

    def abandon(self, usage: Usage | None = None) -> None:
        """The caller went away, or the gateway had to stop."""
        self._trace.usage = usage
        self._end("cancelled")
        if self._trace.attempts:
            self._trace.attempts[-1].lost = usage is None

    def _end(self, outcome: str, failure: Failure | None = None) -> None:
        trace = self._trace
        if not trace.attempts or trace.attempts[-1].outcome:
            return
        attempt = trace.attempts[-1]
        attempt.ended = time.monotonic() - trace.started
        attempt.outcome = outcome
        if trace.first_token is None:
            trace.waited += attempt.ended - attempt.began
        if failure is not None:
            attempt.status, attempt.lost = failure.status, failure.lost
            attempt.detail = failure.detail


def resumed(trace: Trace) -> Tries:
    """The attempts that a call has behind it, none for most."""
    return trace.left if isinstance(trace.left, Tries) else Tries(trace)


def exhausted(tries: Tries, model: str, gone: NobodyLeft | None = None) -> ApiError:
    """What the caller reads when every provider failed or none may be asked."""
    if not tries.failures:
        return _out_of_service(model, gone)
    # A provider that could not carry the request speaks only where nobody else was asked.
    asked = [f for f in tries.failures if f.kind is not FailureKind.REQUEST]
    failures = asked or list(tries.failures)
    kinds = {failure.kind for failure in failures}
    if kinds == {FailureKind.CREDENTIALS} and len(failures) > 1:
        return UpstreamFailed(
            f"Every provider of {model} refuses this server's credentials; ask your administrator.",
            reason="provider_credentials",
        )
    limits = [f.error.retry_after for f in failures if f.kind is FailureKind.LIMITED]
    if limits:
        # Some provider only asked for patience: a caller that comes back later may be served.
        known = [seconds for seconds in limits if seconds is not None]
        after = min(known) if known else gone.retry_after if gone else None
        text = f"Every provider of {model} limits its calls or failed; try again later."
        if len(failures) == 1:
            text = failures[0].error.message
        return UpstreamRejected(text, status=429, reason=_limit(failures), retry_after=after)
    # One that lacks the model speaks only where none has it: another may be well again soon.
    served = [f for f in failures if f.kind is not FailureKind.MODEL_MISSING]
    return (served or failures)[-1].error


def _limit(failures: list[Failure]) -> str:
    return failures[0].error.error_reason if len(failures) == 1 else "rate_limit_exceeded"


def _out_of_service(model: str, gone: NobodyLeft | None) -> ApiError:
    reasons = gone.reasons if gone else {}
    states = ", ".join(f"{name} is {state}" for name, state in reasons.items())
    return Unavailable(
        f"No provider of {model} can be used now: {states or 'none is in service'}. "
        "Try again later.",
        reason="providers_unavailable",
        retry_after=(gone.retry_after if gone else None) or 5,
    )
