"""What can be called in Ollama's own form."""

from typing import Annotated, Any

from msgspec import Meta

from aiserver.contract.operation import POST, Access, Queued, Route, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.jobs.records import QueueOllamaGenerationResponse


class OllamaGenerateOptions(Wire, kw_only=True, rename=None):
    """How the model runs and chooses its words; options not named here go along too."""

    mirostat: int | None = None
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    num_ctx: int | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: Any = None
    num_predict: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


class OllamaGenerateResponse(Wire, kw_only=True, rename={"response_status": "responseStatus"}):
    """`created_at` is in seconds since 1970; durations in nanoseconds, left out over 32 bits.

    A request that says `stream` is answered as Ollama does: `created_at` as text, every duration.
    """

    model: str
    created_at: int
    response: str
    done: bool
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    prompt_tokens: int | None = None
    context: list[int] | None = None
    response_status: ResponseStatus | None = None


class OllamaGenerate(Wire, kw_only=True, rename=None):
    """A prompt in Ollama's form, alone or inside another request."""

    model: Annotated[str, Meta(min_length=1, max_length=300)]
    prompt: Annotated[str, Meta(min_length=1)]
    suffix: str | None = None
    images: list[str] | None = None
    format: Any = None
    options: OllamaGenerateOptions | None = None
    system: str | None = None
    template: str | None = None
    stream: bool | None = None
    raw: bool | None = None
    keep_alive: Any = None
    context: list[int] | None = None


@operation(
    tag="AI",
    verbs=POST,
    access=Access.KEY,
    returns=OllamaGenerateResponse,
    routes=(Route("/api/generate", POST),),
    keeps_members=True,
    ends_with_caller=True,
    queued=Queued(
        into=QueueOllamaGenerationResponse,
        kind="chat",
        status="GetOllamaGenerationStatus",
        nested=OllamaGenerate,
        without=("stream",),
    ),
)
class OllamaGeneration(OllamaGenerate, kw_only=True, rename={"ref_id": "refId"}):
    """Answers a prompt in Ollama's form, by any provider; `stream` true gives a line for each word.

    Members are passed to Ollama as sent; `provider` names which provider, `refId`, `tag` and
    `replyTo` stay here. Images are base64. Only Ollama itself takes `suffix`, `template`, `raw`,
    `context` and `logprobs`.
    """

    ref_id: str | None = None
    provider: str | None = None
    tag: str | None = None
