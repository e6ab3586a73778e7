"""What can be called about chat."""

from typing import Annotated, Any

from msgspec import Meta

from aiserver.contract.operation import POST, Access, Queued, Route, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.jobs.records import QueueOpenAiChatResponse


class OpenAiToolFunction(Wire, kw_only=True, rename=None):
    name: str | None = None
    description: str | None = None
    parameters: Any = None


class OpenAiTools(Wire, kw_only=True, rename=None):
    type: Any = None
    function: OpenAiToolFunction | None = None


class OpenAiMessage(Wire, kw_only=True, rename=None):
    content: Any = None
    images: list[str] | None = None
    role: str | None = None
    name: str | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None


class OpenAiResponseFormat(Wire, kw_only=True, rename=None):
    """`response_format` is how older typed clients spell `type`."""

    type: Any = None
    json_schema: Any = None
    response_format: Any = None


class OpenAiUsage(Wire, kw_only=True, rename=None):
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int


class ChoiceMessage(Wire, kw_only=True, rename=None):
    content: str | None = None
    tool_calls: Any = None
    role: str


class Choice(Wire, kw_only=True, rename=None):
    finish_reason: str | None = None
    index: int
    message: ChoiceMessage


class OpenAiChatResponse(Wire, kw_only=True, rename={"response_status": "responseStatus"}):
    id: str
    choices: list[Choice]
    created: int
    model: str
    system_fingerprint: str | None = None
    object: str
    usage: OpenAiUsage | None = None
    response_status: ResponseStatus | None = None


class OpenAiChat(Wire, kw_only=True, rename=None):
    """A chat in OpenAI's form, inside another request."""

    messages: list[OpenAiMessage]
    model: Annotated[str, Meta(max_length=300)] | None = None
    frequency_penalty: Any = None
    logit_bias: dict[str, Any] | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    presence_penalty: Any = None
    response_format: OpenAiResponseFormat | None = None
    seed: Any = None
    stop: Any = None
    stream: bool | None = None
    temperature: Any = None
    top_p: Any = None
    tools: list[OpenAiTools] | None = None
    tool_choice: Any = None
    user: str | int | None = None


@operation(
    tag="AI",
    verbs=POST,
    access=Access.KEY,
    returns=OpenAiChatResponse,
    routes=(Route("/v1/chat/completions", POST), Route("/chat/completions", POST)),
    keeps_members=True,
    ends_with_caller=True,
    queued=Queued(
        into=QueueOpenAiChatResponse,
        kind="chat",
        status="GetOpenAiChatStatus",
        nested=OpenAiChat,
        without=("stream", "stream_options"),
    ),
)
class OpenAiChatCompletion(Wire, kw_only=True, rename={"ref_id": "refId", "reply_to": "replyTo"}):
    """Completes a chat in OpenAI's form, at once or as a stream.

    Members are passed to the provider as sent; `provider` as text names which one, `refId`, `tag`
    and `replyTo` stay here.
    """

    messages: list[OpenAiMessage]
    model: Annotated[str, Meta(min_length=1, max_length=300)]
    frequency_penalty: Any = None
    logit_bias: dict[str, Any] | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    presence_penalty: Any = None
    response_format: OpenAiResponseFormat | None = None
    seed: Any = None
    stop: Any = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: Any = None
    top_p: Any = None
    tools: list[OpenAiTools] | None = None
    tool_choice: Any = None
    user: str | int | None = None
    ref_id: str | None = None
    provider: str | dict[str, Any] | None = None
    tag: str | None = None
    reply_to: str | None = None


@operation(
    tag="AI Info",
    verbs=POST,
    access=Access.KEY,
    returns=OpenAiChatResponse,
    keeps_members=True,
    ends_with_caller=True,
)
class ChatAiProvider(Wire, kw_only=True):
    """Completes a chat at one provider, named by the caller; no other is asked.

    `request` is a whole chat, `prompt` one message of a user. Without `model`, that of `request`
    counts.
    """

    provider: Annotated[str, Meta(min_length=1, max_length=100)]
    model: Annotated[str, Meta(max_length=300)] | None = None
    request: OpenAiChat | None = None
    prompt: str | None = None
