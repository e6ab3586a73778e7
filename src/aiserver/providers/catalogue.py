"""The kinds of provider, as rows of data; one that differs only by data is a row, never a class."""

import re
from enum import Enum

import msgspec

from aiserver.contract.responses import Wire

_VERSION = re.compile(r"/v\d+(?:beta\d*)?$")
_CHATS = ("/chat/completions", "/messages", "/chat", "/generate", "/models")
# Ollama's own paths lie beside those of /v1, where its OpenAI-compatible twin answers.
_NATIVE = "/api"


class AiProviderType(Enum):
    """The protocol that a provider speaks, as the wire names it."""

    OllamaAiProvider = "OllamaAiProvider"
    OpenAiProvider = "OpenAiProvider"
    GoogleAiProvider = "GoogleAiProvider"
    AnthropicAiProvider = "AnthropicAiProvider"
    CustomOpenAiProvider = "CustomOpenAiProvider"


class AiType(Wire, kw_only=True):
    """A kind of provider as the wire shows it."""

    id: str
    provider: AiProviderType
    website: str
    api_base_url: str
    icon: str | None = None
    api_models: dict[str, str]


class ProviderType(msgspec.Struct, frozen=True, kw_only=True):
    """`dialect` names the adapter that speaks to it, `version` the path that its API starts with.

    `asks_usage`: a stream gives token counts only when `stream_options` ask for them. `key_header`
    takes the key instead of `Authorization: Bearer`; `headers` go along with every request.
    `variable` and `address` are the settings that make such a provider appear, as `name`.
    """

    wire: AiType
    name: str
    dialect: str = "openai"
    version: str = "/v1"
    asks_usage: bool = True
    key_header: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    variable: str | None = None
    address: str | None = None


TYPES: tuple[ProviderType, ...] = (
    ProviderType(
        wire=AiType(
            id="Open AI",
            provider=AiProviderType.OpenAiProvider,
            website="https://openai.com",
            api_base_url="https://api.openai.com",
            api_models={},
        ),
        name="openai",
        variable="OPENAI_API_KEY",
        address="OPENAI_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="OpenRouter",
            provider=AiProviderType.OpenAiProvider,
            website="https://openrouter.ai",
            api_base_url="https://openrouter.ai/api",
            api_models={},
        ),
        name="openrouter",
        variable="OPENROUTER_API_KEY",
        address="OPENROUTER_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="Mistral AI",
            provider=AiProviderType.OpenAiProvider,
            website="https://mistral.ai",
            api_base_url="https://api.mistral.ai",
            api_models={},
        ),
        name="mistral",
        asks_usage=False,
        variable="MISTRAL_API_KEY",
        address="MISTRAL_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="GroqCloud",
            provider=AiProviderType.OpenAiProvider,
            website="https://groq.com",
            api_base_url="https://api.groq.com/openai",
            api_models={},
        ),
        name="groq",
        variable="GROQ_API_KEY",
        address="GROQ_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="Anthropic",
            provider=AiProviderType.AnthropicAiProvider,
            website="https://www.anthropic.com",
            api_base_url="https://api.anthropic.com",
            api_models={},
        ),
        name="anthropic",
        dialect="anthropic",
        key_header="x-api-key",
        headers=((b"anthropic-version", b"2023-06-01"),),
        variable="ANTHROPIC_API_KEY",
        address="ANTHROPIC_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="Google Cloud",
            provider=AiProviderType.GoogleAiProvider,
            website="https://ai.google.dev",
            api_base_url="https://generativelanguage.googleapis.com",
            api_models={},
        ),
        name="google",
        dialect="google",
        version="/v1beta",
        key_header="x-goog-api-key",
        variable="GOOGLE_API_KEY",
        address="GOOGLE_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="Ollama",
            provider=AiProviderType.OllamaAiProvider,
            website="https://ollama.com",
            api_base_url="http://localhost:11434",
            api_models={},
        ),
        name="ollama",
        dialect="ollama",
        version="/api",
        address="OLLAMA_BASE_URL",
    ),
    ProviderType(
        wire=AiType(
            id="Custom",
            provider=AiProviderType.CustomOpenAiProvider,
            website="",
            api_base_url="http://localhost:8080",
            api_models={},
        ),
        name="custom",
    ),
    ProviderType(
        wire=AiType(
            id="Local",
            provider=AiProviderType.CustomOpenAiProvider,
            website="",
            api_base_url="http://127.0.0.1",
            api_models={},
        ),
        name="local",
    ),
)

LOCAL_TYPE = "Local"
BY_ID = {row.wire.id: row for row in TYPES}


def type_named(name: str) -> ProviderType | None:
    """By id in any case, or by the default name of its providers: `Open AI`, `openai`."""
    wanted = name.casefold()
    return next((t for t in TYPES if wanted in (t.wire.id.casefold(), t.name)), None)


def api_root(base_url: str, version: str = "/v1") -> str:
    """What every path of an upstream starts with; `version` is its dialect's own.

    A base URL may end in the host, in a version such as /v1, or in the whole path of a chat.
    """
    given = base_url.rstrip("/")
    url = given
    for path in _CHATS:
        url = url.removesuffix(path)
    if version == _NATIVE:
        return f"{_VERSION.sub('', url).removesuffix(_NATIVE)}{_NATIVE}"
    if url != given or _VERSION.search(url):
        return url
    return f"{url}{version}"
