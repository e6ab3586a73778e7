"""Room for chats that were queued: a slot of a provider, taken before their job is claimed."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aiserver.chat.handlers import check, permitted
from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.outcomes import Tries
from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Call
from aiserver.contract.trace import Trace
from aiserver.providers.pool import Lease, NobodyLeft, ProviderPool
from aiserver.providers.waiting import Waiter

# A model, and the provider that is wished for, if any.
Wanted = tuple[str, str]


class ChatSlot:
    """A provider's slot for one chat."""

    def __init__(self, lease: Lease) -> None:
        self._lease: Lease | None = lease
        self.worker = lease.provider.name

    def give(self, trace: Trace) -> None:
        """The call of this trace goes on with the slot, and frees it."""
        lease, self._lease = self._lease, None
        if lease is not None:
            tries = Tries(trace)
            tries.interrupted = (lease, None)
            trace.left = tries

    def release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


class ChatSlots:
    """Slots of the providers of a model, for the jobs that wait for them.

    Where all are taken, jobs stand in the providers' line as one caller among the others, so that
    direct calls cannot keep them out for ever, nor they direct calls.
    """

    def __init__(self, pool: ProviderPool) -> None:
        self._pool = pool
        self._standing: dict[Wanted, Waiter] = {}
        self._kept: dict[Wanted, Lease] = {}

    def reserve(self, model: str, provider: str) -> ChatSlot | None:
        """None while every provider of the model is busy or out of service, or not known here.

        Who is not known may be known in a moment, here or to another process.
        """
        kept = self._kept.pop((model, provider), None)
        if kept is not None:
            return ChatSlot(kept)
        try:
            lease = self._pool.choose(model, provider=provider or None)
        except (ApiError, NobodyLeft):
            return None
        return None if lease is None else ChatSlot(lease)

    def watch(self, names: Sequence[Wanted], freed: Callable[[], None]) -> None:
        """`freed` is called once, when the turn of one of these came or providers changed."""
        while self._kept:
            self._kept.popitem()[1].release()
        for name in self._standing.keys() - set(names):
            self._pool.leave(self._standing.pop(name))
        if not names:
            return
        self._pool.when_better(freed)
        for name in names:
            if name not in self._standing:
                self._stand(name, freed)

    def _stand(self, name: Wanted, freed: Callable[[], None]) -> None:
        model, provider = name
        beside = self._standing.values()
        waiter = self._pool.stand(model, provider=provider or None, beside=beside)
        if waiter is not None:
            self._standing[name] = waiter
            waiter.turn.add_done_callback(partial(self._turn, name, waiter, freed))

    def _turn(
        self,
        name: Wanted,
        waiter: Waiter,
        freed: Callable[[], None],
        turn: "asyncio.Future[Lease]",
    ) -> None:
        if self._standing.get(name) is not waiter:
            return
        del self._standing[name]
        if turn.exception() is None:
            self._kept[name] = turn.result()
        freed()

    def places(self) -> dict[str, Callable[[Any, Call], tuple[str, str]]]:
        """What says where a queued call may run, by the name of its operation."""
        return {
            OpenAiChatCompletion.__name__: self.of_chat,
            OllamaGeneration.__name__: self.of_generation,
        }

    def of_chat(self, request: OpenAiChatCompletion, call: Call) -> tuple[str, str]:
        """The model and the provider that a queued chat asks for. Raises ApiError."""
        check(request, call)
        return self._known(request.model, request.provider)

    def of_generation(self, request: OllamaGeneration, call: Call) -> tuple[str, str]:
        """The same of a queued generation in Ollama's form."""
        permitted(request.model, call)
        return self._known(request.model, request.provider)

    def _known(self, model: str, provider: object) -> tuple[str, str]:
        wish = provider if isinstance(provider, str) else ""
        self._pool.check(model, provider=wish or None)
        return model, wish
