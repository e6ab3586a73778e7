"""A chat completion's members as those of Anthropic's Messages API.

`stream`, `tools` and all else that has a twin is carried. What neither has a twin nor is named
here goes on as sent: it may be Anthropic's own, such as `top_k` or `thinking`, and the upstream
judges it.
"""

from typing import Any, cast

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.anthropic_messages import Json, conversation
from aiserver.chat.adapters.anthropic_models import Family, configure, family_of, think
from aiserver.contract.errors import InvalidRequest

CARRIED = frozenset(
    {"messages", "model", "stream", "max_tokens", "max_completion_tokens", "stop", "temperature"}
    | {"top_p", "user", "safety_identifier", "metadata", "service_tier", "response_format"}
    | {"reasoning_effort", "tools", "tool_choice", "parallel_tool_calls"}
)
# Hints: no answer is wrong without them.
DROPPED = frozenset(
    {"seed", "store", "prediction", "verbosity", "prompt_cache_key", "prompt_cache_options"}
    | {"prompt_cache_retention", "stream_options", "provider"}
)
# What would change the answer and cannot be had; these values of it mean nothing and are dropped.
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"], []),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
}
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_CHOICES = {"auto": "auto", "none": "none", "required": "any", "any": "any"}
# Anthropic's own OpenAI-compatible endpoint caps it alike.
_HOTTEST = 1
_JSON_ONLY = "Answer with one JSON object and nothing else: no words around it and no code fence."


def body_for(chat: Chat, *, model: str, provider: str) -> Json:
    """The body of the call. Raises InvalidRequest for what cannot be carried."""
    members = {name: value for name, value in chat.members.items() if value is not None}
    _refuse(members, provider)
    family = family_of(model)
    system, turns = conversation(members.get("messages"))
    known = CARRIED | DROPPED | REFUSED.keys()
    body = {name: value for name, value in members.items() if name not in known}
    body |= {"model": model, "max_tokens": _max_tokens(members, family), "messages": turns}
    if chat.stream:
        body["stream"] = True
    _sample(body, members)
    _tell_who(body, members, provider)
    _equip(body, members, turns)
    _shape(body, members, system)
    think(body, members.get("reasoning_effort"), family)
    if system:
        cached = any("cache_control" in block for block in system)
        body["system"] = system if cached else "\n\n".join(block["text"] for block in system)
    return body


def _refuse(members: Json, provider: str) -> None:
    for name, meaningless in REFUSED.items():
        if name in members and members[name] not in meaningless:
            raise InvalidRequest(
                f"Provider {provider} cannot carry {name}; leave it out or name another provider.",
                param=name,
            )


def _max_tokens(members: Json, family: Family) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        if name in members:
            if not isinstance(members[name], int):
                raise InvalidRequest(f"{name} must be a whole number.", param=name)
            return members[name]
    return family.max_tokens


def _sample(body: Json, members: Json) -> None:
    temperature = members.get("temperature")
    if temperature is not None:
        hot = isinstance(temperature, (int, float)) and temperature > _HOTTEST
        body["temperature"] = _HOTTEST if hot else temperature
    if "top_p" in members:
        body["top_p"] = members["top_p"]
    stop: Any = members.get("stop", [])
    stops = [stop] if isinstance(stop, str) else _list(stop, "stop")
    # Those of white space alone are refused upstream.
    if kept := [text for text in stops if not isinstance(text, str) or text.strip()]:
        body["stop_sequences"] = kept


def _tell_who(body: Json, members: Json, provider: str) -> None:
    labels: Any = members.get("metadata")
    named = cast("Json", labels).get("user_id") if isinstance(labels, dict) else None
    user = members.get("user") or members.get("safety_identifier") or named
    if user is not None and str(user).strip():
        body["metadata"] = {"user_id": str(user)}
    tier = members.get("service_tier")
    if tier is not None:
        if str(tier) not in _TIERS:
            raise InvalidRequest(
                f"Provider {provider} has no service_tier {str(tier)[:40]!r}; use auto or default.",
                param="service_tier",
            )
        body["service_tier"] = _TIERS[str(tier)]


def _equip(body: Json, members: Json, turns: list[Json]) -> None:
    """Tools and the choice among them; a history with calls needs its tools declared."""
    given = _list(members.get("tools", []), "tools")
    tools = [_tool(tool, index) for index, tool in enumerate(given)]
    choice = _choice(members.get("tool_choice"))
    if not tools:
        called = {
            block["name"]: None
            for turn in turns
            for block in turn["content"]
            if block["type"] == "tool_use"
        }
        tools = [{"name": name, "input_schema": {"type": "object"}} for name in called]
        choice = {"type": "none"}
    if not tools:
        return
    body["tools"] = tools
    if members.get("parallel_tool_calls") is False and choice != {"type": "none"}:
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        body["tool_choice"] = choice


def _tool(tool: Any, index: int) -> Json:
    members: Json = cast("Json", tool) if isinstance(tool, dict) else {}
    function: Any = members.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(
            f"tools[{index}]: only functions can be carried to this provider.", param="tools"
        )
    given = cast("Json", function)
    schema: Any = given.get("parameters")
    made: Json = {"name": given.get("name")}
    if given.get("description"):
        made["description"] = given["description"]
    made["input_schema"] = {
        "type": "object",
        **(cast("Json", schema) if isinstance(schema, dict) else {}),
    }
    if given.get("strict"):
        made["strict"] = True
    if mark := members.get("cache_control") or given.get("cache_control"):
        made["cache_control"] = mark
    return made


def _choice(choice: Any) -> Json | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    function: Any = cast("Json", choice).get("function") if isinstance(choice, dict) else None
    name = cast("Json", function).get("name") if isinstance(function, dict) else None
    if name is None:
        raise InvalidRequest(
            "tool_choice must be auto, none, required or the name of a function for this provider.",
            param="tool_choice",
        )
    return {"type": "tool", "name": name}


def _shape(body: Json, members: Json, system: list[Json]) -> None:
    """A schema binds the model; for any JSON object there is no mode, so that it is told."""
    wanted: Any = members.get("response_format")
    if wanted is None:
        return
    given = cast("Json", wanted) if isinstance(wanted, dict) else {}
    match given.get("type") or given.get("response_format"):
        case "text":
            pass
        case "json_object":
            system.append({"type": "text", "text": _JSON_ONLY})
        case "json_schema" if schema := _schema_of(given.get("json_schema")):
            configure(body, format={"type": "json_schema", "schema": _closed(schema)})
        case _:
            raise InvalidRequest(
                "response_format must be text, json_object or json_schema with its schema.",
                param="response_format",
            )


def _schema_of(named: Any) -> Json | None:
    schema: Any = cast("Json", named).get("schema") if isinstance(named, dict) else None
    return cast("Json", schema) if isinstance(schema, dict) else None


def _closed(schema: Any) -> Any:
    """Objects that say nothing of further members are closed, without which they are refused."""
    if isinstance(schema, list):
        return [_closed(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in cast("Json", schema).items()}
    if closed.get("type") in ("object", ["object", "null"]):
        closed.setdefault("additionalProperties", False)
    return closed


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a list.", param=name)
    return cast("list[Any]", value)
