"""Reads what a query over callbacks asks for."""

from typing import NamedTuple

import msgspec

from aiserver.contract.autoquery import Pairs, Query, language_of, page_of
from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.spelling import fold, pascal
from aiserver.jobs.callback_operations import QueryDeliveries
from aiserver.jobs.records import CallbackDelivery

_OURS = {fold(field.encode_name) for field in msgspec.structs.fields(QueryDeliveries)}
_NEWEST_FIRST = ("", "-createddate")


class Page(NamedTuple):
    skip: int
    take: int


class DeliveryQueries:
    """Callbacks are found by what the request declares, and come newest first."""

    def __init__(self) -> None:
        self.language = language_of(CallbackDelivery)
        self._conditions = self.language.conditions

    def page(self, request: Query, pairs: Pairs) -> Page:
        """Raises InvalidRequest for what the outbox cannot look for."""
        others = [pair for pair in pairs if fold(pair[0]) not in _OURS]
        for name, text in others:
            if self._conditions.clauses([(name, text)]):
                raise _refused(name, "callbacks are found by id, jobId, refId and state alone")
        descending = f"-{request.order_by_desc}" if request.order_by_desc else ""
        if fold(request.order_by or descending) not in _NEWEST_FIRST:
            raise _refused("orderBy", "callbacks come newest first; leave it out")
        if (request.fields or "").strip().lower().startswith("distinct"):
            raise _refused("fields", "callbacks cannot be made distinct; leave the word out")
        return Page(*page_of(request))


def _refused(name: str, problem: str) -> InvalidRequest:
    field = pascal(name)
    return InvalidRequest.of(
        [FieldError("ArgumentException", field, f"'{field}': {problem}.")], param=name
    )
