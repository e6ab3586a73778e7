"""Every dialect that upstreams speak, by the name that a kind of provider bears."""

from collections.abc import Mapping

from aiserver.chat.adapters.adapter import Adapter
from aiserver.chat.adapters.anthropic import AnthropicAdapter
from aiserver.chat.adapters.google import GoogleAdapter
from aiserver.chat.adapters.ollama import OllamaAdapter
from aiserver.chat.adapters.openai import OpenAiAdapter

ADAPTERS: Mapping[str, Adapter] = {
    "openai": OpenAiAdapter(),
    "anthropic": AnthropicAdapter(),
    "google": GoogleAdapter(),
    "ollama": OllamaAdapter(),
}
