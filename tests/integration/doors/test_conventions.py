"""The conventions that typed clients rely on, at the HTTP surface."""

import csv
import gzip
import io
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aiserver.contract.responses import Wire
from aiserver.doors.encoding import to_csv, to_json, to_php_json
from fakes.upstream import FakeUpstream, status
from gateway import SECRET, TestGateway, running


class Sample(Wire, kw_only=True):
    when: datetime
    span: timedelta
    names: list[str]
    note: str | None = None


SAMPLE = Sample(
    when=datetime(2026, 5, 9, 12, 34, 56, 500_000, tzinfo=UTC),
    span=timedelta(seconds=123.5),
    names=["a", "b"],
)


@pytest.mark.parametrize("base", ["/api/", "/json/reply/", "/json/oneway/"])
@pytest.mark.parametrize("suffix", ["", ".json", "?format=json"])
async def test_every_base_path_reaches_the_operation(
    gateway: TestGateway, base: str, suffix: str
) -> None:
    reply = await gateway.call("POST", f"{base}Hello{suffix}", {"name": "you"})
    assert reply.json() == {"result": "Hello, you!"}


@pytest.mark.parametrize("path", ["/api/Hello[]", "/api/Hello%5B%5D", "/json/reply/Hello[]"])
async def test_batch_answers_in_order(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("POST", path, [{"name": "a"}, {}, {"Name": "c"}], key=None)
    assert [item["result"] for item in reply.json()] == ["Hello, a!", "Hello, World!", "Hello, c!"]
    assert reply.headers["x-autobatch-completed"] == "3"


async def test_batch_stops_at_its_first_error(gateway: TestGateway) -> None:
    reply = await gateway.call("POST", "/api/Hello[]", [{"name": "a"}, {"name": 5}, {}])
    assert reply.status == 400
    assert reply.problem()["meta"] == {"AutoBatchIndex": "1"}
    assert reply.headers["x-autobatch-completed"] == "1"


async def test_batch_of_chats_is_answered(serving: TestGateway, upstream: FakeUpstream) -> None:
    chats = [{"model": "fake-model", "messages": [{"role": "user", "content": c}]} for c in "ab"]
    reply = await serving.call("POST", "/api/OpenAiChatCompletion[]", chats)
    contents = [item["choices"][0]["message"]["content"] for item in reply.json()]
    assert contents == ["echo: a", "echo: b"]
    streamed = [{**chats[0], "stream": True}]
    reply = await serving.call("POST", "/api/OpenAiChatCompletion[]", streamed)
    assert (reply.status, reply.problem()["meta"]) == (400, {"AutoBatchIndex": "0"})


CHATS = [{"model": "fake-model", "messages": [{"role": "user", "content": c}]} for c in "aab"]


@pytest.mark.parametrize("operation", ["OpenAiChatCompletion", "QueueOpenAiChatCompletion"])
async def test_batch_with_a_key_runs_each_of_its_calls_once(
    serving: TestGateway, operation: str
) -> None:
    items = [{"request": chat} for chat in CHATS] if operation.startswith("Q") else CHATS
    path, keyed = f"/api/{operation}[]", {"idempotency-key": "k" * 255}
    first = await serving.call("POST", path, items, headers=keyed)
    again = await serving.call("POST", path, items, headers=keyed)
    alone = await serving.call("POST", path[:-2], items[0], headers=keyed)
    assert [first.status, again.status, alone.status] == [200, 200, 200]
    assert "idempotency-replayed" not in {**first.headers, **alone.headers}
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json() == again.json()
    assert set(first.json()[0]) == set(alone.json())
    assert await serving.rows("SELECT COUNT(*) FROM jobs") == [(4,)]
    more = await serving.call("POST", path, [*items, items[0]], headers=keyed)
    assert "idempotency-replayed" not in more.headers
    assert more.json()[:3] == first.json()
    other = await serving.call("POST", path, [items[0], items[2]], headers=keyed)
    assert (other.status, other.problem()["meta"]["AutoBatchIndex"]) == (409, "1")
    assert "idempotency-replayed" not in other.headers


@pytest.mark.parametrize("prefer", ["respond-async", "wait=5"])
async def test_batch_knows_no_preference(serving: TestGateway, prefer: str) -> None:
    path, headers = "/api/OpenAiChatCompletion[]", {"prefer": prefer}
    reply = await serving.call("POST", path, CHATS, headers=headers)
    assert (reply.status, reply.problem()["errorCode"]) == (400, "ArgumentException")
    assert "Prefer" in reply.problem()["message"]
    path, items = "/api/QueueOpenAiChatCompletion[]", []
    assert (await serving.call("POST", path, items, headers=headers)).status == 200
    assert await serving.rows("SELECT COUNT(*) FROM jobs") == [(0,)]


async def test_batch_of_sign_ins_keeps_the_last_session(gateway: TestGateway) -> None:
    item = {"provider": "credentials", "userName": "Admin", "password": SECRET}
    reply = await gateway.call("POST", "/api/Authenticate[]", [item], key=None)
    assert reply.status == 200, reply.body
    assert "cookies" not in reply.json()[0]
    assert reply.headers["set-cookie"]


async def test_preferences_of_all_header_lines_count(serving: TestGateway) -> None:
    chat = json.dumps(CHATS[0]).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
        "Prefer: handling=lenient\r\nPrefer: respond-async\r\nConnection: close\r\n"
        f"Content-Length: {len(chat)}\r\n\r\n"
    )
    assert (await serving.raw(head.encode() + chat)).startswith(b"HTTP/1.1 202 ")


