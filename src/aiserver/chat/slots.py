"""Room for chats that were queued: a slot of a provider, taken before their job is claimed."""

from collections.abc import Callable, Sequence
from typing import Any

from aiserver.chat.handlers import check, permitted
from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.outcomes import Tries
from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Call
from aiserver.contract.trace import Trace
from aiserver.providers.pool import Lease, NobodyLeft, ProviderPool
from aiserver.providers.standing import Wanted


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
        self._standing = pool.standing()

    def reserve(self, model: str, provider: str) -> ChatSlot | None:
        """None while every provider of the model is busy or out of service, or not known here.

        Who is not known may be known in a moment, here or to another process.
        """
        try:
            lease = self._standing.take((model, provider)) or self._pool.choose(
                model, provider=provider or None
            )
        except (ApiError, NobodyLeft):
            return None
        return None if lease is None else ChatSlot(lease)

    def watch(self, names: Sequence[Wanted], freed: Callable[[], None]) -> None:
        """`freed` is called once, when one of these had its turn or providers changed."""
        self._standing.watch(names, freed)
        if names:
            self._pool.when_better(freed)

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
