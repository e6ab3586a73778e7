"""Gemini's dialect, generateContent, to and from the normal form."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from aiserver.chat.adapters.adapter import Answered, Chat, Outgoing
from aiserver.chat.adapters.google_answers import (
    Candidate,
    Response,
    call_id,
    call_of,
    end_of,
    logprobs_of,
    read_response,
    signed,
    usage_of,
    wire_usage,
)
from aiserver.chat.adapters.google_errors import UNREADABLE, error_answer
from aiserver.chat.adapters.google_families import Family, family_of
from aiserver.chat.adapters.google_messages import Turns, members, members_list, unfit
from aiserver.chat.adapters.google_stream import GoogleReader
from aiserver.chat.failures import ErrorAnswer, broken
from aiserver.providers.endpoints import Endpoint

# Members that go into `generationConfig` as they are; the later name of two wins.
CARRIED = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
# Members that take another form, and those that steer the call.
SHAPED = frozenset(
    {
        "messages",
        "model",
        "reasoning_effort",
        "response_format",
        "stop",
        "stream",
        "stream_options",
        "tool_choice",
        "tools",
    }
)
# Members without which the answer is still the one that was asked for, as any unknown one.
DROPPED = frozenset(
    {
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
REFUSED = {
    "audio": "Gemini answers in text here; leave audio out.",
    "function_call": "Send tool_choice instead of function_call.",
    "functions": "Send tools instead of functions.",
    "logit_bias": "Gemini has no logit_bias; leave it out.",
    "modalities": 'Gemini answers in text here; leave modalities out or send ["text"].',
    "web_search_options": "Searching the web is not supported here; leave web_search_options out.",
}
# Values that say what is so anyway; some models refuse even those.
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "top_logprobs": 0,
}
MOST_STOPS = 5
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


class _Listed(msgspec.Struct, rename="camel"):
    name: str
    supported_generation_methods: list[str] = []


class _Listing(msgspec.Struct):
    models: list[_Listed] = []


class GoogleAdapter:
    """One for all upstreams of this dialect."""

    def request(self, chat: Chat, endpoint: Endpoint, *, model: str, provider: str) -> Outgoing:
        asked = {
            name: value
            for name, value in chat.members.items()
            if value is not None and not (name in NEUTRAL and value == NEUTRAL[name])
        }
        for name, advice in REFUSED.items():
            if name in asked:
                raise unfit(advice, name)
        model = model.removeprefix("models/")
        family = family_of(model)
        turns = Turns(signed=family.signed)
        turns.read(asked.get("messages"))
        body: dict[str, Any] = {"contents": turns.contents}
        if turns.system:
            body["systemInstruction"] = {"parts": turns.system}
        if config := _config(asked, family):
            body["generationConfig"] = config
        body |= _tools(asked)
        method = "streamGenerateContent?alt=sse" if chat.stream else "generateContent"
        path = f"/models/{quote(model, safe='')}:{method}"
        return Outgoing(path, msgspec.json.encode(body))

    def answer(self, body: bytes, chat: Chat, *, provider: str) -> Answered:
        response = read_response(body, provider)
        if not response.candidates:
            raise broken(provider, "sent an answer without candidates.")
        members: dict[str, Any] = {
            "id": response.response_id or chat.request_id,
            "object": "chat.completion",
            "created": chat.created,
            "model": response.model_version or chat.model,
        }
        counts = response.usage_metadata
        try:
            members["choices"] = _choices(response, members["id"], provider)
            if counts is not None:
                members["usage"] = wire_usage(counts)
            return Answered(msgspec.json.encode(members), usage_of(counts))
        except UNREADABLE as error:
            problem = "sent an answer that cannot be read."
            raise broken(provider, problem, detail=str(error)) from None

    def reader(self, chat: Chat, endpoint: Endpoint, *, provider: str) -> GoogleReader:
        return GoogleReader(chat, provider)

    def error(self, body: bytes, headers: Mapping[bytes, bytes]) -> ErrorAnswer:
        return error_answer(body, headers)

    def listing(self) -> str:
        # One page holds all; more than this is refused.
        return "/models?pageSize=1000"

    def models(self, body: bytes) -> list[str]:
        return [
            model.name.removeprefix("models/")
            for model in msgspec.json.decode(body, type=_Listing).models
            if "generateContent" in model.supported_generation_methods
        ]


def _config(asked: dict[str, Any], family: Family) -> dict[str, Any]:
    config = {theirs: asked[ours] for ours, theirs in CARRIED.items() if ours in asked}
    if stops := asked.get("stop"):
        config["stopSequences"] = [stops] if isinstance(stops, str) else stops
        if len(config["stopSequences"]) > MOST_STOPS:
            raise unfit(f"Gemini takes at most {MOST_STOPS} stop sequences; send fewer.", "stop")
    config |= _format(members(asked.get("response_format")))
    if thinking := _thinking(asked.get("reasoning_effort"), family):
        config["thinkingConfig"] = thinking
    return config


def _format(wanted: dict[str, Any]) -> dict[str, Any]:
    match wanted.get("type", "text"):
        case "text":
            return {}
        case "json_object":
            return {"responseMimeType": "application/json"}
        case "json_schema":
            schema = members(wanted.get("json_schema")).get("schema")
            return {"responseMimeType": "application/json", "responseJsonSchema": schema or {}}
        case other:
            raise unfit(
                f"response_format.type is {other!r}; send text, json_object or json_schema.",
                "response_format",
            )


def _thinking(effort: Any, family: Family) -> dict[str, Any]:
    if effort is None or not family.efforts:
        return {}
    settings = family.efforts.get(str(effort))
    if settings is None:
        raise unfit(
            f"reasoning_effort must be one of {', '.join(family.efforts)}.", "reasoning_effort"
        )
    return settings if effort == "none" else {**settings, "includeThoughts": True}


def _tools(asked: dict[str, Any]) -> dict[str, Any]:
    declared = [_declaration(tool) for tool in members_list(asked.get("tools"))]
    if not declared:
        return {}
    body: dict[str, Any] = {"tools": [{"functionDeclarations": declared}]}
    if (choice := asked.get("tool_choice")) is not None:
        body["toolConfig"] = {"functionCallingConfig": _calling(choice)}
    return body


def _declaration(tool: dict[str, Any]) -> dict[str, Any]:
    function = members(tool.get("function"))
    if tool.get("type", "function") != "function" or not function.get("name"):
        raise unfit(
            "Every tool must be of type function, with a function that has a name.", "tools"
        )
    declared = {"name": function["name"]}
    if function.get("description"):
        declared["description"] = function["description"]
    if function.get("parameters"):
        declared["parametersJsonSchema"] = function["parameters"]
    return declared


def _calling(choice: Any) -> dict[str, Any]:
    if isinstance(choice, str) and choice in _MODES:
        return {"mode": _MODES[choice]}
    named = members(members(choice).get("function")).get("name")
    if named:
        return {"mode": "ANY", "allowedFunctionNames": [named]}
    allowed = members(members(choice).get("allowed_tools"))
    names = [
        members(tool.get("function")).get("name") for tool in members_list(allowed.get("tools"))
    ]
    if names and all(names):
        mode = "ANY" if allowed.get("mode") == "required" else "VALIDATED"
        return {"mode": mode, "allowedFunctionNames": names}
    raise unfit(
        "tool_choice must be auto, none, required, or name a function of tools.", "tool_choice"
    )


def _choices(response: Response, id: str, provider: str) -> list[dict[str, Any]]:
    return [
        _choice(candidate, position if candidate.index is None else candidate.index, id, provider)
        for position, candidate in enumerate(response.candidates or ())
    ]


def _choice(candidate: Candidate, index: int, id: str, provider: str) -> dict[str, Any]:
    spoken = [part for part in candidate.parts if part.function_call is None]
    text = "".join(part.text or "" for part in spoken if not part.thought)
    thoughts = "".join(part.text or "" for part in spoken if part.thought)
    calls = [
        (part.function_call, part) for part in candidate.parts if part.function_call is not None
    ]
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = [
            call_of(call, part, id=call_id(id, index, position))
            for position, (call, part) in enumerate(calls)
        ]
    signatures = [part.thought_signature for part in spoken if part.thought_signature]
    message |= signed(signatures[-1] if signatures else None)
    said = bool(text or thoughts or calls)
    end = end_of(candidate, provider, said=said, called=bool(calls))
    logprobs = logprobs_of(candidate.logprobs_result)
    return {"index": index, "message": message, "finish_reason": end, "logprobs": logprobs}
