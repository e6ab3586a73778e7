"""The embedded model as a provider: where its engine answers, and what to say while it does not."""

from collections.abc import Callable
from typing import Any

from aiserver.contract.errors import Unavailable
from aiserver.kit import log
from aiserver.providers.local.engine import EngineState, EngineUnavailable, LocalEngine
from aiserver.providers.local.weights import WEIGHTS, WeightStore
from aiserver.providers.store import EMBEDDED, Provider

RECHECK_SECONDS = 2.0
_READY_SECONDS = 60.0

# What anyone may read: the log has the reason, which may name a folder.
_ADVICE = {
    EngineState.ABSENT: "The embedded model is not on this machine yet; the administrator can "
    "fetch it with `ai-server models pull`.",
    EngineState.UNSUPPORTED: "The embedded engine is not installed; install ai-server with its "
    "extra `local`.",
    EngineState.FAILED: "The embedded engine keeps failing; the server's log says why.",
}
_log = log.get("local")


class Embedded:
    """`engine` is None where LOCAL_MODELS switched it off."""

    def __init__(self, engine: LocalEngine | None) -> None:
        self.engine = engine
        self._state: EngineState | None = None

    @classmethod
    def of(cls, weights: WeightStore, *, on: bool) -> "Embedded":
        return cls(LocalEngine(weights, WEIGHTS[0], on_line=_to_log) if on else None)

    @property
    def model(self) -> str | None:
        return WEIGHTS[0].id if self.engine else None

    async def start(self, every: Callable[..., None]) -> None:
        """Starts the engine and has it looked after."""
        if self.engine is not None:
            await self.engine.start()
            every(RECHECK_SECONDS, "embedded engine", self._recheck)

    async def stop(self) -> None:
        if self.engine is not None:
            await self.engine.stop()

    async def address(self) -> tuple[str, str]:
        """(URL, key) of the running engine. Raises Unavailable."""
        if self.engine is None:
            raise Unavailable("The embedded model is switched off: LOCAL_MODELS=false.")
        try:
            endpoint = await self.engine.ready(_READY_SECONDS)
        except EngineUnavailable as error:
            why = _ADVICE.get(self.engine.status.state) or str(error)
            raise Unavailable(why, reason="local_model_unavailable") from error
        return endpoint.url, endpoint.api_key

    def asleep(self, provider: Provider) -> bool:
        """Whether this provider is the embedded one and cannot answer now."""
        if provider.source != EMBEDDED or self.engine is None:
            return False
        return self.engine.status.state not in (EngineState.STARTING, EngineState.READY)

    def shown(self) -> dict[str, Any]:
        """Its state as anyone may read it."""
        if self.engine is None:
            return {"state": "off"}
        status = self.engine.status
        state = {"state": status.state.value, "model": status.model}
        advice = _ADVICE.get(status.state)
        return {**state, "reason": advice} if advice else state

    async def _recheck(self) -> None:
        if self.engine is None:
            return
        status = self.engine.status
        if status.state is not self._state:
            self._state = status.state
            said = _log.error if status.state is EngineState.FAILED else _log.info
            said("embedded_model", state=status.state.value, reason=status.reason)
        await self.engine.recheck()


def _to_log(line: str) -> None:
    _log.debug("engine_output", line=line)
