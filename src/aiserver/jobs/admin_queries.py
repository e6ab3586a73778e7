"""Says what a query over jobs asks in the store's own terms, since jobs are too many to look at."""

import re
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from aiserver.contract.autoquery import Pairs, Query, asks_total, language_of, page_of
from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.responses import QueryResponse
from aiserver.contract.spelling import fold, pascal
from aiserver.jobs.job import LARGEST_ID, Job, State
from aiserver.jobs.records import BackgroundJobState
from aiserver.jobs.shown import milliseconds
from aiserver.jobs.store import MOST_ROWS, Filter, JobStore, Order
from aiserver.kit.times import parse_iso

Row = TypeVar("Row", bound=msgspec.Struct)
Found = dict[str, Any]
Term = Callable[[Found, str], None]
Read = Callable[[str], Collection[Any]]

_COMMON = {fold(field.encode_name) for field in msgspec.structs.fields(Query)} | {"month"}
_ORDERS = {
    "id": Order.ID,
    "createddate": Order.ID,
    "starteddate": Order.STARTED,
    "completeddate": Order.ENDED,
    "priority": Order.PRIORITY,
}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_MOST_DIGITS = 20
_HELP = "jobs are found by id, refId, state, request, worker, tag, model, keyId and createdDate"
_HELP_ORDER = "jobs can be in the order of id, createdDate, startedDate or completedDate"


class JobQueries(Generic[Row]):
    """Reads queries whose rows are shown as `row`."""

    def __init__(self, row: type[Row]) -> None:
        self._language = language_of(row)
        self._columns = {fold(column.wire) for column in self._language.columns}
        self._conditions = self._language.conditions

    def filter(self, request: Query, pairs: Pairs, *, states: Collection[State]) -> Filter:
        """Newest first unless told. Raises InvalidRequest for what the store cannot look for."""
        found: Found = {"states": frozenset(states)}
        declared = {fold(f.encode_name): f.name for f in msgspec.structs.fields(request)}
        for name, text in pairs:
            if fold(name) not in declared:
                self._add(found, name, text)
        for name, member in declared.items():
            # 0 is how typed clients say nothing.
            if name not in _COMMON and (value := getattr(request, member)):
                self._add(found, name, str(value))
        if (request.fields or "").strip().lower().startswith("distinct"):
            raise _refused("fields", "jobs cannot be made distinct; leave the word out")
        order, descending = self._order(request)
        skip, take = page_of(request)
        return Filter(**found, order=order, descending=descending, skip=skip, take=take)

    def page(
        self, request: Query, filter: Filter, rows: Iterable[Row], total: int
    ) -> QueryResponse[Row]:
        return QueryResponse(
            offset=filter.skip,
            total=total if asks_total(request) else 0,
            results=self._language.answered(request, list(rows)),
        )

    def _add(self, found: Found, name: str, text: str) -> None:
        term = _TERMS.get(fold(name))
        if term is not None and text:
            try:
                term(found, text.strip())
            except ValueError as error:
                raise _refused(name, str(error)) from None
        elif term is None and self._conditions.clauses([(name, text)]):
            raise _refused(name, f"{_HELP}, not by this")

    def _order(self, request: Query) -> tuple[Order, bool]:
        wanted: list[tuple[Order, bool]] = []
        for names, descending in ((request.order_by, False), (request.order_by_desc, True)):
            for name in (names or "").split(","):
                plain = fold(name.strip().removeprefix("-"))
                if plain in _ORDERS:
                    wanted.append((_ORDERS[plain], descending != name.strip().startswith("-")))
                elif plain in self._columns:
                    raise _refused("orderBy", f"{_HELP_ORDER}, not of {name.strip()}")
        if not wanted:
            return Order.ID, True
        # Equal ones are told apart by id anyway.
        if any(order not in (wanted[0][0], Order.ID) for order, _ in wanted):
            raise _refused("orderBy", f"{_HELP_ORDER}; name one of them")
        return wanted[0]


