"""Answers a query over rows in memory: conditions, order, a page, some members only."""

# ruff: noqa: S608 - columns are named by the position of a declared field; values are parameters.

from collections.abc import Iterable
from functools import cache
from typing import Any, Generic, TypeVar, cast

import msgspec

from aiserver.contract.conditions import (
    Clause,
    Column,
    Conditions,
    columns_of,
    one_of,
    stored,
    together,
)
from aiserver.contract.responses import QueryResponse, Wire
from aiserver.contract.spelling import fold
from aiserver.kit.db import driver

Row = TypeVar("Row", bound=msgspec.Struct)
Pairs = Iterable[tuple[str, str]]

MOST_ROWS = 1000
_FURTHEST = 2**31 - 1


class Query(Wire, kw_only=True):
    """What every query takes: a page, an order, what to include, which members to answer.

    `include` knows `total`; aggregates in it are ignored.
    """

    skip: int | None = None
    take: int | None = None
    order_by: str | None = None
    order_by_desc: str | None = None
    include: str | None = None
    fields: str | None = None
    meta: dict[str, str] | None = None


_COMMON = frozenset(Query.__struct_fields__)


def as_pairs(members: dict[str, Any]) -> list[tuple[str, str]]:
    """JSON members as text, as a query string would say them; objects and nulls are left out."""
    return [
        (name, value if isinstance(value, str) else msgspec.json.encode(value).decode())
        for name, value in members.items()
        if value is not None and not isinstance(value, dict)
    ]


class Language:
    """Says in SQL what queries over rows of one type ask; each row has a `place` of its own."""

    def __init__(self, row: type[msgspec.Struct]) -> None:
        self.columns = columns_of(row)
        self._named = {fold(column.wire): column for column in self.columns}
        self._key = self._named.get("id", self.columns[0])
        self.conditions = Conditions(self.columns)

    def select(
        self, request: Query, conditions: Pairs, *, held: str, place: str = "place"
    ) -> Clause:
        """The places of the rows of `held` that fit, in no order. Raises InvalidRequest.

        `conditions` may repeat what the request declares; the request counts.
        """
        distinct, wanted = self._wanted(request.fields or "")
        found = self._where(request, conditions)
        if distinct and wanted:
            groups = ", ".join(column.sql for column in wanted)
            sql = f"SELECT min({place}) AS place FROM {held} WHERE {found.sql} GROUP BY {groups}"
        else:
            sql = f"SELECT {place} AS place FROM {held} WHERE {found.sql}"
        return Clause(sql, found.values)

    def order(self, request: Query) -> str:
        """What follows ORDER BY; `place` comes last, so that no two rows are equal."""
        terms: dict[str, str] = {}
        for names, direction in ((request.order_by, "ASC"), (request.order_by_desc, "DESC")):
            for name in (names or "").split(","):
                column = self._named.get(fold(name.strip().removeprefix("-")))
                if column is not None:
                    turned = name.strip().startswith("-")
                    other = "DESC" if direction == "ASC" else "ASC"
                    terms.setdefault(column.sql, other if turned else direction)
        if not terms and (request.skip is not None or request.take is not None):
            terms[self._key.sql] = "ASC"
        return ", ".join([*(f"{name} {way}" for name, way in terms.items()), "place"])

    def answered(self, request: Query, rows: list[Row]) -> list[Row]:
        """The rows; where `fields` names members, dictionaries of these alone."""
        _, wanted = self._wanted(request.fields or "")
        return cast("list[Row]", [_some(row, wanted) for row in rows]) if wanted else rows

    def _where(self, request: Query, conditions: Pairs) -> Clause:
        declared = msgspec.structs.fields(request)
        names = {fold(field.encode_name) for field in declared}
        clauses = self.conditions.clauses(p for p in conditions if fold(p[0]) not in names)
        for field in declared:
            value = getattr(request, field.name)
            column = self._named.get(fold(field.encode_name))
            if column is None or field.name in _COMMON or value in (None, []):
                continue
            values = cast("list[Any]", value) if isinstance(value, list) else [value]
            clauses.append(one_of(column, [stored(v) for v in values]))
        return together(clauses)

    def _wanted(self, fields: str) -> tuple[bool, list[Column]]:
        """Whether rows are to differ, and the columns that were named."""
        words = fields.split(None, 1)
        distinct = len(words) == 2 and words[0].lower() == "distinct"
        named = (words[1] if distinct else fields).split(",")
        wanted = [c for name in named if (c := self._named.get(fold(name.strip())))]
        return distinct, list(dict.fromkeys(wanted))


@cache
def language_of(row: type[msgspec.Struct]) -> Language:
    """The only one of this type."""
    return Language(row)


class Table(Generic[Row]):
    """Rows of one type in SQLite's memory; one thread at a time may use it."""

    def __init__(self, row: type[Row], rows: Iterable[Row] = ()) -> None:
        self._language = language_of(row)
        self._rows: list[Row] = []
        self._database = driver.connect(":memory:", isolation_level=None, check_same_thread=False)
        columns = self._language.columns
        names = ", ".join(column.sql for column in columns)
        marks = ", ".join("?" * (len(columns) + 1))
        self._insert = f"INSERT INTO held (rowid, {names}) VALUES ({marks})"
        self._database.execute(f"CREATE TABLE held ({names})")
        self.load(rows)

    def load(self, rows: Iterable[Row]) -> None:
        """Replaces all rows."""
        given = list(rows)
        members = [column.member for column in self._language.columns]
        values = [
            (place, *(stored(getattr(row, member)) for member in members))
            for place, row in enumerate(given)
        ]
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM held")
            self._database.executemany(self._insert, values)
        self._rows = given

    def query(self, request: Query, conditions: Pairs = ()) -> QueryResponse[Row]:
        """The rows that fit; where `fields` names members, dictionaries of these alone.

        `conditions` may repeat what the request declares; the request counts. Raises
        InvalidRequest.
        """
        found = self._language.select(request, conditions, held="held", place="rowid")
        total = 0
        if asks_total(request):
            [(total,)] = self._database.execute(f"SELECT count(*) FROM ({found.sql})", found.values)
        skip, take = page_of(request)
        places = self._database.execute(
            f"{found.sql} ORDER BY {self._language.order(request)} LIMIT ? OFFSET ?",
            [*found.values, take, skip],
        )
        rows: list[Row] = [self._rows[place] for (place,) in places]
        return QueryResponse(
            offset=skip, total=total, results=self._language.answered(request, rows)
        )


def page_of(request: Query) -> tuple[int, int]:
    """How many rows to skip and how many to take, within what a page may have."""
    skip = min(max(request.skip or 0, 0), _FURTHEST)
    take = MOST_ROWS if request.take is None else min(max(request.take, 0), MOST_ROWS)
    return skip, take


def asks_total(request: Query) -> bool:
    return "total" in (word.strip().lower() for word in (request.include or "").split(","))


def _some(row: msgspec.Struct, wanted: Iterable[Column]) -> dict[str, Any]:
    values = [(column.wire, getattr(row, column.member)) for column in wanted]
    return {n: v for n, v in values if v is not None and v is not msgspec.UNSET}
