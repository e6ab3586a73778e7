"""Whatever is asked, PostgreSQL answers as the files do, also where it speaks another language."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiserver.contract.trace import Attempt, Trace, Usage
from aiserver.history.handlers import HistoryHandlers
from aiserver.history.operations import AdminQueryRequestLogs, GetSummaryStats, RequestLogs
from aiserver.kit.migrations.postgres import upgrade
from aiserver.kit.postgres import Postgres
from fakes.calls import NOVEMBER, ended_call
from histories import Histories, answering, asked
from postgres import server

NAMES = (
    "alpha",
    "Beta",
    "beta",
    "äpfel",
    "Äpfel",
    "zeta_1",
    "zetax1",
    "100%",
    "a\\b",
    "ζ",
    "I",
    "ı",
)


def odd_calls() -> list[Trace]:
    """With names that languages sort and fold in their own ways, and with everything missing."""
    calls: list[Trace] = []
    for number, name in enumerate(NAMES):
        at = NOVEMBER + timedelta(milliseconds=700 * number, days=-31 * (number % 2))
        failed = number % 3 == 0
        calls.append(
            ended_call(
                at,
                request_id=f"{name} {number}",
                path=f"/{name}",
                address="" if number % 4 else "10.0.0.1",
                model=name,
                served=name,
                provider=None if number == 5 else f"p-{name}",
                attempts=[Attempt(provider=f"p-{name}", model=name, began=0.0, detail=name)],
                key_id=(None, 7, 10, 9)[number % 4],
                status=502 if failed else 200,
                error='odd "error"' if failed else None,
                message=name if failed else None,
                usage=None if failed else Usage(prompt=number, completion=2 * number),
                seconds=(30.0, 1.5, 0.001)[number % 3],
                prompt=f"Was ist {name}?".encode() if number % 2 else None,
                answer=b"cut \xc3" if number == 3 else None,
            )
        )
    return calls


@pytest.fixture
async def both(tmp_path: Path) -> AsyncGenerator[list[HistoryHandlers]]:
    """The same calls in files, and in a database whose language is not that of bytes."""
    name = "in_turkish"
    server().execute(f"DROP DATABASE IF EXISTS {name}")
    server().execute(
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR'"
    )
    database = await Postgres.open(server().url_of(name))
    await upgrade(database)
    await database.close()
    calls = odd_calls()
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(answering(Histories(tmp_path / "f"), calls)),
            await stack.enter_async_context(
                answering(Histories(tmp_path / "p", server().url_of(name)), calls)
            ),
        ]


LOGS: list[dict[str, Any]] = [
    *({"order_by": f"{sign}{name}"} for sign in ("", "-") for name in ("userAuthId", "id")),
    *({"order_by": name} for name in ("operationName", "-statusCode", "requestDuration", "what")),
    *({"path_info": f"/{name}"} for name in NAMES),
    {"operation_name": "OPENAICHATCOMPLETION"},
    {"ip_address": "10.0.0.1"},
    {"user_auth_id": "10"},
    {"has_response": True},
    {"has_response": False, "with_errors": True},
    {"duration_longer_than": "00:00:00.001", "duration_less_than": "00:00:30"},
    {"before_id": 2**70},
    {"after_id": 2**70},
    {"ids": [-(2**70), 5]},
    {"path_info": "nul \x00"},
    {"path_info": "half \ud800"},
    {"month": NOVEMBER, "skip": 2, "take": 3},
    {"month": datetime(2020, 1, 1, tzinfo=UTC)},
]


async def test_request_logs_are_the_same(both: list[HistoryHandlers]) -> None:
    for members in LOGS:
        files, postgres = [await asked(each, RequestLogs(**members)) for each in both]
        assert postgres == files, members


ORDERS = (
    *("id", "-id", "dateTime", "-dateTime", "traceId", "-traceId", "pathInfo", "-userAuthId"),
    *(
        "requestDuration,traceId",
        "error",
        "-requestBody",
        "meta",
        "referer",
        "-statusCode,pathInfo",
    ),
)
PAIRS: list[dict[str, str]] = [
    *({f"traceId{form}": "B"} for form in ("Contains", "StartsWith", "GreaterThan", "LessThan")),
    *({"pathInfoContains": name} for name in (*NAMES, "Ä", "É", "_", "%", "\\", "i")),
    {"pathInfoLike": "/%e_a"},
    {"pathInfoEndsWith": "PFEL"},
    {"pathInfoBetween": "/a,/c"},
    {"pathInfoIn": "/beta,/ζ"},
    {"idContains": "1"},
    {"ids": f"1,{2**63 - 1},{2**80}"},
    {"idGreaterThan": str(-(2**80))},
    {"statusCodeContains": "50"},
    {"statusCodeFrom": "300"},
    {"requestDurationContains": ".0"},
    {"requestDurationEndsWith": "01"},
    {"requestDurationBetween": "PT0.001S,PT1.5S"},
    {"dateTimeFrom": "2026-11-15T12:00:02.1Z"},
    {"dateTimeContains": "T12:00:0"},
    {"dateTimeLessThan": "2026-11-15T12:00:02.8+00:00"},
    {"errorContains": '\\"error'},
    {"errorIsNull": ""},
    {"refererIsNull": ""},
    {"refererContains": "x"},
    {"headersIsNotNull": ""},
    {"userAuthIdGreaterThan": "10"},
    {"requestBodyContains": "IST B"},
    {"responseBodyIsNotNull": ""},
    {"metaContains": '"asked"'},
    {"metaStartsWith": '{"REQUEST_ID"'},
    {"traceId": "nul \x00"},
]
FIELDS = (
    *("id,traceId", "distinct statusCode", "distinct userAuthId,statusCode", "distinct error"),
    *("distinct referer", "distinct nothing", "distinct requestDuration"),
)


async def test_queries_are_the_same(both: list[HistoryHandlers]) -> None:
    queries = [
        *((AdminQueryRequestLogs(order_by=order), dict[str, str]()) for order in ORDERS),
        *((AdminQueryRequestLogs(order_by="-pathInfo"), pairs) for pairs in PAIRS),
        *((AdminQueryRequestLogs(fields=fields), dict[str, str]()) for fields in FIELDS),
        *((AdminQueryRequestLogs(fields=f, order_by="-pathInfo,id"), {}) for f in FIELDS),
        (AdminQueryRequestLogs(skip=1, take=2), {"statusCode": "200"}),
        (AdminQueryRequestLogs(skip=3, month=datetime(2020, 1, 1, tzinfo=UTC)), {}),
        (AdminQueryRequestLogs(month=NOVEMBER - timedelta(days=31)), {}),
    ]
    for query, pairs in queries:
        whole = msgspec.structs.replace(query, include="total")
        files, postgres = [await asked(each, whole, **pairs) for each in both]
        assert postgres == files, (query, pairs)


async def test_summaries_are_the_same(both: list[HistoryHandlers]) -> None:
    for request in (
        GetSummaryStats(),
        GetSummaryStats(from_=NOVEMBER),
        GetSummaryStats(to=NOVEMBER - timedelta(days=3)),
    ):
        files, postgres = [await asked(each, request) for each in both]
        assert postgres == files
        assert files["modelStats"]