async def ended_jobs(
    store: JobStore, filter: Filter, *, month: str, newest: bool
) -> tuple[list[Job], int]:
    """A page of a month's ended jobs; `newest`: some of them may not be in its archive yet."""
    if not newest:
        return await store.jobs(filter, month=month)
    first, second = (None, month) if filter.descending else (month, None)
    rows, total = await store.jobs(filter, month=first)
    left = replace(filter, skip=max(filter.skip - total, 0), take=filter.take - len(rows))
    others, others_total = await store.jobs(left, month=second)
    # One that was moved meanwhile is in both.
    return list({job.id: job for job in [*rows, *others]}.values()), total + others_total


def _equal(member: str) -> Term:
    def term(found: Found, text: str) -> None:
        # Two values at once fit no job, as an empty collection does.
        if found.setdefault(member, text) != text:
            found["ids"] = frozenset[int]()

    return term


def _among(member: str, read: Read, *, many: bool) -> Term:
    def term(found: Found, text: str) -> None:
        items = text.strip("[]").split(",") if many else [text]
        if len(items) > MOST_ROWS:
            raise ValueError(f"name at most {MOST_ROWS} values")
        values = frozenset(value for item in items for value in read(item.strip().strip('"')))
        found[member] = values & found.get(member, values)

    return term


def _bound(member: str, choose: Callable[[int, int], int], *, later: int) -> Term:
    def term(found: Found, text: str) -> None:
        ms = milliseconds(_moment(text)) + later
        found[member] = choose(found.get(member, ms), ms)

    return term


def _ids(text: str) -> list[int]:
    return [id] if 0 < (id := _whole(text)) <= LARGEST_ID else []


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("a whole number such as 42 is needed")
    # Longer ones than any id are all the same, and slow to read.
    return int(text) if len(text) <= _MOST_DIGITS else LARGEST_ID + 1


def _moment(text: str) -> datetime:
    try:
        return parse_iso(text)
    except ValueError:
        raise ValueError("a moment such as 2026-11-23T18:00:00Z is needed") from None


def _states(text: str) -> list[State]:
    for known in BackgroundJobState:
        if fold(known.value) == fold(text):
            return states_of(known)
    raise ValueError(f"one of {', '.join(BackgroundJobState)} is needed")


def states_of(shown: BackgroundJobState) -> list[State]:
    """The states that are shown as this one."""
    return [state for state in State if state.shown == shown.value]


def _key(found: Found, text: str) -> None:
    key = _whole(text)
    # No store can look for a larger one than there can be.
    if not 0 <= key <= LARGEST_ID or found.setdefault("key_id", key) != key:
        found["ids"] = frozenset[int]()


_MOMENTS = {
    "{}from since{} min{} {}> >{} {}greaterthanorequalto": _bound("since", max, later=0),
    "{}after {}above {}over {}olderthan {}greaterthan": _bound("since", max, later=1),
    "{}to to{} until{} max{} {}< {}lessthanorequalto": _bound("until", min, later=1),
    "{}before {}below {}under {}youngerthan {}lessthan <{}": _bound("until", min, later=0),
}


def _terms() -> dict[str, Term]:
    terms: dict[str, Term] = {"keyid": _key}
    collections: tuple[tuple[str, str, Read], ...] = (
        ("id", "ids", _ids),
        ("refid", "ref_ids", lambda text: [text]),
        ("state", "states", _states),
    )
    for name, member, read in collections:
        terms[name] = _among(member, read, many=False)
        terms[f"{name}s"] = terms[f"{name}in"] = _among(member, read, many=True)
    for name, member in (
        ("request", "operation"),
        ("operation", "operation"),
        ("worker", "worker"),
        ("tag", "tag"),
        ("model", "model"),
        ("kind", "kind"),
    ):
        terms[name] = _equal(member)
    for forms, bound in _MOMENTS.items():
        for form in forms.split():
            terms[form.format("createddate")] = bound
    return terms


_TERMS = _terms()


def _refused(name: str, problem: str) -> InvalidRequest:
    field = pascal(name)
    message = f"'{field}': {problem}."
    return InvalidRequest.of([FieldError("ArgumentException", field, message)], param=name)
