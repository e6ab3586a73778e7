"""What can be asked about an Ollama server that is not a provider yet."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import GET, Access, operation
from aiserver.contract.responses import ResponseStatus, Wire


class OllamaModelDetails(Wire, kw_only=True, rename=None):
    parent_model: str | None = None
    format: str | None = None
    family: str | None = None
    families: list[str] | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None


class OllamaModel(Wire, kw_only=True, rename=None):
    """A model on an Ollama server; `size` in bytes."""

    name: str
    model: str
    modified_at: datetime | None = None
    size: int | None = None
    digest: str | None = None
    details: OllamaModelDetails | None = None


class GetOllamaModelsResponse(Wire, kw_only=True):
    results: list[OllamaModel]
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.ADMIN, returns=GetOllamaModelsResponse)
class GetOllamaModels(Wire, kw_only=True):
    """Lists the models of the Ollama server at an address, before it is made a provider."""

    api_base_url: Annotated[str, Meta(min_length=1, max_length=2000)]
