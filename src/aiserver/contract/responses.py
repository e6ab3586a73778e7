"""Answer types that many operations share."""

from typing import Any, Generic, TypeVar

import msgspec

from aiserver.contract.errors import FieldError

T = TypeVar("T")


class Wire(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A type on the wire: camelCase members, those that are not set left out."""


class ResponseStatus(Wire, kw_only=True):
    error_code: str
    message: str
    errors: list[FieldError] | None = None
    meta: dict[str, str] | None = None


class IdResponse(Wire, kw_only=True):
    """`id` is text on the wire, whatever it is in the store."""

    id: str
    response_status: ResponseStatus | None = None


class EmptyResponse(Wire, kw_only=True):
    response_status: ResponseStatus | None = None


class QueryResponse(Wire, Generic[T], kw_only=True, omit_defaults=False):
    """One page of rows; `total` is 0 unless it was asked for."""

    offset: int = 0
    total: int = 0
    results: list[T]
    meta: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


def page(rows: list[T], *, skip: int | None, take: int | None) -> list[T]:
    """At most 1000 rows, from `skip` on; limits out of range are capped."""
    start = max(skip or 0, 0)
    count = 1000 if take is None else min(max(take, 0), 1000)
    return rows[start : start + count]


def ordered(rows: list[T], order_by: str | None, key: Any) -> list[T]:
    """Sorted by a comma list of members, `-name` descending; unknown names are ignored."""
    for name in reversed((order_by or "").split(",")):
        member = name.strip().lstrip("-")
        if member:
            rows = sorted(
                rows, key=lambda row: key(row, member), reverse=name.strip().startswith("-")
            )
    return rows
