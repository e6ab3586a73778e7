"""Who may read /metrics."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from aiserver.contract.errors import Unauthenticated
from aiserver.doors.metrics import Metrics
from aiserver.keys.access import Credentials
from aiserver.kit.telemetry import Telemetry
from aiserver.settings.casts import secret
from gateway import SECRET, TestGateway, running
from postgres import server

TOKEN = "scrape-0123456789-0123456789"


def page(*, token: str | None = TOKEN) -> Metrics:
    def is_admin(credentials: Credentials) -> bool:
        return credentials.bearer == "admin"

    return Metrics(
        Telemetry(version="1", operations=["Chat"]),
        token=None if token is None else secret(token),
        is_admin=is_admin,
    )


async def scrape(metrics: Metrics, client: str, **headers: str) -> tuple[int, bytes, Any]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:5006", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    scope: dict[str, Any] = {"type": "http", "client": (client, 5), "headers": raw}
    await metrics.pages()["/metrics"](scope, send, [(b"X-Request-Id", b"r")])
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


@pytest.mark.parametrize("shown", ["Bearer admin", f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
async def test_administrator_and_token_read_it(shown: str) -> None:
    status, body, headers = await scrape(page(), "203.0.113.9", authorization=shown)
    assert status == 200
    assert b"aiserver_build_info" in body
    assert headers[b"Content-Type"].startswith(b"text/plain; version=")
    assert headers[b"X-Request-Id"] == b"r"


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost:5006", "127.0.0.1", "[::1]:5006"])
async def test_this_machine_reads_it(client: str, host: str) -> None:
    assert (await scrape(page(), client, host=host))[0] == 200


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("203.0.113.9", {}),
        ("10.0.0.1", {}),
        ("not-an-address", {}),
        ("203.0.113.9", {"authorization": "Bearer wrong"}),
        ("203.0.113.9", {"authorization": f"Basic {TOKEN}"}),
        ("127.0.0.1", {"x_forwarded_for": "203.0.113.9"}),
        ("127.0.0.1", {"x_forwarded_proto": "https"}),
        ("127.0.0.1", {"x_real_ip": "127.0.0.1"}),
        ("127.0.0.1", {"forwarded": "for=203.0.113.9"}),
        ("127.0.0.1", {"via": "1.1 proxy"}),
        ("127.0.0.1", {"origin": "https://example.com"}),
        ("127.0.0.1", {"host": "example.com"}),
        ("127.0.0.1", {"host": ""}),
    ],
)
async def test_nobody_else_reads_it(client: str, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="METRICS_TOKEN"):
        await scrape(page(), client, **headers)


@pytest.mark.parametrize("token", [None, ""])
async def test_token_that_is_not_set_opens_nothing(token: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await scrape(page(token=token), "203.0.113.9", authorization="Bearer ")


async def test_gateway_counts_its_calls(serving: TestGateway) -> None:
    assert (await serving.chat()).status == 200
    reply = await serving.call("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    assert 'provider="fake"' in text
    assert "fake-model" not in text


async def test_gateway_refuses_who_comes_through_a_proxy(serving: TestGateway) -> None:
    through = {"X-Forwarded-For": "203.0.113.9"}
    refused = await serving.call("GET", "/metrics", key=None, headers=through)
    assert refused.status == 401
    assert refused.problem()["errorCode"] == "Unauthorized"
    assert (await serving.call("GET", "/metrics", key=SECRET, headers=through)).status == 200
    assert (await serving.call("GET", "/metrics", key=None)).status == 200
    key = await serving.key()
    assert (await serving.call("GET", "/metrics", key=key, headers=through)).status == 401


async def test_scrapes_of_several_processes_are_told_apart(tmp_path: Path, migrated: bytes) -> None:
    shared = {"DATABASE_URL": server().fresh_database(), "ENCRYPTION_KEY": "0" * 64}
    async with running(tmp_path / "data", migrated, WORKERS="2", **shared) as gateway:
        reply = await gateway.call("GET", "/metrics")
    lines = [line for line in reply.body.splitlines() if not line.startswith(b"#")]
    assert len(lines) > 20
    assert all(b'process="1"' in line for line in lines)
    # A scraper that kept its connection would see one of them for ever.
    assert reply.headers["connection"] == "close"


async def test_only_process_has_no_label(gateway: TestGateway) -> None:
    assert b"process=" not in (await gateway.call("GET", "/metrics")).body
