"""Looks calls up by the filters of the request log, through as many months as a page needs."""

# ruff: noqa: S608 - the SQL is of this file's own words; values are parameters.

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from aiserver.contract.autoquery import MOST_ROWS
from aiserver.contract.conditions import Clause, stored, together
from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.scalars import read_duration
from aiserver.history.archive import Month, Shelf
from aiserver.history.logs import Found, calls_of, total_of
from aiserver.history.operations import RequestLogs
from aiserver.kit.ids import first_of

_PAGE = 100
_FURTHEST = 2**31 - 1
_LONGEST_TIME = timedelta(days=36_500)
_ORDERS = {
    "id": "id",
    "datetime": "id",
    "operationname": "operation",
    "statuscode": "status",
    "requestduration": "duration_ms",
    "userauthid": "key_id",
}
_EVERYTHING = together([]).sql
_NOTHING = Clause("FALSE", [])
_ANSWERED = "EXISTS (SELECT 1 FROM contents WHERE call_id = id AND answer IS NOT NULL)"


class Page(NamedTuple):
    calls: list[Found]
    total: int


class Search(NamedTuple):
    """Which calls, in which order; `month` None is every month."""

    fits: Clause
    column: str
    descending: bool
    skip: int
    take: int
    month: str | None


def search_of(
    request: RequestLogs, *, now: datetime, this_month: str, key_of: Callable[[str], int | None]
) -> Search:
    """Raises InvalidRequest."""
    name = (request.order_by or "-id").split(",")[0].strip()
    column = _ORDERS.get(name.removeprefix("-").lower(), "id")
    month = request.month.strftime("%Y-%m") if request.month else None
    return Search(
        fits=together([*_texts(request, key_of), *_numbers(request), *_times(request, now)]),
        column=column,
        descending=name.startswith("-"),
        skip=min(max(request.skip or 0, 0), _FURTHEST),
        take=_PAGE if request.take is None else min(max(request.take, 0), MOST_ROWS),
        month=month if month or column == "id" else this_month,
    )


def find(shelf: Shelf, search: Search) -> Page:
    """One page. Raises StorageError or DriverError."""
    months = shelf.months() if search.month is None else [search.month]
    calls: list[Found] = []
    skip, total = search.skip, 0
    for month in reversed(months) if search.descending else months:
        if calls and len(calls) >= search.take and search.fits.sql != _EVERYTHING:
            break
        opened = shelf.open(month)
        if opened is None:
            continue
        count = _count(opened, search.fits)
        total += count
        if skip >= count:
            skip -= count
        elif len(calls) < search.take:
            calls += _calls(opened, search, skip=skip, take=search.take - len(calls))
            skip = 0
    return Page(calls, total)


def page_sql(search: Search) -> str:
    """The numbers of one page of calls; its last two parameters are how many, and from where."""
    way = "DESC" if search.descending else "ASC"
    order = f"id {way}"
    if search.column != "id":
        nulls = "LAST" if search.descending else "FIRST"
        order = f"{search.column} {way} NULLS {nulls}, {order}"
    return f"SELECT id FROM calls WHERE {search.fits.sql} ORDER BY {order} LIMIT ? OFFSET ?"


def _calls(month: Month, search: Search, *, skip: int, take: int) -> list[Found]:
    places = month.rows(page_sql(search), [*search.fits.values, take, skip])
    return calls_of(month, [id for (id,) in places])


def _count(month: Month, fits: Clause) -> int:
    if fits.sql == _EVERYTHING:
        return total_of(month)
    [(count,)] = month.rows(f"SELECT count(*) FROM calls WHERE {fits.sql}", fits.values)
    return count


def _texts(request: RequestLogs, key_of: Callable[[str], int | None]) -> list[Clause]:
    clauses = [
        Clause(sql, [stored(text)])
        for sql, text in (
            ("lower(operation) = lower(?)", request.operation_name),
            ("detail ->> 'address' = ?", request.ip_address),
            ("detail ->> 'path' = ?", request.path_info),
            ("CAST(key_id AS TEXT) = ?", request.user_auth_id),
        )
        if text
    ]
    if request.bearer_token:
        key = key_of(request.bearer_token)
        clauses.append(_NOTHING if key is None else Clause("key_id = ?", [key]))
    if request.forwarded_for or request.session_id or request.referer:
        # None of these is kept, so no call is known to have it.
        clauses.append(_NOTHING)
    return clauses


def _numbers(request: RequestLogs) -> list[Clause]:
    clauses: list[Clause] = []
    if request.ids:
        marks = ", ".join("?" * len(request.ids))
        clauses.append(Clause(f"id IN ({marks})", [stored(id) for id in request.ids]))
    if request.before_id is not None:
        clauses.append(Clause("id <= ?", [stored(request.before_id)]))
    if request.after_id is not None:
        clauses.append(Clause("id > ?", [stored(request.after_id)]))
    if request.with_errors is not None:
        clauses.append(Clause("status >= 400" if request.with_errors else "status < 400", []))
    if request.has_response is not None:
        clauses.append(Clause(_ANSWERED if request.has_response else f"NOT {_ANSWERED}", []))
    return clauses


def _times(request: RequestLogs, now: datetime) -> list[Clause]:
    clauses: list[Clause] = []
    if request.before_secs is not None:
        clauses.append(Clause("id >= ?", [first_of(now - _span(request.before_secs))]))
    if request.after_secs is not None:
        clauses.append(Clause("id < ?", [first_of(now - _span(request.after_secs))]))
    for field, text, sign in (
        ("DurationLongerThan", request.duration_longer_than, ">"),
        ("DurationLessThan", request.duration_less_than, "<"),
    ):
        if text:
            clauses.append(Clause(f"duration_ms {sign} ?", [_milliseconds(field, text)]))
    return clauses


def _span(seconds: int) -> timedelta:
    return min(timedelta(seconds=min(max(seconds, 0), 2**31)), _LONGEST_TIME)


def _milliseconds(field: str, text: str) -> float:
    try:
        span = msgspec.convert(read_duration(text.strip()), timedelta, strict=False)
    except (ValueError, OverflowError):
        message = f"'{field}' is not valid: expected a time such as 00:00:01.5 or PT1.5S."
        error = FieldError("RequestBindingException", field, message)
        raise InvalidRequest.of([error], param=field) from None
    return span / timedelta(milliseconds=1)
