"""Brings declared members to their wire spelling, along the declared type and nowhere else."""

from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import inspect

Respell = Callable[[Any], None]


def fold(name: str) -> str:
    """The same for every spelling of a member: max_tokens, maxTokens, MaxTokens."""
    return name.replace("_", "").lower()


def pascal(name: str) -> str:
    """As errors name a field: MaxTokens."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def plain_type(info: inspect.Type) -> inspect.Type:
    """The type itself, without Optional and annotations."""
    match info:
        case inspect.Metadata(type=inner):
            return plain_type(inner)
        case inspect.UnionType(types=types):
            rest = [t for t in types if not isinstance(t, inspect.NoneType)]
            return plain_type(rest[0]) if len(rest) == 1 else info
        case _:
            return info


class Spelling:
    """The wire names of a Struct's members, and what lies below each."""

    def __init__(self, fields: tuple[inspect.Field, ...]) -> None:
        self._names = {field.encode_name for field in fields}
        self._folded = {fold(field.encode_name): field.encode_name for field in fields}
        self._folded.update((fold(field.name), field.encode_name) for field in fields)
        self._below: list[tuple[str, Respell]] = []

    def wire_name(self, name: str) -> str | None:
        """The declared member meant by this name, if there is one."""
        return name if name in self._names else self._folded.get(fold(name))

    def respell(self, members: Any) -> None:
        """Renames in place; an exact name wins over another spelling of the same member.

        What is no object is left for the conversion to refuse.
        """
        if not isinstance(members, dict):
            return
        given = cast("dict[str, Any]", members)
        if not given.keys() <= self._names:
            self._rename(given)
        for name, below in self._below:
            value = given.get(name)
            if value is not None:
                below(value)

    def look_below(self, fields: tuple[inspect.Field, ...], known: dict[type, "Spelling"]) -> None:
        """The rest of the making, apart because a type may hold itself."""
        walks = ((field.encode_name, _walk(field.type, known)) for field in fields)
        self._below = [(name, walk) for name, walk in walks if walk is not None]

    def _rename(self, members: dict[str, Any]) -> None:
        for name in [name for name in members if name not in self._names]:
            wire = self._folded.get(fold(name))
            if wire is not None:
                value = members.pop(name)
                if members.get(wire) is None:
                    members[wire] = value


def spelling_of(request: type[msgspec.Struct]) -> Spelling:
    """The spelling of a Struct and of everything declared below it."""
    return _struct(cast(inspect.StructType, inspect.type_info(request)), {})


def _struct(info: inspect.StructType, known: dict[type, Spelling]) -> Spelling:
    if info.cls not in known:
        known[info.cls] = Spelling(info.fields)
        known[info.cls].look_below(info.fields, known)
    return known[info.cls]


def _walk(info: inspect.Type, known: dict[type, Spelling]) -> Respell | None:
    """How to respell a value of this type, or None when nothing below it is declared."""
    match info:
        case inspect.Metadata(type=inner):
            return _walk(inner, known)
        case inspect.StructType():
            return _struct(info, known).respell
        case inspect.ListType(item_type=item):
            return _on_items(_walk(item, known))
        case inspect.DictType(value_type=value):
            return _on_values(_walk(value, known))
        case inspect.UnionType(types=types):
            return _on_any([walk for t in types if (walk := _walk(t, known)) is not None])
        case _:
            return None


def _on_items(below: Respell | None) -> Respell | None:
    if below is None:
        return None

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for item in cast("list[Any]", value):
                below(item)

    return walk


def _on_values(below: Respell | None) -> Respell | None:
    if below is None:
        return None

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for item in cast("dict[str, Any]", value).values():
                below(item)

    return walk


def _on_any(walks: list[Respell]) -> Respell | None:
    if len(walks) < 2:
        return walks[0] if walks else None

    def walk(value: Any) -> None:
        for each in walks:
            each(value)

    return walk
