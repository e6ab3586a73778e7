"""Answers as bytes: JSON, JSON for a client that reads other dates, CSV."""

import csv
import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

Encode = Callable[[Any], bytes]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

to_json: Encode = msgspec.json.Encoder().encode


def to_php_json(answer: Any) -> bytes:
    """The PHP client reads only /Date(ms)/ and whole seconds; anything else spoils its answer."""
    plain = msgspec.to_builtins(answer, builtin_types=(datetime, timedelta), enc_hook=_ready)
    return msgspec.json.encode(_for_php(plain))


def _ready(value: Any) -> Any:
    """The answers of a batch of chats are JSON already."""
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    raise TypeError(f"{type(value).__name__} is no value of the wire")


def _for_php(value: Any) -> Any:
    match value:
        case datetime():
            return f"/Date({round((value.astimezone(UTC) - _EPOCH).total_seconds() * 1000)})/"
        case timedelta():
            return timedelta(seconds=round(value.total_seconds()))
        case dict():
            return {k: _for_php(v) for k, v in cast("dict[str, Any]", value).items()}
        case list():
            return [_for_php(item) for item in cast("list[Any]", value)]
        case _:
            return value


def to_csv(answer: Any) -> bytes:
    """The rows of `results`, or the answer as one row; nested values as JSON."""
    plain = msgspec.to_builtins(answer, enc_hook=_ready)
    rows = _rows(plain)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _rows(plain: Any) -> list[Mapping[str, Any]]:
    if isinstance(plain, dict):
        members = cast("dict[str, Any]", plain)
        results = members.get("results")
        rows = cast("list[Any]", results) if isinstance(results, list) else [members]
    else:
        rows = cast("list[Any]", plain) if isinstance(plain, list) else [plain]
    return [row if isinstance(row, dict) else {"value": row} for row in rows]


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    # A spreadsheet runs what begins like a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
