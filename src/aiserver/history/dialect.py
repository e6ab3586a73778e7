"""What the two engines say differently of a call's members."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiserver.contract.conditions import Column

_LIKE = re.compile(r"\bc(\d+) LIKE ")


class Dialect(NamedTuple):
    """How SQL says what a member of RequestLog is; what is not in `members` is never kept.

    `texts` are the members that LIKE cannot look at as they are, as text; None where LIKE takes
    everything.
    """

    members: Mapping[str, str]
    texts: Mapping[str, str] | None = None

    def held(self, columns: Sequence[Column]) -> str:
        """All calls of a month with their `place` and their members, to select from."""
        shown = [f"{self._member(column)} AS {column.sql}" for column in columns]
        for column in columns:
            if self.texts and column.member in self.texts:
                shown.append(f"{self.texts[column.member]} AS t{column.sql[1:]}")
        return f"(SELECT id AS place, {', '.join(shown)} FROM calls) AS held"  # noqa: S608

    def matched(self, sql: str, columns: Sequence[Column]) -> str:
        """A selection from `held` with the conditions as this engine means them."""
        texts = self.texts
        if texts is None:
            return sql
        places = {c.sql[1:] for c in columns if c.member in texts}
        return _LIKE.sub(lambda m: f"{'t' if m[1] in places else 'c'}{m[1]} ILIKE ", sql)

    def _member(self, column: Column) -> str:
        return self.members.get(column.member, "CAST(NULL AS TEXT)")


SQLITE = Dialect(
    {
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
    },
)

# What comes out of JSON or a cast is compared by the rules of a language unless told.
_BYTES = 'COLLATE "C"'
_SECONDS = "duration_ms / 1000.0::float8"

POSTGRES = Dialect(
    {
        "id": "id",
        "trace_id": f"(detail ->> 'request_id') {_BYTES}",
        "operation_name": "operation",
        "date_time": "(to_char(to_timestamp(at / 1000.0) AT TIME ZONE 'UTC', "
        f"'YYYY-MM-DD\"T\"HH24:MI:SS.MS') || '000+00:00') {_BYTES}",
        "status_code": "status",
        "status_description": "error",
        "http_method": f"(detail ->> 'method') {_BYTES}",
        "path_info": f"(detail ->> 'path') {_BYTES}",
        "request": "operation",
        "request_body": "(SELECT prompt FROM contents WHERE call_id = calls.id)",
        "user_auth_id": f"CAST(key_id AS text) {_BYTES}",
        "ip_address": f"(detail ->> 'address') {_BYTES}",
        "response_body": "(SELECT answer FROM contents WHERE call_id = calls.id)",
        "error": f"('{{\"errorCode\":' || to_json(error) || '}}') {_BYTES}",
        "request_duration": _SECONDS,
        "meta": f"CAST(detail AS text) {_BYTES}",
    },
    {
        "id": "CAST(id AS text)",
        "status_code": "CAST(status AS text)",
        "request_duration": f"CASE WHEN duration_ms % 1000 = 0 THEN duration_ms / 1000 || '.0' "
        f"ELSE CAST({_SECONDS} AS text) END",
    },
)
