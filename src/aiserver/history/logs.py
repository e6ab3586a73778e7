"""Single calls of a month, found by columns or by conditions on their wire members."""

# ruff: noqa: S608 - the SQL is of this file's own words and declared fields; values are parameters.

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec

from aiserver.contract.autoquery import Pairs, Query, asks_total, language_of, page_of
from aiserver.contract.conditions import Clause
from aiserver.contract.responses import QueryResponse, ResponseStatus
from aiserver.history.operations import RequestLog, RequestLogEntry
from aiserver.history.rows import COLUMNS, Detail
from aiserver.kit.db import Raw, Row
from aiserver.kit.ids import moment_of
from aiserver.kit.money import dollars

# How SQL says what a member of RequestLog is; what is never kept is NULL.
_MEMBERS = {
    "id": "id",
    "trace_id": "detail ->> 'request_id'",
    "operation_name": "operation",
    "date_time": "strftime('%Y-%m-%dT%H:%M:%f', at / 1000.0, 'unixepoch') || '000+00:00'",
    "status_code": "status",
    "status_description": "error",
    "http_method": "detail ->> 'method'",
    "path_info": "detail ->> 'path'",
    "request": "operation",
    "request_body": "(SELECT CAST(prompt AS TEXT) FROM contents WHERE call_id = calls.id)",
    "user_auth_id": "CAST(key_id AS TEXT)",
    "ip_address": "detail ->> 'address'",
    "response_body": "(SELECT CAST(answer AS TEXT) FROM contents WHERE call_id = calls.id)",
    "error": "iif(error IS NULL, NULL, json_object('errorCode', error))",
    "request_duration": "duration_ms / 1000.0",
    "meta": "detail",
}
_FOUND = (
    f"SELECT {', '.join(f'calls.{name}' for name in COLUMNS)}, prompt, answer "
    "FROM calls LEFT JOIN contents ON call_id = calls.id WHERE calls.id IN "
)


class Found(NamedTuple):
    """One call as it was read: its columns by name, its details, what is kept of its bodies."""

    columns: dict[str, Any]
    detail: Detail
    prompt: bytes | None
    answer: bytes | None


class LogTable:
    """Answers queries over a month's file in the language of queries over rows in memory."""

    def __init__(self) -> None:
        self._language = language_of(RequestLog)
        columns = self._language.columns
        members = (f"{_MEMBERS.get(c.member, 'NULL')} AS {c.sql}" for c in columns)
        self._held = f"(SELECT id AS place, {', '.join(members)} FROM calls)"
        self._moment = next(column.sql for column in columns if column.member == "date_time")

    def select(self, request: Query, conditions: Pairs) -> Clause:
        """The numbers of the calls that fit, in their order, as one column."""
        found = self._language.select(request, conditions, held=self._held)
        return Clause(f"{found.sql} ORDER BY {self._sorted(request)}", found.values)

    def page(self, connection: Raw, request: Query, conditions: Pairs) -> QueryResponse[RequestLog]:
        """Raises InvalidRequest or DriverError."""
        found = self.select(request, conditions)
        skip, take = page_of(request)
        places = connection.execute(f"{found.sql} LIMIT ? OFFSET ?", [*found.values, take, skip])
        rows = [log_of(call) for call in calls_of(connection, [place for (place,) in places])]
        total = self._total(connection, request, found) if asks_total(request) else 0
        return QueryResponse(
            offset=skip, total=total, results=self._language.answered(request, rows)
        )

    def _total(self, connection: Raw, request: Query, found: Clause) -> int:
        if not found.values and not request.fields and " WHERE TRUE " in found.sql:
            return total_of(connection)
        [(total,)] = connection.execute(f"SELECT count(*) FROM ({found.sql})", found.values)
        return total

    def _sorted(self, request: Query) -> str:
        if not request.order_by and not request.order_by_desc:
            return "place DESC"
        # Numbers grow with time, and only they are in order in the file.
        return self._language.order(request).replace(f"{self._moment} ", "place ")


def total_of(connection: Raw) -> int:
    """All calls of the file, without looking through it."""
    [(total,)] = connection.execute("SELECT ifnull(sum(calls), 0) FROM runs")
    return total


def calls_of(connection: Raw, ids: Sequence[int]) -> list[Found]:
    """In the order of their numbers as given."""
    if not ids:
        return []
    rows = connection.execute(f"{_FOUND} ({', '.join('?' * len(ids))})", list(ids)).fetchall()
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
        request_body=_readable(call.prompt),
        user_auth_id=_text(columns["key_id"]),
        ip_address=detail.address,
        response_body=_readable(call.answer),
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
        request_body=_readable(call.prompt),
        user_auth_id=_text(columns["key_id"]),
        ip_address=detail.address,
        response_dto=_readable(call.answer),
        error_response=_problem(call),
        request_duration=msgspec.to_builtins(duration),
        meta=_facts(call),
    )


def _found(row: Row) -> Found:
    columns = dict(zip(COLUMNS, row, strict=False))
    detail = msgspec.json.decode(columns.pop("detail"), type=Detail)
    return Found(columns, detail, row[-2], row[-1])


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


def _readable(content: bytes | None) -> str | None:
    # It may be cut in the middle of a character.
    return None if content is None else content.decode(errors="replace")
