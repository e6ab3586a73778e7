"""How OpenAI-compatible upstreams differ from OpenAI's own form, as rows of data."""

import hashlib
import re
from pathlib import Path
from typing import Any, cast

import msgspec

from aiserver.chat.error_answers import error_answer as error_answer
from aiserver.chat.usage import usage_of as usage_of
from aiserver.contract.errors import InvalidRequest

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# What an upstream would fetch or read by itself.
_ELSEWHERE = ("http:", "https:", "ftp:", "file:")
# Members of a message that hold what the caller says; without them it would say something else.
_SUBSTANCE = ("images", "audio", "function_call")


class Refused(msgspec.Struct, frozen=True):
    """A member that cannot be carried, `unless` it has one of these values."""

    instead: str
    unless: list[Any] = []


class Flavour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of upstream; a default means that it does as OpenAI does.

    `members` and `messages` (by role) are all that it accepts. `short_ids`: ids of tool calls are
    nine letters and digits. `embedded_only`: media come as data: URLs. `chunked`: its messages may
    hold their content as a list of chunks.
    """

    renames: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    members: frozenset[str] | None = None
    messages: dict[str, frozenset[str]] = {}
    message_renames: dict[str, str] = {}
    roles: dict[str, str] = {}
    refused: dict[str, Refused] = {}
    short_ids: bool = False
    embedded_only: bool = False
    chunked: bool = False


PLAIN = Flavour()
_SHIPPED = Path(__file__).with_name("data") / "flavours.json"
_ROWS = msgspec.json.decode(_SHIPPED.read_bytes(), type=dict[str, Flavour])


def flavour_of(ai_type_id: str) -> Flavour:
    """The row of a kind of provider; PLAIN where there is none."""
    return _ROWS.get(ai_type_id, PLAIN)


def adjusted(members: dict[str, Any], flavour: Flavour) -> dict[str, Any]:
    """The members as this upstream takes them: the same dict, or a new one where they differ.

    Raises InvalidRequest for what it cannot carry.
    """
    if flavour is PLAIN:
        return members
    for name, rule in flavour.refused.items():
        value = members.get(name)
        if value is not None and value not in rule.unless:
            raise InvalidRequest(
                f"The provider of this model cannot carry `{name}`; {rule.instead}.", param=name
            )
    fitted = _fitted(members, flavour)
    messages: Any = members.get("messages")
    if isinstance(messages, list):
        changed = _messages(cast("list[Any]", messages), flavour)
        if changed is not messages:
            return {**fitted, "messages": changed}
    return fitted


def left_out(members: dict[str, Any], ai_type_id: str) -> tuple[str, ...]:
    """The members with a value that this kind of upstream has no place for."""
    flavour = flavour_of(ai_type_id)
    if flavour.members is None:
        return ()
    return tuple(
        name
        for name, value in members.items()
        if value is not None and flavour.renames.get(name, name) not in flavour.members
    )


def short_id(id: str) -> str:
    """Nine letters and digits for any id; the same ones for the same id."""
    if not id or _SHORT_ID.fullmatch(id):
        return id
    number = int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:8])
    digits: list[str] = []
    for _ in range(9):
        number, at = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[at])
    return "".join(digits)


def _fitted(members: dict[str, Any], flavour: Flavour) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    changed = False
    for name, value in members.items():
        # Absent and null mean the same, and strict upstreams refuse null where they name a type.
        if value is None:
            changed = True
            continue
        target = flavour.renames.get(name, name)
        taken = target != name and members.get(target) is not None
        if taken or (flavour.members is not None and target not in flavour.members):
            changed = True
            continue
        mapped: Any = value
        if isinstance(value, str) and target in flavour.values:
            mapped = flavour.values[target].get(value, value)
        changed = changed or target != name or mapped is not value
        fitted[target] = mapped
    return fitted if changed else members


def _messages(messages: list[Any], flavour: Flavour) -> list[Any]:
    fitted: list[Any] = []
    changed = False
    for message in messages:
        new: Any = message
        if isinstance(message, dict):
            new = _message(cast("dict[str, Any]", message), flavour)
        changed = changed or new is not message
        fitted.append(new)
    return fitted if changed else messages


def _message(message: dict[str, Any], flavour: Flavour) -> dict[str, Any]:
    content: Any = message.get("content")
    if flavour.embedded_only and isinstance(content, list):
        _check_media(cast("list[Any]", content))
    fitted = _accepted(message, flavour)
    role: Any = fitted.get("role")
    if isinstance(role, str) and role in flavour.roles:
        fitted = {**fitted, "role": flavour.roles[role]}
    if flavour.short_ids:
        fitted = _with_short_ids(fitted)
    return fitted


def _accepted(message: dict[str, Any], flavour: Flavour) -> dict[str, Any]:
    role: Any = message.get("role")
    allowed = flavour.messages.get(flavour.roles.get(role, role)) if isinstance(role, str) else None
    if allowed is None or message.keys() <= allowed:
        return message
    fitted: dict[str, Any] = {}
    for name, value in message.items():
        target = flavour.message_renames.get(name, name)
        if target in allowed:
            if target == name or target not in message:
                fitted[target] = value
        elif name in _SUBSTANCE and value:
            raise InvalidRequest(
                f"The provider of this model cannot carry `{name}` in a message; send its content "
                "as parts of type text or image_url.",
                param="messages",
            )
    return fitted


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    id: Any = message.get("tool_call_id")
    if isinstance(id, str) and (short := short_id(id)) != id:
        message = {**message, "tool_call_id": short}
    calls: Any = message.get("tool_calls")
    if isinstance(calls, list):
        fitted = [_with_short_id(call) for call in cast("list[Any]", calls)]
        if any(new is not old for new, old in zip(fitted, cast("list[Any]", calls), strict=True)):
            message = {**message, "tool_calls": fitted}
    return message


def _with_short_id(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    members = cast("dict[str, Any]", call)
    id: Any = members.get("id")
    if isinstance(id, str) and (short := short_id(id)) != id:
        return {**members, "id": short}
    return members


def _check_media(parts: list[Any]) -> None:
    """Raises InvalidRequest for media that the upstream would fetch by a name from the caller."""
    left: list[tuple[str, Any]] = [("", part) for part in parts]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value)
            # Of a part that is text, nothing is a reference.
            if members.get("type") != "text":
                left.extend(members.items())
        elif isinstance(value, list):
            left.extend((name, each) for each in cast("list[Any]", value))
        elif isinstance(value, str) and _refers(name, value):
            raise InvalidRequest(
                "This model runs on the server itself, which fetches nothing for a caller; send "
                "media as data: URLs.",
                param="messages",
            )


def _refers(name: str, value: str) -> bool:
    start = value.lstrip()[:6].casefold()
    if name == "url" or name.endswith("_url"):
        return not start.startswith("data:")
    return start.startswith(_ELSEWHERE)
