"""Answers the operations about the history."""

from collections.abc import Callable
from datetime import datetime

import msgspec

from aiserver.contract.errors import Gone
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import QueryResponse
from aiserver.history.analytics import Sums, summary, total_calls
from aiserver.history.archive import Shelf
from aiserver.history.logs import LogTable, entry_of
from aiserver.history.operations import (
    AdminData,
    AdminDataResponse,
    AdminQueryRequestLogs,
    GetSummaryStats,
    GetSummaryStatsResponse,
    PageStats,
    PopulateChatSummary,
    RequestLog,
    RequestLogs,
    RequestLogsResponse,
    SummaryStats,
)
from aiserver.history.search import find, search_of
from aiserver.history.store import History
from aiserver.kit.clock import Clock
from aiserver.providers.catalogue_operations import StringsResponse

_MS_A_MINUTE = 60_000


class HistoryHandlers:
    """`providers` counts the providers; `key_of` is the id of the key with this text, if any."""

    def __init__(
        self,
        history: History,
        clock: Clock,
        *,
        providers: Callable[[], int],
        key_of: Callable[[str], int | None],
    ) -> None:
        self._reader = history.reader
        self._clock = clock
        self._providers = providers
        self._key_of = key_of
        self._table = LogTable()

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            GetSummaryStats: self.summary,
            RequestLogs: self.logs,
            AdminQueryRequestLogs: self.query,
            AdminData: self.data,
            PopulateChatSummary: self.populate,
        }

    async def summary(self, request: GetSummaryStats, call: Call) -> GetSummaryStatsResponse:
        found = await self._reader.run(
            lambda shelf: summary(shelf, since=request.from_, until=request.to)
        )
        return GetSummaryStatsResponse(
            provider_stats=_stats(found.providers),
            model_stats=_stats(found.models),
            month_stats=_stats(found.months),
        )

    async def logs(self, request: RequestLogs, call: Call) -> RequestLogsResponse:
        now = self._clock.now()
        search = search_of(request, now=now, this_month=_month(now), key_of=self._key_of)

        def answer(shelf: Shelf) -> RequestLogsResponse:
            page = find(shelf, search)
            return RequestLogsResponse(
                results=[entry_of(found) for found in page.calls], total=page.total
            )

        return await self._reader.run(answer)

    async def query(self, request: AdminQueryRequestLogs, call: Call) -> QueryResponse[RequestLog]:
        month = _month(request.month or self._clock.now())

        def page(shelf: Shelf) -> QueryResponse[RequestLog]:
            opened = shelf.open(month)
            if opened is None:
                return QueryResponse(results=[])
            return self._table.page(opened, request, call.pairs)

        return await self._reader.run(page)

    async def data(self, request: AdminData, call: Call) -> AdminDataResponse:
        calls = await self._reader.run(total_calls)
        return AdminDataResponse(
            page_stats=[
                PageStats(label="AiProvider", total=self._providers()),
                PageStats(label="JobSummary", total=calls),
            ]
        )

    async def populate(self, request: PopulateChatSummary, call: Call) -> StringsResponse:
        raise Gone(
            "The history is written with each call, so nothing needs to be populated; "
            "read it with GetSummaryStats."
        )


def _month(moment: datetime) -> str:
    return moment.strftime("%Y-%m")


def _stats(groups: dict[str, Sums]) -> list[SummaryStats]:
    return [_line(name, groups[name]) for name in sorted(groups)]


def _line(name: str, sums: Sums) -> SummaryStats:
    tokens = sums.prompt_tokens + sums.completion_tokens
    return SummaryStats(
        name=name,
        total=sums.calls,
        total_prompt_tokens=sums.prompt_tokens,
        total_completion_tokens=sums.completion_tokens,
        total_minutes=sums.duration_ms / _MS_A_MINUTE,
        tokens_per_second=tokens * 1000 / sums.counted_ms if sums.counted_ms else 0.0,
    )