async def test_failure_that_is_told_again_says_so_in_a_header(
    serving: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next(status(400, {"error": {"message": "no"}}))
    path, keyed = "/v1/chat/completions", {"idempotency-key": "f"}
    replies = [await serving.call("POST", path, CHATS[0], headers=keyed) for _ in range(2)]
    assert [reply.status for reply in replies] == [400, 400]
    assert [reply.headers.get("idempotency-replayed") for reply in replies] == [None, "true"]
    assert len(upstream.requests) == 1


async def test_batch_is_bounded_and_an_array(gateway: TestGateway) -> None:
    assert (await gateway.call("POST", "/api/Hello[]", [{}] * 1001)).status == 400
    assert (await gateway.call("POST", "/api/Hello[]", {})).status == 400
    assert (await gateway.call("POST", "/api/Hello[]", [5])).status == 400
    assert (await gateway.call("POST", "/api/Hello", [{}])).status == 400
    assert (await gateway.call("GET", "/api/Hello[]")).status == 405
    assert (await gateway.call("POST", "/api/Hello[]", [])).json() == []


async def test_rows_come_as_csv(gateway: TestGateway) -> None:
    await gateway.provider("b,c", "https://host")
    await gateway.provider("=cmd()", "https://host")
    for path in ("/api/QueryAiProviders.csv", "/api/QueryAiProviders?format=csv"):
        reply = await gateway.call("GET", path)
        assert reply.headers["content-type"] == "text/csv; charset=utf-8"
        rows = list(csv.DictReader(io.StringIO(reply.body.decode())))
        assert [row["name"] for row in rows] == ["b,c", "'=cmd()"]
        assert json.loads(rows[0]["models"]) == [{"model": "fake-model"}]
        assert rows[0]["enabled"] == "true"
    reply = await gateway.call("GET", "/api/Hello.csv?name=x")
    assert reply.body == b'result\r\n"Hello, x!"\r\n'


async def test_batch_of_chats_comes_in_every_form(serving: TestGateway) -> None:
    chat = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}
    plain = (await serving.call("POST", "/api/OpenAiChatCompletion[]", [chat, chat])).json()
    reply = await serving.call("POST", "/api/OpenAiChatCompletion[]?format=csv", [chat, chat])
    assert (reply.status, reply.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    rows = list(csv.DictReader(io.StringIO(reply.body.decode())))
    assert [json.loads(row["choices"]) for row in rows] == [each["choices"] for each in plain]
    php = {"user-agent": "servicestack/php"}
    reply = await serving.call("POST", "/api/OpenAiChatCompletion[]", [chat], headers=php)
    assert reply.json()[0]["choices"] == plain[0]["choices"]


@pytest.mark.parametrize("path", ["/api/Hello.xml", "/api/Hello.", "/api/Hello?format=yaml"])
async def test_unknown_format_is_refused(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("GET", path)
    assert reply.status in (400, 404) or path.endswith(".")
    if path.endswith("yaml"):
        assert "use json or csv" in reply.problem()["message"]


def test_times_are_written_for_every_client_but_php() -> None:
    assert json.loads(to_json(SAMPLE)) == {
        "when": "2026-05-09T12:34:56.500000Z",
        "span": "PT123.5S",
        "names": ["a", "b"],
    }
    assert json.loads(to_php_json(SAMPLE)) == {
        "when": "/Date(1778330096500)/",
        "span": "PT124S",
        "names": ["a", "b"],
    }
    assert to_csv(SAMPLE).splitlines()[0] == b"when,span,names"


async def test_php_client_gets_its_own_dates(gateway: TestGateway) -> None:
    await gateway.key()
    reply = await gateway.call(
        "GET", "/api/AdminQueryApiKeys", headers={"user-agent": "servicestack/php"}
    )
    assert reply.json()["results"][0]["createdDate"].startswith("/Date(")
    reply = await gateway.call("GET", "/api/AdminQueryApiKeys")
    assert reply.json()["results"][0]["createdDate"].endswith("Z")


async def test_answers_are_compressed_only_when_asked(gateway: TestGateway) -> None:
    for number in range(20):
        await gateway.key(name=f"key {number}")
    plain = await gateway.call("GET", "/api/AdminQueryApiKeys")
    assert "content-encoding" not in plain.headers
    packed = await gateway.call(
        "GET", "/api/AdminQueryApiKeys", headers={"accept-encoding": "gzip, deflate"}
    )
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    for refusal in ("identity", "gzip;q=0", "deflate, gzip; q=0.0, br"):
        reply = await gateway.call(
            "GET", "/api/AdminQueryApiKeys", headers={"accept-encoding": refusal}
        )
        assert "content-encoding" not in reply.headers
    small = await gateway.call("GET", "/api/Hello", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers


@pytest.fixture
async def shared(tmp_path: Path, migrated: bytes) -> AsyncGenerator[TestGateway]:
    """A gateway that pages of one other origin may call."""
    origins = "https://app.example.com, https://other.example.com/"
    async with running(tmp_path / "data", migrated, CORS_ORIGINS=origins) as opened:
        yield opened


async def test_allowed_origin_may_call_with_a_key(shared: TestGateway) -> None:
    origin = {"origin": "https://app.example.com"}
    reply = await shared.call("OPTIONS", "/v1/chat/completions", key=None, headers=origin)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "Authorization" in reply.headers["access-control-allow-headers"]
    assert "PATCH" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in reply.headers
    for path, code in (("/api/Hello", 200), ("/api/AdminQueryApiKeys", 401)):
        reply = await shared.call("GET", path, key=None, headers=origin)
        assert reply.status == code
        assert reply.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_star_lets_any_site_read_without_credentials(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, CORS_ORIGINS="*") as gateway:
        key = await gateway.key()
        for origin in ("https://app.example.com", "null"):
            headers = {"origin": origin}
            for reply in (
                await gateway.call("OPTIONS", "/v1/models", key=None, headers=headers),
                await gateway.call("GET", "/v1/models", key=key, headers=headers),
                await gateway.call("GET", "/v1/models", key="wrong", headers=headers),
            ):
                assert reply.headers["access-control-allow-origin"] == "*"
                assert "access-control-allow-credentials" not in reply.headers


async def test_other_origin_learns_nothing(shared: TestGateway, gateway: TestGateway) -> None:
    origin = {"origin": "https://evil.example.com"}
    for server in (shared, gateway):
        for verb in ("OPTIONS", "GET"):
            reply = await server.call(verb, "/api/Hello", key=None, headers=origin)
            assert "access-control-allow-origin" not in reply.headers


async def test_kebab_path_of_ruby_reaches_the_operation(gateway: TestGateway) -> None:
    reply = await gateway.call("POST", "/query-ai-providers", {})
    assert reply.json()["results"] == []
    assert (await gateway.call("POST", "/query-ai-nothing", {})).status == 404
    assert (await gateway.call("GET", "/query-ai-providers")).status == 404


async def test_any_verb_runs_an_operation_with_a_key(gateway: TestGateway) -> None:
    for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert (await gateway.call(verb, "/api/QueryAiProviders", {})).status == 200
