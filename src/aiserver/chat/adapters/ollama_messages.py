"""Turns the messages of the normal form into Ollama's: plain text, raw images, parsed arguments."""

import re
from typing import Any, cast

import msgspec

from aiserver.contract.errors import InvalidRequest

_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_ROLES = {"developer": "system", "function": "tool"}
Members = dict[str, Any]


def messages_of(messages: list[Any]) -> list[Members]:
    """Raises InvalidRequest for what Ollama cannot carry."""
    names: dict[str, str] = {}
    return [_message(_object(message, "A message"), names) for message in messages]


def raw_image(image: Any, *, param: str) -> str:
    """Base64 without its data: prefix. Raises InvalidRequest for an address."""
    if not isinstance(image, str) or not image:
        raise InvalidRequest("An image must be base64 text or a data: URI.", param=param)
    found = _DATA_URI.match(image)
    if found is not None:
        return image[found.end() :]
    if ":" in image[:32]:
        raise InvalidRequest(
            "This provider takes no image addresses, and nothing is fetched on its behalf; send "
            "the image itself as data:image/png;base64,...",
            param=param,
        )
    return image


def _message(message: Members, names: dict[str, str]) -> Members:
    role = str(message.get("role") or "user").lower()
    texts, images = _content(message.get("content"))
    images += [raw_image(image, param="messages") for image in message.get("images") or ()]
    given: Members = {"role": _ROLES.get(role, role), "content": "\n".join(texts)}
    if images:
        given["images"] = images
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        given["thinking"] = thinking
    if calls := message.get("tool_calls"):
        given["tool_calls"] = [_tool_call(call, names) for call in _list(calls, "tool_calls")]
    if given["role"] == "tool":
        given |= _answering(message, names)
    return given


def _answering(message: Members, names: dict[str, str]) -> Members:
    """Which call a tool's result answers; templates of models go by its name."""
    id, name = message.get("tool_call_id"), message.get("name") or message.get("tool_name")
    name = name or names.get(str(id))
    given = {"tool_name": name, "tool_call_id": id}
    return {member: value for member, value in given.items() if value}


def _content(content: Any) -> tuple[list[str], list[str]]:
    """(texts, images)"""
    texts: list[str] = []
    images: list[str] = []
    if isinstance(content, str):
        return [content], images
    for part in _list(content, "content"):
        members = _object(part, "A part of content")
        match members.get("type"):
            case "text" | "refusal" as kind:
                texts.append(str(members.get(kind) or ""))
            case "image_url":
                image = members.get("image_url")
                url = cast("Members", image).get("url") if isinstance(image, dict) else image
                images.append(raw_image(url, param="messages"))
            case kind:
                raise InvalidRequest(
                    "This provider speaks Ollama, which takes text and images, not parts of type "
                    f"{str(kind)[:50]!r}.",
                    param="messages",
                )
    return texts, images


def _tool_call(call: Any, names: dict[str, str]) -> Members:
    members = _object(call, "A tool call")
    function = _object(members.get("function") or {}, "The function of a tool call")
    name = str(function.get("name") or "")
    given: Members = {"function": {"name": name, "arguments": _parsed(function, name)}}
    if id := members.get("id"):
        names[str(id)] = name
        given["id"] = id
    return given


def _parsed(function: Members, name: str) -> Members:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments.strip() or "{}")
        except (msgspec.MsgspecError, RecursionError):
            arguments = ""
    return _object({} if arguments is None else arguments, f"What {name[:100]!r} was called with")


def _object(value: Any, what: str) -> Members:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} must be a JSON object.", param="messages")
    return cast("Members", value)


def _list(value: Any, what: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise InvalidRequest(f"'{what}' must be text or a list.", param="messages")
    return cast("list[Any]", value or [])
