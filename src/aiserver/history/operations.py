"""What can be asked of the history: single calls, and sums by provider, model and month."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import GET, Access, Route, operation
from aiserver.contract.responses import QueryResponse, ResponseStatus, Wire
from aiserver.providers.catalogue_operations import StringsResponse


class SummaryStats(Wire, kw_only=True, omit_defaults=False):
    """Calls of one name; tokens a second over the calls whose tokens were reported."""

    name: str
    total: int
    total_prompt_tokens: int
    total_completion_tokens: int
    total_minutes: float
    tokens_per_second: float


class GetSummaryStatsResponse(Wire, kw_only=True):
    provider_stats: list[SummaryStats]
    model_stats: list[SummaryStats]
    month_stats: list[SummaryStats]


@operation(tag="Admin", verbs=GET, access=Access.ADMIN, returns=GetSummaryStatsResponse)
class GetSummaryStats(Wire, kw_only=True):
    """Sums the calls that reached a provider, by provider, by model and by month.

    From the hour of `from` through the day of `to`, both in UTC.
    """

    from_: datetime | None = msgspec.field(name="from", default=None)
    to: datetime | None = None


class RequestLogEntry(Wire, kw_only=True):
    """One call. `meta` has tokens, cost, provider and attempts as text; headers are never kept."""

    id: int
    trace_id: str | None = None
    operation_name: str | None = None
    date_time: datetime
    status_code: int
    status_description: str | None = None
    http_method: str | None = None
    absolute_uri: str | None = None
    path_info: str | None = None
    request_body: str | None = None
    request_dto: Any = None
    user_auth_id: str | None = None
    session_id: str | None = None
    ip_address: str | None = None
    forwarded_for: str | None = None
    referer: str | None = None
    headers: dict[str, str] | None = None
    form_data: dict[str, str] | None = None
    items: dict[str, str] | None = None
    response_headers: dict[str, str] | None = None
    session: Any = None
    response_dto: Any = None
    error_response: Any = None
    exception_source: str | None = None
    exception_data: Any = None
    request_duration: str
    meta: dict[str, str] | None = None


class RequestLogsResponse(Wire, kw_only=True, omit_defaults=False):
    """`total` counts the calls that fit, in the months that were looked through for this page."""

    results: list[RequestLogEntry]
    usage: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    total: int = 0
    response_status: ResponseStatus | msgspec.UnsetType = msgspec.UNSET


@operation(
    tag="Admin",
    verbs=GET,
    access=Access.ADMIN,
    returns=RequestLogsResponse,
    routes=(Route("/requestlogs", GET),),
)
class RequestLogs(Wire, kw_only=True):
    """Lists calls, the newest first, through all months unless `month` names one.

    `before_secs` keeps calls of the last so many seconds, `after_secs` older ones. `user_auth_id`
    is the id of a key. Sorted by anything but the time, it lists one month, this one if not told.
    """

    before_secs: int | None = None
    after_secs: int | None = None
    operation_name: str | None = None
    ip_address: str | None = None
    forwarded_for: str | None = None
    user_auth_id: str | None = None
    session_id: str | None = None
    referer: str | None = None
    path_info: str | None = None
    bearer_token: str | None = None
    ids: list[int] | None = None
    before_id: int | None = None
    after_id: int | None = None
    has_response: bool | None = None
    with_errors: bool | None = None
    enable_session_tracking: bool | None = None
    enable_response_tracking: bool | None = None
    enable_error_tracking: bool | None = None
    duration_longer_than: str | None = None
    duration_less_than: str | None = None
    skip: int | None = None
    take: int | None = None
    order_by: str | None = None
    month: datetime | None = None


class RequestLog(Wire, kw_only=True):
    """One call as a row. `meta` has tokens, cost, provider and attempts as text."""

    id: int
    trace_id: str | None = None
    operation_name: str | None = None
    date_time: datetime
    status_code: int
    status_description: str | None = None
    http_method: str | None = None
    absolute_uri: str | None = None
    path_info: str | None = None
    request: str | None = None
    request_body: str | None = None
    user_auth_id: str | None = None
    session_id: str | None = None
    ip_address: str | None = None
    forwarded_for: str | None = None
    referer: str | None = None
    headers: dict[str, str] | None = None
    form_data: dict[str, str] | None = None
    items: dict[str, str] | None = None
    response_headers: dict[str, str] | None = None
    response: str | None = None
    response_body: str | None = None
    session_body: str | None = None
    error: ResponseStatus | None = None
    exception_source: str | None = None
    exception_data_body: str | None = None
    request_duration: timedelta
    meta: dict[str, str] | None = None


@operation(tag="Admin", verbs=GET, access=Access.ADMIN, returns=QueryResponse[RequestLog])
class AdminQueryRequestLogs(Query, kw_only=True):
    """Queries the calls of one month, this one if not told, by any of their members."""

    month: datetime | None = None


class PageStats(Wire, kw_only=True, omit_defaults=False):
    label: str
    total: int


class AdminDataResponse(Wire, kw_only=True):
    page_stats: list[PageStats]


@operation(tag="Admin", verbs=GET, access=Access.ADMIN, returns=AdminDataResponse)
class AdminData(Wire, kw_only=True):
    """Counts what the administrator's pages list: providers and recorded calls."""


@operation(tag="Admin", verbs=GET, access=Access.OPEN, returns=StringsResponse)
class PopulateChatSummary(Wire, kw_only=True):
    """Answers 410: the history is written with each call, so nothing needs to be filled in."""
