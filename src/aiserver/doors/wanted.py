"""What the hot lane must know of a chat; a body that says anything else is the slow path's."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

_ABSENT = Raw(b"null")


class _Spelled(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Members spelled as OpenAI spells them: another spelling would have to be mended."""


class _Message(_Spelled):
    role: str
    content: Raw = _ABSENT
    name: str | None = None
    tool_calls: Raw = _ABSENT
    tool_call_id: str | None = None
    reasoning_content: Raw = _ABSENT
    refusal: Raw = _ABSENT


class _Function(_Spelled):
    name: str
    description: str | None = None
    parameters: Raw = _ABSENT
    strict: bool | None = None


class _Tool(_Spelled):
    type: str
    function: _Function


class _ResponseFormat(_Spelled):
    type: str
    json_schema: Raw = _ABSENT


class Wanted(_Spelled):
    """A chat that goes on as it came; the slow path would not have changed a member of it."""

    model: Annotated[str, Meta(min_length=1, max_length=300)]
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[_Tool] | None = None
    response_format: _ResponseFormat | None = None
    logit_bias: dict[str, Any] | None = None
    user: str | None = None
    tool_choice: Raw = _ABSENT
    max_tokens: Raw = _ABSENT
    max_completion_tokens: Raw = _ABSENT
    temperature: Raw = _ABSENT
    top_p: Raw = _ABSENT
    n: Raw = _ABSENT
    stop: Raw = _ABSENT
    seed: Raw = _ABSENT
    frequency_penalty: Raw = _ABSENT
    presence_penalty: Raw = _ABSENT
    logprobs: Raw = _ABSENT
    top_logprobs: Raw = _ABSENT
    parallel_tool_calls: Raw = _ABSENT
    reasoning_effort: Raw = _ABSENT
    verbosity: Raw = _ABSENT
    metadata: Raw = _ABSENT
    store: Raw = _ABSENT
    service_tier: Raw = _ABSENT
    prompt_cache_key: Raw = _ABSENT
    safety_identifier: Raw = _ABSENT
    modalities: Raw = _ABSENT
    prediction: Raw = _ABSENT
    top_k: Raw = _ABSENT
    min_p: Raw = _ABSENT
    repetition_penalty: Raw = _ABSENT

    @property
    def whole(self) -> bool:
        """Whether it holds every member as it came, in whatever order members were sent."""
        return self.tools is None and self.response_format is None and self.logit_bias is None


read_wanted = msgspec.json.Decoder(Wanted).decode
# What is written holds each member once, also one that came twice.
write_wanted = msgspec.json.Encoder().encode
# A member that comes twice would be one thing here and another upstream: it goes on once.
read_members = msgspec.json.Decoder(dict[str, Raw]).decode
