"""Asks providers that are offline or misconfigured whether they are back: cheap, never a chat."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from aiserver.contract.errors import ApiError
from aiserver.kit.clock import Clock
from aiserver.providers.health import FailureKind, State
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider

FIRST_SECONDS, MOST_SECONDS = 5.0, 60.0
MISCONFIGURED_SECONDS = 60.0
MOST_AT_ONCE = 8
# A provider that needs longer to list its models is no help to callers.
PROBE_SECONDS = 10.0

_LOOK_SECONDS = 1.0
_KEY_TROUBLE = ("provider_credentials", "provider_misconfigured")

Probe = Callable[[Provider], Awaitable[None]]


class _Next(msgspec.Struct):
    provider: Provider
    at: float
    pause: float


class Probes:
    """`probe` returns when the provider answers and raises what it met otherwise.

    An error that it raises may have a `kind`, a FailureKind; an ApiError's reason tells the key's
    trouble from others.
    """

    def __init__(self, pool: ProviderPool, probe: Probe, clock: Clock) -> None:
        self._pool = pool
        self._probe = probe
        self._clock = clock
        self._next: dict[int, _Next] = {}
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(_LOOK_SECONDS)

    async def round(self) -> None:
        """Probes who is due: 5 s after it went offline, up to 60 s apart; each minute for keys."""
        now = self._clock.monotonic()
        due = [provider for provider in self._pool.providers() if self._is_due(provider, now)]
        known = {provider.id for provider in self._pool.providers()}
        self._next = {i: each for i, each in self._next.items() if i in known}
        await asyncio.gather(*(self.check(provider) for provider in due))

    async def check(self, provider: Provider) -> bool:
        """Probes now and keeps the result; whether the provider answered as it should."""
        async with self._slots:
            problem = await self._problem(provider)
        self._pool.probed(provider, problem)
        return problem in (None, FailureKind.MODEL_MISSING, FailureKind.REQUEST)

    def _is_due(self, provider: Provider, now: float) -> bool:
        state = self._pool.state(provider.id)
        if not provider.enabled or state not in (State.OFFLINE, State.MISCONFIGURED):
            self._next.pop(provider.id, None)
            return False
        planned = self._next.get(provider.id)
        if planned is None or planned.provider != provider:
            first = MISCONFIGURED_SECONDS if state is State.MISCONFIGURED else FIRST_SECONDS
            self._next[provider.id] = _Next(provider, now + first, first)
            return False
        if planned.at > now:
            return False
        planned.pause = min(planned.pause * 2, MOST_SECONDS)
        planned.at = now + planned.pause
        return True

    async def _problem(self, provider: Provider) -> FailureKind | None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._probe(provider)
        except TimeoutError:
            return FailureKind.TIMEOUT
        except Exception as error:  # whatever it met, the probe ends here and is no answer
            return _kind(error)
        return None


def _kind(error: Exception) -> FailureKind:
    kind = getattr(error, "kind", None)
    if isinstance(kind, FailureKind):
        return kind
    if isinstance(error, ApiError) and error.error_reason in _KEY_TROUBLE:
        return FailureKind.CREDENTIALS
    return FailureKind.UNREACHABLE
