"""Conditions on rows by naming convention: NameContains=x, PriorityFrom=2, Ids=1,2."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect

from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.scalars import mender
from aiserver.contract.spelling import fold, pascal, plain_type
from aiserver.contract.wording import plainly

Stored = str | int | float | None

_MOST_CONDITIONS = 100
_MOST_VALUES = 1000
_LONGEST_PATTERN = 200
_MOST_WILDCARDS = 10
_LARGEST = 2**63 - 1
_WILDCARD = re.compile(r"[\\%_]")
_TYPED = (
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.DecimalType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.TimeType,
    inspect.TimeDeltaType,
    inspect.EnumType,
    inspect.LiteralType,
    inspect.UUIDType,
)


class Clause(NamedTuple):
    """A piece of SQL with its parameters."""

    sql: str
    values: list[Stored]


class Column:
    """A declared member of the rows; SQL knows it by position, never by a name from outside."""

    def __init__(self, position: int, field: msgspec.structs.FieldInfo) -> None:
        info = inspect.type_info(field.type)
        self.sql = f"c{position}"
        self.member = field.name
        self.wire = field.encode_name
        self._type = field.type
        self._typed = isinstance(plain_type(info), _TYPED)
        self._mend = mender(info)

    def read(self, text: str) -> Stored:
        """The value of this column that the text stands for. Raises ValueError."""
        if not self._typed:
            return stored(text)
        value = text.strip() if self._mend is None else self._mend(text)
        return stored(msgspec.convert(value, self._type, strict=False))


def columns_of(row: type[msgspec.Struct]) -> list[Column]:
    return [Column(i, field) for i, field in enumerate(msgspec.structs.fields(row))]


def stored(value: Any) -> Stored:
    """A value as SQL compares it: moments as text of one zone, spans in seconds, nested as JSON."""
    if type(value) is str:
        # SQLite takes no lone surrogates, as a file name may have them.
        return value if value.isascii() else value.encode(errors="replace").decode()
    if type(value) is int:
        return value if -_LARGEST <= value <= _LARGEST else float("inf" if value > 0 else "-inf")
    if value is None or type(value) is bool or type(value) is float:
        return value
    if isinstance(value, list | dict | msgspec.Struct):
        return msgspec.json.encode(value).decode()
    return _stored_scalar(value)


def _stored_scalar(value: Any) -> Stored:
    match value:
        case datetime():
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            with suppress(OverflowError):  # the first and last hours that there are
                moment = moment.astimezone(UTC)
            return moment.isoformat(timespec="microseconds")
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return float(value)
        case msgspec.UNSET:
            return None
        case _:
            plain = msgspec.to_builtins(value)
            return stored(plain if isinstance(plain, str | int | float | list) else str(plain))


Form = Callable[[Column, str], Clause]


def _compared(operator: str) -> Form:
    return lambda column, text: Clause(f"{column.sql} {operator} ?", [column.read(text)])


def _matching(pattern: Callable[[str], str]) -> Form:
    def form(column: Column, text: str) -> Clause:
        if len(text) > _LONGEST_PATTERN:
            raise ValueError(f"Expected at most {_LONGEST_PATTERN} characters")
        return Clause(f"{column.sql} LIKE ? ESCAPE '\\'", [stored(pattern(text))])

    return form


def _literally(text: str) -> str:
    return _WILDCARD.sub(r"\\\g<0>", text)


def _with_wildcards(text: str) -> str:
    if text.count("%") > _MOST_WILDCARDS:
        # Each one multiplies the ways to fit a row, and so the time.
        raise ValueError(f"Expected at most {_MOST_WILDCARDS} wildcards")
    return text.replace("\\", "\\\\")


def _among(column: Column, text: str) -> Clause:
    return one_of(column, [column.read(item) for item in _items(text)])


def _between(column: Column, text: str) -> Clause:
    values = [column.read(item) for item in _items(text)]
    if len(values) != 2:
        raise ValueError("Expected two values: lowest,highest")
    return Clause(f"{column.sql} BETWEEN ? AND ?", values)


def _is_null(column: Column, text: str) -> Clause:
    return Clause(f"{column.sql} IS NULL", [])


def _is_not_null(column: Column, text: str) -> Clause:
    return Clause(f"{column.sql} IS NOT NULL", [])


def one_of(column: Column, values: list[Stored]) -> Clause:
    return Clause(f"{column.sql} IN ({', '.join('?' * len(values))})", values)


# What a name says of the field in it; the first that fits a column counts.
_FORMS: tuple[tuple[str, Form], ...] = (
    ("{}", _compared("=")),
    ("{}s {}in", _among),
    ("{}greaterthanorequalto {}from since{} min{} {}> >{}", _compared(">=")),
    ("{}greaterthan {}above {}over {}after {}olderthan", _compared(">")),
    ("{}lessthanorequalto to{} until{} max{} {}<", _compared("<=")),
    ("{}lessthan {}below {}under {}before {}youngerthan <{}", _compared("<")),
    ("{}notequalto {}! <>{}", _compared("<>")),
    ("{}contains", _matching(lambda text: f"%{_literally(text)}%")),
    ("{}startswith", _matching(lambda text: f"{_literally(text)}%")),
    ("{}endswith", _matching(lambda text: f"%{_literally(text)}")),
    ("{}like", _matching(_with_wildcards)),
    ("{}between", _between),
    ("{}isnull", _is_null),
    ("{}isnotnull", _is_not_null),
)
_WITHOUT_VALUE = (_is_null, _is_not_null)


class Conditions:
    """Everything that the columns of a table can be asked for."""

    def __init__(self, columns: Iterable[Column]) -> None:
        named = [(fold(column.wire), column) for column in columns]
        self._known: dict[str, tuple[Column, Form]] = {}
        for spellings, form in _FORMS:
            for spelling in spellings.split():
                for name, column in named:
                    self._known.setdefault(spelling.format(name), (column, form))

    def clauses(self, pairs: Iterable[tuple[str, str]]) -> list[Clause]:
        """Names of no field and empty values are ignored. Raises InvalidRequest."""
        clauses: list[Clause] = []
        errors: dict[str, FieldError] = {}
        for name, text in pairs:
            column, form = self._known.get(fold(name), (None, _is_null))
            if column is None or (text == "" and form not in _WITHOUT_VALUE):
                continue
            try:
                clauses.append(form(column, text))
            except (ValueError, OverflowError) as error:
                errors.setdefault(column.wire, _invalid(column, str(error)))
            if len(clauses) > _MOST_CONDITIONS:
                raise InvalidRequest(f"A query takes at most {_MOST_CONDITIONS} conditions.")
        if errors:
            raise InvalidRequest.of(list(errors.values()), param=next(iter(errors)))
        return clauses


def together(clauses: Iterable[Clause]) -> Clause:
    """All of them at once. Raises InvalidRequest."""
    held = list(clauses)
    values = [value for clause in held for value in clause.values]
    if len(values) > _MOST_VALUES:
        raise InvalidRequest(f"A query compares with at most {_MOST_VALUES} values.")
    return Clause(" AND ".join(clause.sql for clause in held) or "TRUE", values)


def _items(text: str) -> list[str]:
    """The values of `a,b`, `[a,b]` or a JSON list."""
    if text.startswith("["):
        try:
            given = cast("list[Any]", msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError):
            text = text.strip("[]")
        else:
            return [i if isinstance(i, str) else msgspec.json.encode(i).decode() for i in given]
    return [item.strip() for item in text.split(",")]


def _invalid(column: Column, problem: str) -> FieldError:
    field = pascal(column.wire)
    message = f"'{field}' is not valid: {plainly(problem).text}."
    return FieldError("RequestBindingException", field, message)
