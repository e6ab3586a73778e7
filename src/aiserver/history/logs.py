"""Single calls of a month, found by columns or by conditions on their wire members."""

# ruff: noqa: S608 - the SQL is of this file's own words and declared fields; values are parameters.

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.autoquery import Pairs, Query, asks_total, language_of, page_of
from aiserver.contract.conditions import Clause, Column
from aiserver.contract.responses import QueryResponse, ResponseStatus
from aiserver.history.archive import Month
from aiserver.history.dialect import Dialect
from aiserver.history.operations import RequestLog, RequestLogEntry
from aiserver.history.rows import COLUMNS, Detail
from aiserver.kit.db import Row
from aiserver.kit.ids import moment_of
from aiserver.kit.money import dollars

_FOUND = (
    f"SELECT {', '.join(f'calls.{name}' for name in COLUMNS)}, prompt, answer "
    "FROM calls LEFT JOIN contents ON call_id = calls.id WHERE calls.id IN "
)


class Found(NamedTuple):
    """One call as it was read: its columns by name, its details, what is kept of its bodies."""

    columns: dict[str, Any]
    detail: Detail
    prompt: str | None
    answer: str | None


class LogTable:
    """Answers queries over a month in the language of queries over rows in memory."""

    def __init__(self) -> None:
        self._language = language_of(RequestLog)
        columns = {column.member: column.sql for column in self._language.columns}
        self._times = (columns["id"], columns["date_time"])

    def select(self, dialect: Dialect, request: Query, conditions: Pairs) -> Clause:
        """The numbers of the calls that fit, in their order, as one column."""
        found, held = self._found(dialect, request, conditions), dialect.held(self._columns)
        order = self._sorted(request)
        if order.startswith("place ") or not _is_distinct(request):
            return Clause(f"{found.sql} ORDER BY {order}", found.values)
        # Of a group only its first call can say where it stands.
        sql = f"SELECT place FROM {held} WHERE place IN ({found.sql}) ORDER BY {order}"
        return Clause(sql, found.values)

    def page(self, month: Month, request: Query, conditions: Pairs) -> QueryResponse[RequestLog]:
        """Raises InvalidRequest, StorageError or DriverError."""
        found = self.select(month.dialect, request, conditions)
        skip, take = page_of(request)
        places = month.rows(f"{found.sql} LIMIT ? OFFSET ?", [*found.values, take, skip])
        rows = [log_of(call) for call in calls_of(month, [place for (place,) in places])]
        total = self._total(month, request, conditions) if asks_total(request) else 0
        return QueryResponse(
            offset=skip, total=total, results=self._language.answered(request, rows)
        )

    @property
    def _columns(self) -> Sequence[Column]:
        return self._language.columns

    def _found(self, dialect: Dialect, request: Query, conditions: Pairs) -> Clause:
        held = dialect.held(self._columns)
        found = self._language.select(request, conditions, held=held)
        return Clause(dialect.matched(found.sql, self._columns), found.values)

    def _total(self, month: Month, request: Query, conditions: Pairs) -> int:
        found = self._found(month.dialect, request, conditions)
        if not found.values and not request.fields and found.sql.endswith(" WHERE TRUE"):
            return total_of(month)
        [(total,)] = month.rows(f"SELECT count(*) FROM ({found.sql}) AS found", found.values)
        return total

    def _sorted(self, request: Query) -> str:
        if not request.order_by and not request.order_by_desc:
            return "place DESC"
        terms = self._language.order(request).split(", ")
        return ", ".join(map(self._term, terms))

    def _term(self, term: str) -> str:
        column, _, way = term.partition(" ")
        if not way:
            return term
        # Numbers grow with time, and only they are in order in the archive.
        if column in self._times:
            return f"place {way}"
        return f"{term} NULLS {'FIRST' if way == 'ASC' else 'LAST'}"


def total_of(month: Month) -> int:
    """All calls of the month, without looking through it."""
    [(total,)] = month.rows("SELECT CAST(coalesce(sum(calls), 0) AS bigint) FROM runs")
    return total


def calls_of(month: Month, ids: Sequence[int]) -> list[Found]:
    """In the order of their numbers as given."""
    if not ids:
        return []
    rows = month.rows(f"{_FOUND} ({', '.join('?' * len(ids))})", ids)
    found = {row[0]: _found(row) for row in rows}
    return [found[id] for id in ids if id in found]


def log_of(call: Found) -> RequestLog:
    columns, detail = call.columns, call.detail
    return RequestLog(
        id=columns["id"],
        trace_id=detail.request_id,
        operation_name=columns["operation"],
        date_time=moment_of(columns["at"]),
        status_code=columns["status"],
        status_description=columns["error"],
        http_method=detail.method,
        path_info=detail.path,
        request=columns["operation"],
        request_body=call.prompt,
        user_auth_id=_text(columns["key_id"]),
        ip_address=detail.address,
        response_body=call.answer,
        error=_problem(call),
        request_duration=timedelta(milliseconds=columns["duration_ms"]),
        meta=_facts(call),
    )


def entry_of(call: Found) -> RequestLogEntry:
    columns, detail = call.columns, call.detail
    duration = timedelta(milliseconds=columns["duration_ms"])
    return RequestLogEntry(
        id=columns["id"],
        trace_id=detail.request_id,
        operation_name=columns["operation"],
        date_time=moment_of(columns["at"]),
        status_code=columns["status"],
        status_description=columns["error"],
        http_method=detail.method,
        path_info=detail.path,
        request_body=call.prompt,
        user_auth_id=_text(columns["key_id"]),
        ip_address=detail.address,
        response_dto=call.answer,
        error_response=_problem(call),
        request_duration=msgspec.to_builtins(duration),
        meta=_facts(call),
    )


def _found(row: Row) -> Found:
    columns = dict(zip(COLUMNS, row, strict=False))
    detail = msgspec.json.decode(columns.pop("detail"), type=Detail)
    return Found(columns, detail, _readable(row[-2]), _readable(row[-1]))


def _problem(call: Found) -> ResponseStatus | None:
    code = call.columns["error"]
    if code is None:
        return None
    return ResponseStatus(error_code=code, message=call.detail.message or "")


def _facts(call: Found) -> dict[str, str]:
    """What is known; what was not reported is left out, which is not the same as 0."""
    columns, detail = call.columns, call.detail
    cost = columns["cost"]
    facts = {
        "provider": columns["provider"],
        "model": columns["model"],
        "asked": detail.asked,
        "keyId": columns["key_id"],
        "streamed": "true" if detail.streamed else "false",
        "promptTokens": columns["prompt_tokens"],
        "completionTokens": columns["completion_tokens"],
        "cachedTokens": detail.cached,
        "cacheWrittenTokens": detail.cache_written,
        "reasoningTokens": detail.reasoning,
        "cost": None if cost is None else f"{dollars(cost):f}",
        "attemptsOfUnknownCost": columns["lost"] or None,
        "firstTokenMs": detail.first_token_ms,
        "upstreamMs": detail.waited_ms or None,
        "tag": detail.tag,
        "refId": detail.ref_id,
        "attempts": msgspec.json.encode(detail.attempts).decode() if detail.attempts else None,
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _readable(content: bytes | str | None) -> str | None:
    # It may be cut in the middle of a character.
    return content.decode(errors="replace") if isinstance(content, bytes) else content


def _is_distinct(request: Query) -> bool:
    return (request.fields or "").strip().lower().startswith("distinct")
