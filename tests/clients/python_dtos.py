"""Types of the gateway as the generator for Python writes them, for the typed client."""

# The client of these types knows `Optional[X]` but not `X | None`, and the generator writes `List`
# and `str, Enum`. What `dataclass_json` says of its own LetterCase is not so.
# ruff: noqa: UP006, UP035, UP042, UP045
# pyright: reportArgumentType=false

import datetime
from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, Optional

from dataclasses_json import LetterCase, Undefined, dataclass_json
from servicestack import (
    IDeleteDb,
    IGet,
    IPost,
    IReturn,
    IReturnVoid,
    QueryDb,
    QueryResponse,
    ResponseStatus,
)


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiMessage:
    content: Optional[str] = None
    images: Optional[List[str]] = None
    role: Optional[str] = None
    name: Optional[str] = None
    tool_call_id: Optional[str] = None


class ResponseFormat(str, Enum):
    TEXT = "text"
    JSON_OBJECT = "json_object"


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiResponseFormat:
    response_format: Optional[ResponseFormat] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiChat:
    messages: Optional[List[OpenAiMessage]] = None
    model: Optional[str] = None
    frequency_penalty: Optional[float] = None
    logit_bias: Optional[Dict[int, int]] = None
    logprobs: Optional[bool] = None
    top_logprobs: Optional[int] = None
    max_tokens: Optional[int] = None
    n: Optional[int] = None
    presence_penalty: Optional[float] = None
    response_format: Optional[OpenAiResponseFormat] = None
    seed: Optional[int] = None
    stop: Optional[List[str]] = None
    stream: Optional[bool] = None
    temperature: Optional[float] = None
    top_p: Optional[float] = None
    user: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class ChoiceMessage:
    content: Optional[str] = None
    role: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class Choice:
    finish_reason: Optional[str] = None
    index: int = 0
    message: Optional[ChoiceMessage] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiUsage:
    completion_tokens: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiChatResponse:
    id: Optional[str] = None
    choices: Optional[List[Choice]] = None
    created: int = 0
    model: Optional[str] = None
    system_fingerprint: Optional[str] = None
    object: Optional[str] = None
    usage: Optional[OpenAiUsage] = None
    response_status: Optional[ResponseStatus] = None


# @Route("/v1/chat/completions", "POST")
@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class OpenAiChatCompletion(OpenAiChat, IReturn[OpenAiChatResponse], IPost):
    ref_id: Optional[str] = None
    provider: Optional[str] = None
    tag: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class HelloResponse:
    result: Optional[str] = None


# @Route("/hello/{Name}")
@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class Hello(IReturn[HelloResponse], IGet):
    name: Optional[str] = None


class AiProviderType(str, Enum):
    OLLAMA_AI_PROVIDER = "OllamaAiProvider"
    OPEN_AI_PROVIDER = "OpenAiProvider"
    GOOGLE_AI_PROVIDER = "GoogleAiProvider"
    ANTHROPIC_AI_PROVIDER = "AnthropicAiProvider"
    CUSTOM_OPEN_AI_PROVIDER = "CustomOpenAiProvider"


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class AiType:
    id: Optional[str] = None
    provider: Optional[AiProviderType] = None
    website: Optional[str] = None
    api_base_url: Optional[str] = None
    heartbeat_url: Optional[str] = None
    icon: Optional[str] = None
    api_models: Optional[Dict[str, str]] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class AiProviderModel:
    model: Optional[str] = None
    api_model: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class AiProvider:
    id: int = 0
    name: Optional[str] = None
    api_base_url: Optional[str] = None
    api_key_var: Optional[str] = None
    api_key: Optional[str] = None
    api_key_header: Optional[str] = None
    heartbeat_url: Optional[str] = None
    concurrency: int = 0
    priority: int = 0
    enabled: bool = False
    offline_date: Optional[datetime.datetime] = None
    created_date: datetime.datetime = datetime.datetime(1, 1, 1)
    models: Optional[List[AiProviderModel]] = None
    ai_type_id: Optional[str] = None
    ai_type: Optional[AiType] = None
    selected_models: Optional[List[str]] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueryAiProviders(QueryDb[AiProvider], IReturn[QueryResponse[AiProvider]]):
    name: Optional[str] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class DeleteAiProvider(IReturnVoid, IDeleteDb[AiProvider]):
    id: int = 0


class BackgroundJobState(str, Enum):
    QUEUED = "Queued"
    STARTED = "Started"
    EXECUTED = "Executed"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueOpenAiChatResponse:
    id: int = 0
    ref_id: Optional[str] = None
    status_url: Optional[str] = None
    response_status: Optional[ResponseStatus] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class QueueOpenAiChatCompletion(IReturn[QueueOpenAiChatResponse], IPost):
    ref_id: Optional[str] = None
    provider: Optional[str] = None
    reply_to: Optional[str] = None
    tag: Optional[str] = None
    request: Optional[OpenAiChat] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class GetOpenAiChatStatusResponse:
    job_id: int = 0
    ref_id: Optional[str] = None
    job_state: Optional[BackgroundJobState] = None
    status: Optional[str] = None
    response_status: Optional[ResponseStatus] = None
    result: Optional[OpenAiChatResponse] = None


@dataclass_json(letter_case=LetterCase.CAMEL, undefined=Undefined.EXCLUDE)
@dataclass
class GetOpenAiChatStatus(IReturn[GetOpenAiChatStatusResponse], IGet):
    job_id: int = 0
    ref_id: Optional[str] = None
