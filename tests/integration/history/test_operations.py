"""What the administrator asks of the history, answered from the files of several months."""

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiserver.contract.errors import Gone, InvalidRequest
from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.history.dialect import SQLITE
from aiserver.history.files import UPGRADES, FileArchive
from aiserver.history.handlers import HistoryHandlers
from aiserver.history.logs import LogTable
from aiserver.history.operations import (
    AdminData,
    AdminQueryRequestLogs,
    GetSummaryStats,
    PopulateChatSummary,
    RequestLogs,
)
from aiserver.history.search import page_sql, search_of
from aiserver.history.store import History
from aiserver.kit.db import Raw, open_file
from fakes.calls import NOVEMBER, StillClock, ended_call, ended_calls
from histories import Histories, answering
from histories import asked as ask

OCTOBER, SEPTEMBER = NOVEMBER - timedelta(days=31), NOVEMBER - timedelta(days=61)


@pytest.fixture
def calls() -> list[Trace]:
    """Three, four and five calls in three months; the last failed at one provider, then another."""
    tries = [
        Attempt(provider="other", model="model-b", began=0.0, outcome="busy", status=429),
        Attempt(provider="fake", model="model-b", began=0.1, outcome="failed", lost=True),
    ]
    failed = ended_call(
        NOVEMBER + timedelta(hours=1),
        request_id="failed",
        attempts=tries,
        provider=None,
        served="model-b",
        status=502,
        error="provider_error",
        message="All providers failed.",
        usage=None,
        cost=None,
        key_id=None,
        seconds=30.0,
        prompt=b"question",
    )
    return [*ended_calls(3, SEPTEMBER), *ended_calls(4, OCTOBER), *ended_calls(4), failed]


@pytest.fixture
async def handlers(histories: Histories, calls: list[Trace]) -> AsyncGenerator[HistoryHandlers]:
    async with answering(histories, calls) as opened:
        yield opened


def ids(answer: Any) -> list[int]:
    return [row["id"] for row in answer["results"]]


async def test_summary_adds_up_providers_models_and_months(handlers: HistoryHandlers) -> None:
    answer = await ask(handlers, GetSummaryStats())
    assert answer["providerStats"] == [
        {
            "name": "fake",
            "total": 12,
            "totalPromptTokens": 110,
            "totalCompletionTokens": 220,
            "totalMinutes": pytest.approx((11 * 1.5 + 30) / 60),
            "tokensPerSecond": pytest.approx(30 / 1.5),
        }
    ]
    assert [(s["name"], s["total"]) for s in answer["modelStats"]] == [
        ("model-a", 11),
        ("model-b", 1),
    ]
    assert answer["modelStats"][1]["tokensPerSecond"] == 0
    assert [(s["name"], s["total"]) for s in answer["monthStats"]] == [
        ("2026-09", 3),
        ("2026-10", 4),
        ("2026-11", 5),
    ]


async def test_summary_of_some_days_has_only_them(handlers: HistoryHandlers) -> None:
    asked = GetSummaryStats(
        from_=OCTOBER - timedelta(hours=1), to=datetime(2026, 10, 15, tzinfo=UTC)
    )
    answer = await ask(handlers, asked)
    assert [(s["name"], s["total"]) for s in answer["monthStats"]] == [("2026-10", 4)]
    nothing = await ask(handlers, GetSummaryStats(to=SEPTEMBER - timedelta(days=1)))
    assert nothing == {"providerStats": [], "modelStats": [], "monthStats": []}


async def test_calls_that_reached_no_provider_are_in_no_summary(histories: Histories) -> None:
    typo = ended_call(provider=None, attempts=[], served=None, status=404, model="typo")
    async with answering(histories, [typo]) as handlers:
        assert (await ask(handlers, GetSummaryStats()))["modelStats"] == []
        assert (await ask(handlers, AdminData()))["pageStats"][1]["total"] == 1


async def test_pages_are_counted(handlers: HistoryHandlers) -> None:
    assert await ask(handlers, AdminData()) == {
        "pageStats": [{"label": "AiProvider", "total": 2}, {"label": "JobSummary", "total": 12}]
    }


async def test_nothing_needs_to_be_populated(handlers: HistoryHandlers) -> None:
    with pytest.raises(Gone, match="GetSummaryStats") as raised:
        await ask(handlers, PopulateChatSummary())
    assert raised.value.http_status == 410


async def test_newest_calls_of_all_months_come_first(
    handlers: HistoryHandlers, calls: list[Trace]
) -> None:
    newest = [call.id for call in reversed(calls)]
    answer = await ask(handlers, RequestLogs())
    assert (ids(answer), answer["total"]) == (newest, 12)
    for skip, take in ((0, 3), (3, 4), (5, 100), (11, 5), (12, 5), (0, 0)):
        page = await ask(handlers, RequestLogs(skip=skip, take=take))
        assert ids(page) == newest[skip : skip + take]
        assert page["total"] == 12
    assert ids(await ask(handlers, RequestLogs(order_by="id", take=5))) == newest[::-1][:5]
    october = RequestLogs(month=OCTOBER)
    assert ids(await ask(handlers, october)) == [call.id for call in calls[3:7]][::-1]


