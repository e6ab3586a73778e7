"""Requests of typed clients, byte by byte, and what each needs to find in the answer."""

import gzip
import json
import re
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiserver.contract.operation import GET, Access, Call, operation
from aiserver.contract.registry import Registry
from aiserver.contract.responses import Wire
from aiserver.dispatch import Dispatch
from fakes.upstream import FakeUpstream
from gateway import SECRET, TestGateway

REQUESTS = Path(__file__).parents[1] / "fixtures" / "requests"
CLIENTS = (
    "csharp-api",
    "csharp-service",
    "dart",
    "java",
    "javascript",
    "php",
    "python",
    "ruby",
    "swift",
)
MODEL = "mixtral:8x22b"
QUESTION = "What's the capital of France?"
ON_THE_WIRE = {
    "model": MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 50,
}
WRONG = "ak-00000000000000000000000000000000"
ODD_NAMES = {"WWW-Authenticate"}


class Answer(NamedTuple):
    """What came back, with the names of headers as they were written."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def every(self, name: str) -> list[str]:
        return [value for written, value in self.headers if written == name]

    def json(self) -> Any:
        assert self.every("Content-Type") == ["application/json; charset=utf-8"]
        return json.loads(self.body)

    def problem(self) -> Any:
        return self.json()["responseStatus"]


def read_answer(said: bytes) -> Answer:
    head, _, body = said.partition(b"\r\n\r\n")
    if head == b"HTTP/1.1 100 Continue":
        return read_answer(body)
    line, *rest = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (item.partition(": ") for item in rest)]
    return Answer(int(line.split(" ")[1]), headers, body)


def filled(name: str, **values: str) -> bytes:
    sent = (REQUESTS / f"{name}.http").read_bytes()
    for placeholder, value in values.items():
        sent = sent.replace(b"{%b}" % placeholder.encode(), value.encode())
    return sent


def check(answer: Answer, sent: bytes) -> None:
    """What every answer owes every client, whatever it says."""
    for name, _ in answer.headers:
        assert name == name.title() or name in ODD_NAMES, name
    once = [name for name, _ in answer.headers if name != "Set-Cookie"]
    assert len(once) == len(set(once))
    assert answer.every("Transfer-Encoding") == []
    assert answer.every("Location") == []
    if answer.status == 204:
        assert answer.body == b""
        assert answer.every("Content-Type") == answer.every("Content-Length") == []
    else:
        assert answer.every("Content-Length") == [str(len(answer.body))]
    if b"gzip" not in sent:
        assert answer.every("Content-Encoding") == []


async def send(
    gateway: TestGateway, name: str, *, version: bytes = b"1.1", **values: str
) -> Answer:
    """The request of that file; a compressed answer is unpacked."""
    sent = filled(name, host=f"127.0.0.1:{gateway.port}", **values)
    answer = read_answer(
        await gateway.raw(sent.replace(b" HTTP/1.1\r\n", b" HTTP/%b\r\n" % version))
    )
    check(answer, sent)
    if answer.every("Content-Encoding") == ["gzip"]:
        return answer._replace(body=gzip.decompress(answer.body))
    return answer


async def say(gateway: TestGateway, line: str, *headers: str, body: bytes = b"") -> Answer:
    """A request of our own, for what no single client shows."""
    length = (f"Content-Length: {len(body)}",) if body else ()
    lines = [f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, *length, "", ""]
    sent = "\r\n".join(lines).encode() + body
    answer = read_answer(await gateway.raw(sent))
    check(answer, sent)
    return answer


@pytest.fixture
async def mixtral(gateway: TestGateway, upstream: FakeUpstream) -> TestGateway:
    """A gateway whose one provider, of id 1, lists the model that introductions ask for."""
    await gateway.provider("fake", upstream.base_url, models=[{"model": MODEL}])
    return gateway


@pytest.fixture
async def six(gateway: TestGateway) -> TestGateway:
    """A gateway with providers a to f, of ids 1 to 6: more rows than fit an answer left plain."""
    models = [{"model": "fake-model"}, {"model": "m" * 100}]
    for name in "abcdef":
        await gateway.provider(name, "http://127.0.0.1:9", models=models)
    return gateway


@pytest.mark.parametrize("path", sorted(REQUESTS.glob("*.http")), ids=lambda path: path.stem)
def test_request_is_whole(path: Path) -> None:
    sent = filled(path.stem, host="x", key=WRONG, session="x")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert re.search(rb"\r\nConnection: close(\r\n|$)", head, re.IGNORECASE)
    lengths = re.findall(rb"\r\nContent-Length: (\d+)", head, re.IGNORECASE)
    assert [int(length) for length in lengths] == ([len(body)] if body or lengths else [])
    assert not re.search(rb"\{\w+\}", head)


def test_every_request_says_where_it_is_from() -> None:
    text = (REQUESTS / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    patterns = [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row[0])]
    names = sorted(path.name for path in REQUESTS.glob("*.http"))
    assert [n for n in names if sum(fnmatch(n, p) for p in patterns) != 1] == []
    assert [p for p in patterns if not any(fnmatch(n, p) for n in names)] == []
    origins = {row[-1].rstrip(" |") for row in rows}
    assert origins == {"recorded", "laid out after a recording", "read"}


@pytest.mark.parametrize("client", CLIENTS)
async def test_chat_of_each_client_arrives(
    mixtral: TestGateway, upstream: FakeUpstream, client: str
) -> None:
    answer = await send(mixtral, f"{client}-chat", key=await mixtral.key())
    assert answer.status == 200
    assert upstream.requests[-1].json() == ON_THE_WIRE
    [choice] = answer.json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": f"echo: {QUESTION}"}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert isinstance(answer.json()["usage"]["total_tokens"], int)


@pytest.mark.parametrize("name", [*(f"{client}-query" for client in CLIENTS), "java-get"])
async def test_query_of_each_client_finds_its_rows(six: TestGateway, name: str) -> None:
    answer = await send(six, name, key=await six.key())
    assert answer.status == 200
    page = answer.json()
    assert [row["name"] for row in page["results"]] == ["e", "d", "c", "b"]
    assert (page["offset"], page["total"]) == (0, 5)
    row = page["results"][0]
    assert (row["id"], row["enabled"], row["models"][0]) == (5, True, {"model": "fake-model"})
    assert row["aiType"]["provider"] == "CustomOpenAiProvider"
    date = r"/Date\(\d{13}\)/" if name == "php-query" else r"\d{4}-\d\d-\d\dT[\d:]{8}(\.\d{6})?Z"
    assert re.fullmatch(date, row["createdDate"])
    assert len(answer.body) > 1400


@pytest.mark.parametrize("client", CLIENTS)
async def test_call_without_an_answer_is_a_204(mixtral: TestGateway, client: str) -> None:
    key = await mixtral.key(scopes=["Admin"])
    assert (await send(mixtral, f"{client}-delete", key=key)).status == 204
    assert (await mixtral.call("GET", "/api/QueryAiProviders")).json()["results"] == []
    again = await send(mixtral, f"{client}-delete", key=key)
    assert (again.status, again.problem()["errorCode"]) == (404, "NotFound")


@pytest.mark.parametrize("client", CLIENTS)
async def test_wrong_key_is_told_to_each_client(
    mixtral: TestGateway, upstream: FakeUpstream, client: str
) -> None:
    for call in ("chat", "query", "delete"):
        answer = await send(mixtral, f"{client}-{call}", key=WRONG)
        assert answer.status == 401
        assert answer.problem() == {"errorCode": "Unauthorized", "message": "Invalid API Key"}
    assert upstream.requests == []


@pytest.mark.parametrize("client", CLIENTS)
async def test_wrong_field_is_named_to_each_client(mixtral: TestGateway, client: str) -> None:
    answer = await send(mixtral, f"{client}-invalid", key=await mixtral.key())
    message = "'Messages' must not be empty."
    assert answer.status == 400
    assert answer.problem() == {
        "errorCode": "NotEmpty",
        "message": message,
        "errors": [{"errorCode": "NotEmpty", "fieldName": "Messages", "message": message}],
    }


async def test_chat_in_javas_query_arrives(mixtral: TestGateway, upstream: FakeUpstream) -> None:
    answer = await send(mixtral, "java-get-max-tokens", key=await mixtral.key())
    assert answer.status == 200
    assert upstream.requests[-1].json() == ON_THE_WIRE


async def test_java_signs_in_and_acts_with_its_cookie(six: TestGateway) -> None:
    answer = await send(six, "java-signin", key=await six.key())
    assert answer.status == 200
    cookies = answer.every("Set-Cookie")
    assert [cookie.split("=")[0] for cookie in cookies] == ["ss-id", "ss-pid", "ss-opt"]
    assert not any("," in cookie for cookie in cookies)
    session = answer.json()["sessionId"]
    assert cookies[0].startswith(f"ss-id={session};")
    answer = await send(six, "java-session", session=session)
    assert (answer.status, len(answer.json()["results"])) == (200, 6)
    assert (await send(six, "java-session", session="other")).status == 401


@pytest.mark.parametrize("header", ["Authorization: Bearer", "X-Api-Key:", "authsecret:"])
async def test_secret_opens_everything_in_each_header(gateway: TestGateway, header: str) -> None:
    key = await gateway.key()
    for path in ("/api/AdminQueryApiKeys", "/api/QueryAiProviders", "/auth"):
        assert (await say(gateway, f"GET {path}", f"{header} {SECRET}")).status == 200
        answer = await say(gateway, f"GET {path}", f"{header} {key}")
        if path == "/api/AdminQueryApiKeys":
            assert (answer.status, answer.problem()["errorCode"]) == (401, "Unauthorized")
            assert answer.problem()["message"].startswith("Not Authenticated")
        else:
            assert answer.status == 200


@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_session_ends_by_either_verb(gateway: TestGateway, verb: str) -> None:
    answer = await send(gateway, "java-signin", key=await gateway.key())
    cookie = f"Cookie: ss-id={answer.json()['sessionId']}"
    assert (await say(gateway, "GET /auth", cookie)).status == 200
    ended = await say(gateway, f"{verb} /auth/logout", cookie)
    assert (ended.status, len(ended.every("Set-Cookie"))) == (200, 3)
    assert (await say(gateway, "GET /auth", cookie)).status == 401


@pytest.mark.parametrize("call", ["chat", "query", "delete", "invalid"])
async def test_http_1_0_is_answered_whole(mixtral: TestGateway, call: str) -> None:
    key = await mixtral.key(scopes=["Admin"])
    answer = await send(mixtral, f"php-{call}", key=key, version=b"1.0")
    assert answer.status == {"chat": 200, "query": 200, "delete": 204, "invalid": 400}[call]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_stream_is_chunked_where_http_knows_chunks(
    serving: TestGateway, version: str
) -> None:
    body = b'{"model":"fake-model","messages":[{"role":"user","content":"x"}],"stream":true}'
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {await serving.key()}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = read_answer(await serving.raw(head.encode() + body))
    assert answer.status == 200
    assert answer.every("Content-Length") == []
    if version == "1.0":
        assert answer.every("Transfer-Encoding") == []
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        assert answer.every("Transfer-Encoding") == ["chunked"]
        assert answer.body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_chat_that_comes_in_chunks_arrives(
    mixtral: TestGateway, upstream: FakeUpstream
) -> None:
    sent = filled("dart-chat", host="x", key=await mixtral.key())
    head, _, body = sent.partition(b"\r\n\r\n")
    head = re.sub(rb"(?i)content-length: \d+", b"transfer-encoding: chunked", head)
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:]))
    answer = read_answer(await mixtral.raw(head + b"\r\n\r\n" + pieces + b"0\r\n\r\n"))
    assert answer.status == 200
    assert upstream.requests[-1].json() == ON_THE_WIRE


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/OpenAiChatCompletion"])
async def test_schema_of_a_tool_arrives_unchanged(
    serving: TestGateway, upstream: FakeUpstream, path: str
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "maxTokens": {"type": "integer", "MaxLength": 1},
            "max_tokens": {"type": "integer", "maxLength": 2},
            "MaxTokens": {"type": "integer", "max_length": 3},
            "Messages": {"type": "array", "items": {"ToolCalls": None, "tool_calls": {}}},
        },
        "required": ["maxTokens", "max_tokens", "MaxTokens"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    called = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
        {"role": "user", "content": "x"},
    ]
    body = {"model": "fake-model", "messages": messages, "tools": tools, "maxTokens": 5}
    reply = await serving.call("POST", path, body)
    assert reply.status == 200
    arrived = upstream.requests[-1].json()
    assert json.dumps(arrived.pop("tools")) == json.dumps(tools)
    assert arrived == {"model": "fake-model", "messages": messages, "max_tokens": 5}


@pytest.mark.parametrize(
    "written", ["caf\u00e9 \u20ac \U0001f600".encode(), rb"caf\u00e9 \u20ac \ud83d\ude00"]
)
async def test_letters_arrive_escaped_or_not(
    serving: TestGateway, upstream: FakeUpstream, written: bytes
) -> None:
    body = b'{"model":"fake-model","messages":[{"role":"user","content":"%b"}]}' % written
    reply = await serving.call("POST", "/api/OpenAiChatCompletion", body)
    content = "caf\u00e9 \u20ac \U0001f600"
    assert upstream.requests[-1].json()["messages"][0]["content"] == content
    assert reply.json()["choices"][0]["message"]["content"] == f"echo: {content}"


@pytest.mark.parametrize(
    "accept",
    [(), ("Accept: application/json",), ("Accept: */*",), ("Accept: text/html, */*;q=0.8",)],
)
@pytest.mark.parametrize("path", ["/api/Hello", "/hello/World", "/hello", "/json/reply/Hello"])
async def test_json_is_answered_whatever_is_accepted(
    gateway: TestGateway, path: str, accept: tuple[str, ...]
) -> None:
    answer = await say(gateway, f"GET {path}", *accept)
    assert (answer.status, answer.json()) == (200, {"result": "Hello, World!"})


@pytest.mark.parametrize(
    ("verb", "result"),
    [("GET", "query"), ("DELETE", "query"), ("POST", "body"), ("PUT", "body"), ("PATCH", "body")],
)
async def test_verb_says_where_values_are(gateway: TestGateway, verb: str, result: str) -> None:
    answer = await say(gateway, f"{verb} /api/Hello?name=query", body=b'{"name":"body"}')
    assert answer.json() == {"result": f"Hello, {result}!"}
    answer = await say(gateway, f"{verb} /api/Hello?name=query", "Content-Type: application/json")
    assert answer.json() == {"result": "Hello, query!"}


async def test_route_fills_its_members_in_any_case(gateway: TestGateway) -> None:
    answer = await say(gateway, "GET /hello/caf%C3%A9%20x?NAME=other")
    assert answer.json() == {"result": "Hello, caf\u00e9 x!"}


@pytest.mark.parametrize("base", ["/api/", "/json/reply/", "/json/oneway/"])
@pytest.mark.parametrize("verb", ["GET", "POST", "DELETE"])
async def test_unknown_operation_is_told_as_an_error(
    gateway: TestGateway, verb: str, base: str
) -> None:
    answer = await say(gateway, f"{verb} {base}Nobody", "Accept: application/json")
    assert answer.status == 404
    assert answer.problem() == {
        "errorCode": "NotFound",
        "message": "There is no operation 'Nobody'.",
    }


@pytest.mark.parametrize(
    "path",
    ["/api/Hello/", "/api//Hello", "//api/Hello", "/hello/", "/v1/models/", "/auth/", "/api"],
)
async def test_no_call_is_sent_elsewhere(gateway: TestGateway, path: str) -> None:
    for verb in ("GET", "POST"):
        answer = await say(gateway, f"{verb} {path}", "Authorization: Basic eDp5")
        assert answer.status < 300 or answer.status >= 400


class JobState(Enum):
    QUEUED = "Queued"


class TaskType(IntEnum):
    SPEECH_TO_TEXT = 8


class ShowFormsResponse(Wire, kw_only=True, omit_defaults=False):
    job_state: JobState = JobState.QUEUED
    task_type: TaskType = TaskType.SPEECH_TO_TEXT
    created: datetime
    whole: datetime
    duration: timedelta
    count: int = 7
    id: str = "7"
    ratio: float = 2.0
    names: list[str]
    nothing: str | None = None
    arguments: dict[str, Any]


@operation(tag="T", verbs=GET, access=Access.OPEN, returns=ShowFormsResponse)
class ShowForms(Wire, kw_only=True):
    """Answers one value of every kind."""


async def show_forms(request: ShowForms, call: Call) -> ShowFormsResponse:
    return ShowFormsResponse(
        job_state=JobState("Queued"),
        created=datetime(2026, 5, 9, 12, 34, 56, 123_456, tzinfo=UTC),
        whole=datetime(2026, 5, 9, 12, 34, 56, tzinfo=UTC),
        duration=timedelta(seconds=1.5),
        names=[],
        arguments={"Max_Tokens": 1, "maxTokens": 2, "max_tokens": {"PascalCase": 3}},
    )


@operation(tag="T", verbs=GET, access=Access.OPEN, returns=None)
class Fail(Wire, kw_only=True):
    """Fails."""


async def fail(request: Fail, call: Call) -> None:
    raise ValueError("canary")


@pytest.fixture
def showing(gateway: TestGateway) -> TestGateway:
    registry = Registry({ShowForms: show_forms, Fail: fail})
    door = gateway.app.gateway
    door._registry, door._dispatch = (
        registry,
        Dispatch(registry, gateway.app._ring, gateway.app.settlement),
    )
    return gateway


FORMS = (
    '{"jobState":"Queued","taskType":8,"created":%s,"whole":%s,"duration":"%s",'
    '"count":7,"id":"7","ratio":2.0,"names":[],"nothing":null,'
    '"arguments":{"Max_Tokens":1,"maxTokens":2,"max_tokens":{"PascalCase":3}}}'
)
PLAIN = FORMS % ('"2026-05-09T12:34:56.123456Z"', '"2026-05-09T12:34:56Z"', "PT1.5S")
PHP = FORMS % ('"/Date(1778330096123)/"', '"/Date(1778330096000)/"', "PT2S")


@pytest.mark.parametrize(
    ("agent", "written"),
    [("servicestack/php", PHP), ("ServiceStack/php 2", PLAIN), ("node", PLAIN)],
)
async def test_values_are_written_as_clients_read_them(
    showing: TestGateway, agent: str, written: str
) -> None:
    answer = await say(showing, "GET /api/ShowForms", f"User-Agent: {agent}")
    assert answer.json()
    assert answer.body.decode() == written


async def test_failure_of_the_server_is_told_as_an_error(showing: TestGateway) -> None:
    answer = await say(showing, "POST /api/Fail", "X-Request-Id: trace-1")
    assert answer.status == 500
    assert set(answer.problem()) == {"errorCode", "message"}
    assert answer.problem()["errorCode"]
    assert "trace-1" in answer.problem()["message"]
    assert b"canary" not in answer.body
