"""Says with each answer what the gateway itself took."""

import time

from aiserver.contract.trace import Trace


def server_timing(trace: Trace) -> bytes:
    """The value of Server-Timing: milliseconds in the gateway, and those spent on providers."""
    waited = int(trace.waited * 100_000)
    own = max(0, int((time.monotonic() - trace.started) * 100_000) - waited)
    return b"gateway;dur=%d.%02d, upstream;dur=%d.%02d" % (*divmod(own, 100), *divmod(waited, 100))
