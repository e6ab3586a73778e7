"""Ends every call once: what it cost, its row in the ledger, its place in history and metrics."""

import time
from collections.abc import Callable
from decimal import Decimal

from aiserver.contract.errors import ApiError
from aiserver.contract.trace import Trace, Usage
from aiserver.history.store import History
from aiserver.keys.ledger import Ledger
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
        trace.duration = time.monotonic() - trace.started
        trace.status = trace.status or CANCELLED
        trace.left = None
        if trace.attempts:
            self._settle(trace)
        self._count(trace)
        self._history.record(trace)

    def refused(self) -> None:
        """A call that nobody could be found for: counted, and kept nowhere else."""
        self._telemetry.unauthenticated()

    def _settle(self, trace: Trace) -> None:
        """A row for whatever may have cost something: an answer, or one that was lost."""
        usage = trace.usage
        model = trace.provider_model or ""
        if usage is not None:
            trace.cost = self._cost_of(trace.provider_type or "", model, usage)
        lost = 0
        for attempt in trace.attempts:
            lost += attempt.lost
            self._telemetry.attempted(attempt.provider, attempt.outcome)
        if usage is not None or lost or trace.status == 200:
            self._ledger.add(
                trace.id, trace.key_id, trace.provider or "", model, usage, trace.cost, lost
            )

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
