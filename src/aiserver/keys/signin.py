"""How often an address may fail to sign in."""

from collections import OrderedDict, deque

from aiserver.contract.errors import TooBusy
from aiserver.kit.clock import Clock

MOST_FAILURES = 10
WINDOW_SECONDS = 60.0
# Addresses remembered at once; past this the one that failed longest ago is forgotten.
MOST_ADDRESSES = 10_000


class SignInLimit:
    """Counts failures in a sliding window; a success forgets them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises TooBusy while the address has failed too often."""
        failures = self._failures.get(address)
        if failures is None:
            return
        now = self._clock.monotonic()
        while failures and failures[0] <= now - WINDOW_SECONDS:
            failures.popleft()
        if len(failures) >= MOST_FAILURES:
            wait = failures[0] + WINDOW_SECONDS - now
            raise TooBusy("Too many failed sign-ins; try again in a minute.", retry_after=wait)

    def failed(self, address: str) -> None:
        self._failures.setdefault(address, deque(maxlen=MOST_FAILURES)).append(
            self._clock.monotonic()
        )
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(address, None)
