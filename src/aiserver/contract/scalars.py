"""Reads dates, durations and enums in every form that typed clients write them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, cast

from msgspec import inspect

from aiserver.contract.spelling import fold

Mend = Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS = re.compile(r"/Date\((-?\d{1,15})(?:([+-])(\d\d)(\d\d))?\)/")
_CLOCK = re.compile(r"(-)?(?:(\d{1,7})\.)?(\d{1,7}):(\d\d)(?::(\d\d)(?:\.(\d{1,7}))?)?")
_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")


def read_datetime(text: str) -> datetime:
    """ISO 8601 with any fraction, a bare date, or /Date(ms)/; without an offset it is UTC."""
    found = _MILLISECONDS.fullmatch(text)
    if found is not None:
        # The offset of this form says where it was written; the milliseconds are UTC already.
        return _EPOCH + timedelta(milliseconds=int(found[1]))
    moment = datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", text))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        # Of the first or last hours that there are: the nearest moment of UTC.
        nearest = datetime.min if moment.year == 1 else datetime.max
        return nearest.replace(tzinfo=UTC)


def read_duration(text: str) -> timedelta | str:
    """`[d.]hh:mm[:ss[.f]]`; what is not of this form is left to be read as `PT1M30S`."""
    found = _CLOCK.fullmatch(text)
    if found is None:
        return text
    fraction = (found[6] or "").ljust(6, "0")[:6]
    span = timedelta(
        days=int(found[2] or 0),
        hours=int(found[3]),
        minutes=int(found[4]),
        seconds=int(found[5] or 0),
        microseconds=int(fraction),
    )
    return -span if found[1] else span


def enum_reader(kind: type[Enum]) -> Mend:
    """By wire value, member name, `Kind.MEMBER` or number; case and underscores do not matter."""
    known: dict[str, Enum] = {}
    for number, member in enumerate(kind):
        position = member.value if isinstance(member.value, int) else number
        known[str(position)] = member
    for member in kind:
        known[fold(member.name)] = member
        known[fold(str(member.value))] = member
    prefix = fold(kind.__name__) + "."

    def read(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int):
            return value
        return known.get(fold(str(value)).removeprefix(prefix), value)

    return read


def mender(info: inspect.Type) -> Mend | None:
    """What turns the forms above into values that convert, or None where none can occur."""
    return _mender(info, {}) if _can_occur(info, set()) else None


def _can_occur(info: inspect.Type, seen: set[type]) -> bool:
    """Whether anything that `_mender` mends can occur in this type or below it."""
    match info:
        case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
            return _can_occur(inner, seen)
        case inspect.StructType(cls=kind, fields=fields):
            if kind in seen:
                return False
            seen.add(kind)
            return any(_can_occur(field.type, seen) for field in fields)
        case inspect.UnionType(types=types):
            return any(_can_occur(each, seen) for each in types)
        case _:
            return isinstance(info, inspect.DateTimeType | inspect.TimeDeltaType | inspect.EnumType)


def _mender(info: inspect.Type, known: dict[type, "_Members"]) -> Mend | None:
    match info:
        case inspect.Metadata(type=inner):
            return _mender(inner, known)
        case inspect.StructType(cls=kind, fields=fields):
            if kind not in known:
                known[kind] = _Members(fields, known)
            return known[kind]
        case inspect.DateTimeType():
            return _of_text(read_datetime)
        case inspect.TimeDeltaType():
            return _of_text(read_duration)
        case inspect.EnumType(cls=kind):
            return enum_reader(kind)
        case inspect.ListType(item_type=item):
            return _each(_mender(item, known))
        case inspect.UnionType(types=types):
            mends = [mend for each in types if (mend := _mender(each, known)) is not None]
            return mends[0] if len(mends) == 1 else None
        case _:
            return None


class _Members:
    """Mends the members of a Struct that need it, in a copy: what was sent stays as it was."""

    def __init__(self, fields: tuple[inspect.Field, ...], known: dict[type, "_Members"]) -> None:
        self._fields = fields
        self._known = known
        self._mends: dict[str, Mend] | None = None

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if self._mends is None:
            # On first use, because a type may hold itself.
            mends = ((f.encode_name, _mender(f.type, self._known)) for f in self._fields)
            self._mends = {name: mend for name, mend in mends if mend is not None}
        members = cast("dict[str, Any]", value)
        found = {n: mend(members[n]) for n, mend in self._mends.items() if n in members}
        return {**members, **found} if found else members


def _of_text(read: Callable[[str], Any]) -> Mend:
    def mend(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return read(value.strip())
        except (ValueError, OverflowError):
            # Left as it is, so that the conversion names the field and what it should hold.
            return value

    return mend


def _each(mend: Mend | None) -> Mend | None:
    if mend is None:
        return None

    def mend_all(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [mend(item) for item in cast("list[Any]", value)]

    return mend_all
