"""What can be asked of the catalogue: which models, prompts and voices there are and are in use."""

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import GET, POST, Access, Content, Route, operation
from aiserver.contract.responses import EmptyResponse, QueryResponse, ResponseStatus, Wire
from aiserver.providers.catalogue import AiProviderType, AiType
from aiserver.providers.models import AiModel, MediaModel, MediaType, Prompt, TextToSpeechVoice


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[AiModel])
class QueryAiModels(Query, kw_only=True):
    """Lists the chat models that are known by name."""


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[AiType])
class QueryAiTypes(Query, kw_only=True):
    """Lists the kinds of provider of chat models that can be created."""


@operation(tag="Media Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[MediaType])
class QueryMediaTypes(Query, kw_only=True):
    """Lists the kinds of media provider."""


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[MediaModel])
class QueryMediaModels(Query, kw_only=True):
    """Lists the models for pictures and sound; by `id` also a part such as a text encoder."""

    id: str | None = None
    provider_id: str | None = None


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[Prompt])
class QueryPrompts(Query, kw_only=True):
    """Lists the system prompts to choose from."""


@operation(
    tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=QueryResponse[TextToSpeechVoice]
)
class QueryTextToSpeechVoices(Query, kw_only=True):
    """Lists the voices for speech."""


class ActiveAiModelsResponse(Wire, kw_only=True):
    results: list[str]
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=ActiveAiModelsResponse)
class ActiveAiModels(Wire, kw_only=True):
    """Lists the models that some provider answers for now; `vision` keeps those that see."""

    provider: AiProviderType | None = None
    vision: bool | None = None


class StringsResponse(Wire, kw_only=True):
    results: list[str]
    meta: dict[str, str] | None = None
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=StringsResponse)
class ActiveCustomAiModels(Wire, kw_only=True):
    """Lists the models that some provider answers for now and the catalogue does not know."""


class Entry(Wire, kw_only=True):
    """`key` is the id of a model, `value` its name."""

    key: str
    value: str


class ActiveMediaModelsResponse(Wire, kw_only=True):
    results: list[Entry]
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.CATALOGUE, returns=ActiveMediaModelsResponse)
class ActiveMediaModels(Wire, kw_only=True):
    """Lists the models for pictures that some media provider answers for now."""


@operation(
    tag="AI Info",
    verbs=GET,
    access=Access.CATALOGUE,
    returns=Content,
    routes=(Route("/icons/models/{Model}", GET),),
)
class GetModelImage(Wire, kw_only=True):
    """Answers an icon for a model's family, as SVG."""

    model: str | None = None


@operation(tag="Admin", verbs=POST, access=Access.ADMIN, returns=EmptyResponse)
class Reload(Wire, kw_only=True):
    """Reads the catalogue, its overrides, the keys and the providers again.

    `responseStatus.meta` names each override file that could not be used.
    """
