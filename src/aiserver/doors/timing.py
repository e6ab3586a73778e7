"""Says with each answer what the gateway itself took."""

import time

from aiserver.contract.trace import Trace


def server_timing(trace: Trace) -> bytes:
    """The value of Server-Timing: milliseconds in the gateway, and those spent on providers."""
    waited = trace.waited * 1000
    own = (time.monotonic() - trace.started) * 1000 - waited
    return b"gateway;dur=%.2f, upstream;dur=%.2f" % (own, waited)
