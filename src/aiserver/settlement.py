"""Ends every call once: what it cost, its row in the ledger, its place in the history."""

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

from aiserver.contract.errors import ApiError
from aiserver.contract.trace import Trace, Usage

# What nginx and others log for a caller that went away before its answer was complete.
CLIENT_GONE = 499

CostOf = Callable[[str, str, Usage], Decimal | None]


class Ledger(Protocol):
    def add(
        self,
        id: int,
        key_id: int | None,
        provider: str,
        model: str,
        usage: Usage | None,
        cost: Decimal | None,
        lost: int,
    ) -> None: ...


class Settlement:
    """Plain synchronous functions over memory; nothing here waits, and nothing may fail a call."""

    def __init__(
        self,
        *,
        cost_of: CostOf,
        ledger: Ledger,
        record: Callable[[Trace], None],
        count: Callable[[Trace], None],
    ) -> None:
        self._cost_of = cost_of
        self._ledger = ledger
        self._record = record
        self._count = count

    def failed(self, trace: Trace, error: ApiError) -> None:
        """Ends a call that is answered with an error."""
        trace.status = error.http_status
        trace.error, trace.message = error.error_reason, error.message
        self.end(trace)

    def end(self, trace: Trace) -> None:
        """Ends a call; one that nobody gave a status was left by its caller."""
        trace.duration = time.monotonic() - trace.started
        trace.status = trace.status or CLIENT_GONE
        if trace.attempts:
            self._settle(trace)
        self._record(trace)
        self._count(trace)

    def _settle(self, trace: Trace) -> None:
        usage = trace.usage
        model = trace.provider_model or ""
        if usage is not None:
            trace.cost = self._cost_of(trace.provider_type or "", model, usage)
        lost = sum(attempt.lost for attempt in trace.attempts)
        if usage is not None or lost or trace.status == 200:
            self._ledger.add(
                trace.id, trace.key_id, trace.provider or "", model, usage, trace.cost, lost
            )
