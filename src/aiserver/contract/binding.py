"""Binds what a caller sent to an operation's type: respell, convert, one error per field."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import inspect

from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.scalars import mender
from aiserver.contract.spelling import pascal, plain_type, spelling_of
from aiserver.contract.wording import plainly

T = TypeVar("T", bound=msgspec.Struct)
Pairs = Iterable[tuple[str, str]]

_LENGTH = re.compile(r"of length (>=|<=) (\d+)")
_BOUND = re.compile(r"(>=|<=|>|<) (-?[\d.]+)")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PLAIN_VALUE = re.compile(r"-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?|true|false")
_CODES = {
    ">=": "GreaterThanOrEqual",
    "<=": "LessThanOrEqual",
    ">": "GreaterThan",
    "<": "LessThan",
}


class Binder(Generic[T]):
    """Compiled once per request type: take it from `binder_of`."""

    def __init__(self, request: type[T]) -> None:
        self._request = request
        self._spelling = spelling_of(request)
        self._fields = msgspec.structs.fields(request)
        self._required = [field.encode_name for field in self._fields if field.required]
        info = cast(inspect.StructType, inspect.type_info(request))
        self._infos = {field.encode_name: plain_type(field.type) for field in info.fields}
        mends = ((field.encode_name, mender(field.type)) for field in info.fields)
        self._mends = {name: mend for name, mend in mends if mend is not None}

    def wire_name(self, name: str) -> str | None:
        return self._spelling.wire_name(name)

    def bind(self, members: dict[str, Any], pairs: Pairs = ()) -> T:
        """The request; `members` is respelled in place. Raises InvalidRequest.

        `pairs` (path variables, query, form) fill what the members leave empty; unknown names and
        empty values are ignored.
        """
        self._spelling.respell(members)
        for name, text in pairs:
            wire = self._spelling.wire_name(name)
            if wire is not None and text != "" and members.get(wire) is None:
                members[wire] = _from_text(text, self._infos[wire])
        return self._convert(members)

    def _convert(self, members: dict[str, Any]) -> T:
        for name in self._required:
            if not members.get(name):
                return self._by_field(members)
        given = {name: value for name, value in members.items() if value is not None}
        for name, mend in self._mends.items():
            if name in given:
                given[name] = mend(given[name])
        try:
            return msgspec.convert(given, self._request, strict=False)
        except msgspec.ValidationError:
            # Slower, and it names every field that is wrong.
            return self._by_field(members)

    def _by_field(self, members: dict[str, Any]) -> T:
        values: dict[str, Any] = {}
        errors: dict[str, FieldError] = {}
        for field in self._fields:
            value = members.get(field.encode_name)
            if value is None or (value == "" and field.required):
                if field.required:
                    errors[field.encode_name] = _missing(field)
                continue
            mend = self._mends.get(field.encode_name)
            if mend is not None:
                value = mend(value)
            try:
                values[field.name] = msgspec.convert(value, field.type, strict=False)
            except msgspec.ValidationError as error:
                errors[field.encode_name] = _invalid(field, str(error))
        if errors:
            raise InvalidRequest.of(list(errors.values()), param=next(iter(errors)))
        return self._request(**values)


@cache
def binder_of(request: type[T]) -> Binder[T]:
    """The only one of this type."""
    return Binder(request)


def _from_text(text: str, info: inspect.Type) -> Any:
    """The value that text of a query or form stands for; lists may be `a,b`, `[a,b]` or JSON."""
    if isinstance(info, (inspect.StrType, inspect.EnumType)):
        return text
    if isinstance(info, inspect.AnyType) and _PLAIN_VALUE.fullmatch(text):
        return msgspec.json.decode(text)
    if text[0] in "[{":
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            if isinstance(info, inspect.ListType) and text[0] == "[":
                return _comma_list(text.strip("[]"))
    if isinstance(info, inspect.ListType):
        return _comma_list(text)
    return text


def _comma_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")] if text else []


def _title(name: str) -> str:
    return _WORDS.sub(" ", pascal(name))


def _missing(field: msgspec.structs.FieldInfo) -> FieldError:
    name = field.encode_name
    code = "NotEmpty" if _can_be_empty(field.type) else "NotNull"
    return FieldError(code, pascal(name), f"'{_title(name)}' must not be empty.")


def _can_be_empty(declared: Any) -> bool:
    return isinstance(plain_type(inspect.type_info(declared)), inspect.StrType | inspect.ListType)


def _invalid(field: msgspec.structs.FieldInfo, problem: str) -> FieldError:
    name = field.encode_name
    wrong, place = plainly(problem)
    if _LENGTH.search(wrong):
        code = "NotEmpty" if "length >= 1" in wrong else "Length"
    elif bound := _BOUND.search(wrong):
        code = _CODES[bound[1]]
    else:
        code = "RequestBindingException"
    known = "" if place else _members(field.type)
    message = f"'{_title(name)}' is not valid: {wrong}{known}."
    return FieldError(code, f"{pascal(name)}{place}", message)


def _members(declared: Any) -> str:
    """What may be said instead, where that is a list."""
    info = plain_type(inspect.type_info(declared))
    if not isinstance(info, inspect.EnumType):
        return ""
    return f"; known are {', '.join(str(member.value) for member in info.cls)}"