async def test_entry_says_what_is_known_of_a_call(handlers: HistoryHandlers) -> None:
    [entry] = (await ask(handlers, RequestLogs(with_errors=True)))["results"]
    assert entry["traceId"] == "failed"
    assert entry["statusCode"] == 502
    assert entry["errorResponse"] == {
        "errorCode": "provider_error",
        "message": "All providers failed.",
    }
    assert entry["requestDuration"] == "PT30S"
    assert entry["requestBody"] == "question"
    assert "userAuthId" not in entry
    assert "headers" not in entry
    meta = entry["meta"]
    assert meta["provider"] == "fake"
    assert meta["attemptsOfUnknownCost"] == "1"
    assert "promptTokens" not in meta
    attempts = msgspec.json.decode(meta["attempts"])
    assert [(a["provider"], a["outcome"]) for a in attempts] == [
        ("other", "busy"),
        ("fake", "failed"),
    ]


@pytest.mark.parametrize(
    ("members", "count"),
    [
        ({"with_errors": False}, 11),
        ({"operation_name": "openaichatcompletion"}, 12),
        ({"operation_name": "Other"}, 0),
        ({"ip_address": "10.1.2.3"}, 12),
        ({"path_info": "/v1/other"}, 0),
        ({"user_auth_id": "7"}, 11),
        ({"bearer_token": "ak-seven"}, 11),
        ({"bearer_token": "ak-other"}, 0),
        ({"session_id": "s"}, 0),
        ({"forwarded_for": "1.2.3.4"}, 0),
        ({"before_secs": 3700}, 1),
        ({"after_secs": 3700}, 11),
        ({"before_secs": 2**40}, 12),
        ({"has_response": True}, 0),
        ({"duration_longer_than": "00:00:02"}, 1),
        ({"duration_less_than": "PT2S"}, 11),
        ({"duration_longer_than": "0:01", "with_errors": True}, 0),
    ],
)
async def test_filter_keeps_the_calls_that_fit(
    handlers: HistoryHandlers, members: dict[str, Any], count: int
) -> None:
    answer = await ask(handlers, RequestLogs(**members))
    assert (len(answer["results"]), answer["total"]) == (count, count)


async def test_filter_by_number(handlers: HistoryHandlers, calls: list[Trace]) -> None:
    numbers = [call.id for call in calls]
    chosen = RequestLogs(ids=[numbers[0], numbers[5], 12345])
    assert ids(await ask(handlers, chosen)) == [numbers[5], numbers[0]]
    assert ids(await ask(handlers, RequestLogs(after_id=numbers[9]))) == [numbers[11], numbers[10]]
    assert len(ids(await ask(handlers, RequestLogs(before_id=numbers[9])))) == 10
    assert ids(await ask(handlers, RequestLogs(after_id=10**30))) == []


async def test_order_by_duration_is_of_one_month(
    handlers: HistoryHandlers, calls: list[Trace]
) -> None:
    answer = await ask(handlers, RequestLogs(order_by="-requestDuration"))
    assert len(ids(answer)) == 5
    assert ids(answer)[0] == calls[-1].id


async def test_wrong_duration_is_refused(handlers: HistoryHandlers) -> None:
    with pytest.raises(InvalidRequest, match="DurationLongerThan"):
        await ask(handlers, RequestLogs(duration_longer_than="long"))


async def test_month_is_queried_by_any_member(
    handlers: HistoryHandlers, calls: list[Trace]
) -> None:
    november = [call.id for call in calls[7:]]
    answer = await ask(handlers, AdminQueryRequestLogs(include="total"))
    assert (ids(answer), answer["total"], answer["offset"]) == (november[::-1], 5, 0)
    page = AdminQueryRequestLogs(skip=1, take=2, order_by="-dateTime", include="total")
    answer = await ask(handlers, page)
    assert (ids(answer), answer["total"]) == (november[::-1][1:3], 5)
    assert ids(await ask(handlers, AdminQueryRequestLogs(order_by="id"))) == november
    for pairs, count in (
        ({"statusCode": "502"}, 1),
        ({"StatusCodeGreaterThan": "200"}, 1),
        ({"traceIdStartsWith": "req"}, 4),
        ({"userAuthId": "7"}, 4),
        ({"requestDurationGreaterThan": "00:00:02"}, 1),
        ({"requestBodyContains": "quest"}, 1),
        ({"errorIsNotNull": ""}, 1),
        ({"refererIsNull": ""}, 5),
        ({"metaContains": '"provider":"other"'}, 1),
        ({"dateTimeFrom": "2026-11-15T12:00:02Z"}, 3),
        ({"ids": f"{november[0]},{november[2]}"}, 2),
        ({"idGreaterThan": str(november[3])}, 1),
    ):
        answer = await ask(handlers, AdminQueryRequestLogs(include="total"), **pairs)
        assert (len(ids(answer)), answer["total"]) == (count, count), pairs


