"""Room for chats that were queued: a slot of a provider, taken before their job is claimed."""

from collections.abc import Callable
from typing import Any

from aiserver.chat.handlers import check, permitted
from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.outcomes import Tries
from aiserver.contract.errors import ApiError
from aiserver.contract.operation import Call
from aiserver.contract.trace import Trace
from aiserver.providers.pool import Lease, NobodyLeft, ProviderPool


class ChatSlot:
    """A provider's slot for one chat; without a lease the chat finds out why by itself."""

    def __init__(self, lease: Lease | None) -> None:
        self._lease = lease
        self.worker = None if lease is None else lease.provider.name

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
    """Slots of the providers of a model, for the jobs that wait for them."""

    def __init__(self, pool: ProviderPool) -> None:
        self._pool = pool

    def reserve(self, model: str, provider: str) -> ChatSlot | None:
        """None while every provider of the model is busy or out of service."""
        try:
            lease = self._pool.choose(model, provider=provider or None)
        except NobodyLeft:
            return None
        except ApiError:
            return ChatSlot(None)
        return None if lease is None else ChatSlot(lease)

    def watch(self, freed: Callable[[], None]) -> None:
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
