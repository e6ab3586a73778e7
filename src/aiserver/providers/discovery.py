"""Asks upstreams which models they serve, so that nobody has to list them."""

import asyncio
from collections.abc import Awaitable, Callable

from aiserver.contract.errors import ApiError
from aiserver.kit import log
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider

_log = log.get("providers")
_AGAIN_SECONDS = 300.0
_RETRY_SECONDS = 15.0
# An upstream that lists more is not taken at its word; OpenRouter lists some 400.
_MOST_MODELS = 5000
MOST_AT_ONCE = 8

ListModels = Callable[[Provider], Awaitable[list[str]]]


class Discovery:
    """Renews the models of providers that name none themselves. `list_models` is an adapter's."""

    def __init__(self, pool: ProviderPool, list_models: ListModels) -> None:
        self._pool = pool
        self._list_models = list_models
        self._known: dict[int, Provider] = {}
        self._wanted = asyncio.Event()
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self.problems: dict[int, str] = {}

    def providers_changed(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled: at the start, after a change, and every few minutes."""
        while True:
            self._wanted.clear()
            complete = await self.renew()
            try:
                async with asyncio.timeout(_AGAIN_SECONDS if complete else _RETRY_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                self._known.clear()

    async def renew(self) -> bool:
        """Asks every provider that changed since; False when one did not answer."""
        ids = {provider.id for provider in self._pool.providers()}
        self._known = {i: known for i, known in self._known.items() if i in ids}
        self.problems = {i: told for i, told in self.problems.items() if i in ids}
        asked = [p for p in self._pool.providers() if self._should_ask(p)]
        answers = await asyncio.gather(*(self._ask(provider) for provider in asked))
        return all(answers)

    def _should_ask(self, provider: Provider) -> bool:
        return provider.enabled and not provider.models and self._known.get(provider.id) != provider

    async def _ask(self, provider: Provider) -> bool:
        try:
            async with self._slots:
                names = await self._list_models(provider)
        except Exception as error:  # whatever one listing met, the others go on
            known = isinstance(error, ApiError)
            problem = error.message if known else f"unexpected {type(error).__name__}"
            if self.problems.get(provider.id) != problem:
                _log.warning("models_not_listed", provider=provider.name, problem=problem)
            self.problems[provider.id] = problem
            return False
        self.problems.pop(provider.id, None)
        self._pool.learn(provider.id, names[:_MOST_MODELS])
        self._known[provider.id] = provider
        _log.info("models_listed", provider=provider.name, models=len(names))
        return True