async def test_query_answers_some_members_or_another_month(handlers: HistoryHandlers) -> None:
    some = AdminQueryRequestLogs(fields="statusCode,traceId", order_by="statusCode", take=1)
    answer = await ask(handlers, some)
    assert answer["results"] == [{"statusCode": 200, "traceId": "request-1"}]
    distinct = AdminQueryRequestLogs(fields="distinct statusCode", include="total")
    answer = await ask(handlers, distinct)
    assert sorted(row["statusCode"] for row in answer["results"]) == [200, 502]
    assert answer["total"] == 2
    assert len(ids(await ask(handlers, AdminQueryRequestLogs(month=SEPTEMBER)))) == 3
    empty = AdminQueryRequestLogs(month=datetime(2020, 1, 1, tzinfo=UTC))
    assert await ask(handlers, empty) == {"offset": 0, "total": 0, "results": []}


def touched(path: Path) -> Raw | None:
    path.touch()


def without_tables(path: Path) -> Raw:
    return open_file(path, page_size=8192)


def with_tables_uncommitted(path: Path) -> Raw:
    connection = open_file(path)
    connection.execute("BEGIN IMMEDIATE")
    for statement in UPGRADES[0]:
        connection.execute(statement)
    return connection


@pytest.mark.parametrize("state", [touched, without_tables, with_tables_uncommitted])
async def test_month_that_is_being_made_reads_as_empty(
    tmp_path: Path, state: Callable[[Path], Raw | None]
) -> None:
    history = History(tmp_path, StillClock(), str)
    handlers = HistoryHandlers(history, StillClock(), providers=lambda: 0, key_of=lambda text: None)
    maker = state(FileArchive(tmp_path).path("2026-11"))
    for request in (RequestLogs(), AdminQueryRequestLogs(include="total")):
        answer = await ask(handlers, request)
        assert (answer["results"], answer["total"]) == ([], 0)
    assert (await ask(handlers, GetSummaryStats()))["providerStats"] == []
    if maker is not None:
        maker.close()
    filling = History(tmp_path, StillClock(), str)
    filling.record(ended_call())
    filling.start()
    await filling.close()
    assert len(ids(await ask(handlers, RequestLogs()))) == 1
    assert len(ids(await ask(handlers, AdminQueryRequestLogs()))) == 1
    history.start()
    await history.close()


async def test_row_has_the_cost_and_tokens_as_text(histories: Histories) -> None:
    used = Usage(prompt=10, completion=0, cached=4)
    call = ended_call(usage=used, cost=Decimal("0.0000015"), model="alias", tag="t")
    async with answering(histories, [call]) as handlers:
        [row] = (await ask(handlers, AdminQueryRequestLogs()))["results"]
    meta = row["meta"]
    assert meta.pop("attempts").startswith("[")
    assert meta == {
        "provider": "fake",
        "model": "model-a",
        "asked": "alias",
        "keyId": "7",
        "streamed": "false",
        "promptTokens": "10",
        "completionTokens": "0",
        "cachedTokens": "4",
        "cost": "0.0000015",
        "tag": "t",
    }


@pytest.fixture
async def files(tmp_path: Path, calls: list[Trace]) -> Path:
    await Histories(tmp_path).record(calls)
    return tmp_path


@pytest.mark.parametrize(
    "members",
    [{}, {"before_secs": 60}, {"after_id": 5}, {"ids": [1, 2]}, {"month": NOVEMBER, "skip": 3}],
)
async def test_newest_page_is_read_by_the_primary_key(files: Path, members: dict[str, Any]) -> None:
    search = search_of(
        RequestLogs(**members), now=NOVEMBER, this_month="2026-11", key_of=lambda text: None
    )
    plan = plan_of(files, page_sql(search), [*search.fits.values, 10, 0])
    assert by_key(plan), plan


@pytest.mark.parametrize(
    "pairs", [{}, {"id": "5"}, {"idGreaterThan": "5"}, {"ids": "1,2"}, {"idBetween": "1,9"}]
)
@pytest.mark.parametrize("order", [None, "-id", "dateTime", "-dateTime"])
async def test_query_by_number_or_time_is_read_by_the_primary_key(
    files: Path, pairs: dict[str, str], order: str | None
) -> None:
    found = LogTable().select(SQLITE, AdminQueryRequestLogs(order_by=order), pairs.items())
    plan = plan_of(files, f"{found.sql} LIMIT 10", found.values)
    assert by_key(plan), plan


def plan_of(folder: Path, sql: str, values: list[Any]) -> list[str]:
    connection = FileArchive(folder).reader("2026-11")
    try:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    finally:
        connection.close()


def by_key(plan: list[str]) -> bool:
    """In the order of the numbers, with nothing sorted or copied; a search where it is bounded."""
    return len(plan) == 1 and plan[0] in (
        "SCAN calls",
        "SEARCH calls USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH calls USING INTEGER PRIMARY KEY (rowid>?)",
        "SEARCH calls USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
    )
