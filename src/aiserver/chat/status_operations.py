"""What callers can ask of their queued chats."""

from aiserver.chat.ollama_operations import OllamaGenerateResponse
from aiserver.chat.operations import OpenAiChatResponse
from aiserver.contract.operation import GET, Access, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.jobs.records import BackgroundJobState
from aiserver.jobs.status_operations import StatusRequest


class GetOpenAiChatStatusResponse(Wire, kw_only=True):
    """`result` is there once the job is completed, `responseStatus` when it failed."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    result: OpenAiChatResponse | None = None
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=GetOpenAiChatStatusResponse)
class GetOpenAiChatStatus(StatusRequest, kw_only=True):
    """Tells how far a queued chat of the caller's is, and its answer when done.

    A chat that failed or was cancelled says so in `jobState`, and why in `responseStatus`.
    """


class GetOllamaGenerationStatusResponse(Wire, kw_only=True):
    """`result` is there once the job is completed, `responseStatus` when it failed."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    result: OllamaGenerateResponse | None = None
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=GetOllamaGenerationStatusResponse)
class GetOllamaGenerationStatus(StatusRequest, kw_only=True):
    """Tells how far a queued generation of the caller's is, and its answer when done.

    One that failed or was cancelled says so in `jobState`, and why in `responseStatus`.
    """
