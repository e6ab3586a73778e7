"""Every dialect that upstreams speak, by the name that a kind of provider bears."""

from collections.abc import Mapping

from aiserver.chat.adapters.adapter import Adapter, Loaded
from aiserver.chat.adapters.anthropic import AnthropicAdapter
from aiserver.chat.adapters.google import GoogleAdapter
from aiserver.chat.adapters.ollama import OllamaAdapter, loaded
from aiserver.chat.adapters.openai import OpenAiAdapter

ADAPTERS: Mapping[str, Adapter] = {
    "openai": OpenAiAdapter(),
    "anthropic": AnthropicAdapter(),
    "google": GoogleAdapter(),
    "ollama": OllamaAdapter(),
}

# The dialects whose upstreams tell what they have in memory.
LOADED: Mapping[str, Loaded] = {"ollama": Loaded("/ps", loaded)}
