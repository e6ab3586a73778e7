"""What callers can do with their jobs: ask after them, wait, follow, cancel."""

from datetime import timedelta
from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import DELETE, GET, POST, Access, Route, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.jobs.records import (
    ArtifactOutput,
    BackgroundJobBase,
    BackgroundJobState,
    JobEvent,
    TextOutput,
)

# 0 is how typed clients say nothing where the contract has no null.
JobId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
RefId = Annotated[str, Meta(max_length=200)]


class StatusRequest(Wire, kw_only=True):
    """Names a job by `jobId`, or by `refId` where that is 0 or not given."""

    job_id: JobId | None = None
    ref_id: RefId | None = None


class GetArtifactGenerationStatusResponse(Wire, kw_only=True):
    """`results` and `duration` are there once the job is completed."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    results: list[ArtifactOutput] | None = None
    duration: timedelta | None = None
    response_status: ResponseStatus | None = None


@operation(tag="Admin", verbs=GET, access=Access.KEY, returns=GetArtifactGenerationStatusResponse)
class GetArtifactGenerationStatus(StatusRequest, kw_only=True):
    """Tells how far a queued generation or transform of the caller's is, and its files when done.

    A failed job answers 422 where the caller was at fault and 502 where the upstream was, a
    cancelled one 409; `meta` of the error has jobId, refId and jobState.
    """


class GetTextGenerationStatusResponse(Wire, kw_only=True):
    """`results` and `duration` are there once the job is completed."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    status: str | None = None
    results: list[TextOutput] | None = None
    duration: timedelta | None = None
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=GetTextGenerationStatusResponse)
class GetTextGenerationStatus(StatusRequest, kw_only=True):
    """Tells how far a queued generation of text of the caller's is, and its texts when done.

    A failed job answers 422 where the caller was at fault and 502 where the upstream was, a
    cancelled one 409; `meta` of the error has jobId, refId and jobState.
    """


class GetOpenAiChatResponse(Wire, kw_only=True):
    result: BackgroundJobBase | None = None
    response_status: ResponseStatus | None = None


@operation(tag="AI Info", verbs=GET, access=Access.KEY, returns=GetOpenAiChatResponse)
class GetOpenAiChat(Wire, kw_only=True):
    """Shows a chat job of the caller's in full, with its request and its answer."""

    id: JobId | None = None
    ref_id: RefId | None = None


@operation(
    tag="AI Info",
    verbs=GET,
    access=Access.KEY,
    returns=GetOpenAiChatResponse,
    ends_with_caller=True,
)
class WaitForOpenAiChat(Wire, kw_only=True):
    """Waits at most 120 s for a chat job of the caller's to end, and shows it in full."""

    id: JobId | None = None
    ref_id: RefId | None = None


class CancelJobResponse(Wire, kw_only=True):
    """`jobState` is Started where the job runs still and was told to stop."""

    job_id: int
    ref_id: str
    job_state: BackgroundJobState
    response_status: ResponseStatus | None = None


@operation(
    tag="Jobs",
    verbs=POST,
    access=Access.KEY,
    returns=CancelJobResponse,
    routes=(Route("/api/jobs/{Id}", DELETE),),
    beyond_contract=True,
)
class CancelJob(Wire, kw_only=True):
    """Cancels a job of the caller's, by `id` or by `refId`: waiting, or running at an upstream.

    A job that has ended stays as it is, and is answered with 409.
    """

    id: JobId | None = None
    ref_id: RefId | None = None


@operation(
    tag="Jobs",
    verbs=GET,
    access=Access.KEY,
    returns=JobEvent,
    routes=(Route("/api/jobs/{Id}/events", GET),),
    beyond_contract=True,
)
class GetJobEvents(Wire, kw_only=True):
    """Streams what happens to a job of the caller's, as server-sent events until it has ended.

    The events are queued (with its position), started, progress, output and finished; the first
    tells how it stands now.
    """

    id: JobId | None = None
    ref_id: RefId | None = None
