"""Ends every call once: what it cost, its row in the ledger, its place in history and metrics."""

import time
from collections.abc import Callable
from decimal import Decimal

from aiserver.contract.conditions import stored
from aiserver.contract.errors import ApiError
from aiserver.contract.trace import Trace, Usage
from aiserver.history.store import History
from aiserver.keys.ledger import Ledger
from aiserver.kit.ids import began_ms
from aiserver.kit.ledger import LedgerRow, row
from aiserver.kit.telemetry import CANCELLED, Telemetry

CostOf = Callable[[str, str, Usage], Decimal | None]


class Settlement:
    """Plain synchronous functions over memory: nothing here waits, and nothing may fail a call."""

    def __init__(
        self, *, cost_of: CostOf, ledger: Ledger, history: History, telemetry: Telemetry
    ) -> None:
        self._cost_of = cost_of
        self._ledger = ledger
        self._history = history
        self._telemetry = telemetry

    def failed(self, trace: Trace, error: ApiError) -> None:
        """Ends a call that is answered with an error."""
        trace.status = error.http_status
        trace.error, trace.message = error.error_reason, error.message
        self.end(trace)

    def end(self, trace: Trace) -> None:
        """Ends a call; one that nobody gave a status was left by its caller."""
        if self._ended(trace):
            self._ledger.add(
                trace.id,
                trace.key_id,
                trace.provider or "",
                trace.provider_model or "",
                trace.usage,
                trace.cost,
                _lost(trace),
            )

    def close(self, trace: Trace, error: ApiError | None = None) -> LedgerRow | None:
        """As `end`, or `failed`, but the ledger's row is the caller's to write, where there is one.

        A job's row belongs in the transaction that ends the job.
        """
        if error is not None:
            trace.status = error.http_status
            trace.error, trace.message = error.error_reason, error.message
        if not self._ended(trace):
            return None
        usage = trace.usage
        return row(
            trace.id,
            at=began_ms(trace.id),
            key_id=trace.key_id,
            provider=str(stored(trace.provider or "")),
            model=str(stored(trace.provider_model or "")),
            prompt_tokens=usage.prompt if usage else None,
            completion_tokens=usage.completion if usage else None,
            cost=trace.cost,
            lost=_lost(trace),
        )

    def refused(self) -> None:
        """A call that nobody could be found for: counted, and kept nowhere else."""
        self._telemetry.unauthenticated()

    def _ended(self, trace: Trace) -> bool:
        """Whether the ledger needs a row: for an answer, and for one that was lost."""
        trace.duration = time.monotonic() - trace.started
        trace.status = trace.status or CANCELLED
        left, trace.left = trace.left, None
        if left is not None:
            # A call that failed before anybody took its slot up.
            left.drop()
        usage, lost = trace.usage, False
        if usage is not None:
            model = trace.provider_model or ""
            trace.cost = self._cost_of(trace.provider_type or "", model, usage)
        for attempt in trace.attempts:
            lost = lost or attempt.lost
            self._telemetry.attempted(attempt.provider, attempt.outcome)
        self._count(trace)
        self._history.record(trace)
        if not trace.attempts:
            return False
        return usage is not None or lost or trace.status == 200

    def _count(self, trace: Trace) -> None:
        usage, first = trace.usage, trace.first_token
        # A stream's time after its first word is the provider's own.
        over = trace.duration if first is None else first - trace.started
        self._telemetry.settled(
            trace.operation,
            trace.provider,
            status=trace.status,
            duration=trace.duration,
            overhead=max(0.0, over - trace.waited),
            first_token=None if first is None else first - trace.started,
            prompt=usage.prompt if usage else None,
            completion=usage.completion if usage else None,
            cost=None if trace.cost is None else float(trace.cost),
        )


def _lost(trace: Trace) -> int:
    return sum(attempt.lost for attempt in trace.attempts)
