"""The administrator's work on providers, over HTTP, and what others see of it."""

import asyncio
from typing import Any

import pytest

from aiserver.kit.clock import SystemClock
from aiserver.kit.crypto import Cipher
from aiserver.kit.db import Database
from aiserver.kit.tables import SqliteTables
from aiserver.providers.store import ProviderStore
from fakes.upstream import FakeUpstream
from gateway import TestGateway, running


async def listed(gateway: TestGateway, query: str = "", key: str | None = None) -> list[Any]:
    path = f"/api/QueryAiProviders{query}"
    reply = await (gateway.call("GET", path, key=key) if key else gateway.call("GET", path))
    return reply.json()["results"]


async def names(gateway: TestGateway, query: str = "") -> list[str]:
    return [row["name"] for row in await listed(gateway, query)]


async def test_created_provider_is_shown_without_its_key(gateway: TestGateway) -> None:
    await gateway.provider("mine", "https://host/v1", apiKey="sk-canary-0123456789", priority=2)
    reply = await gateway.call("GET", "/api/QueryAiProviders")
    assert b"canary" not in reply.body
    [row] = reply.json()["results"]
    row.pop("createdDate")
    assert row == {
        "id": 1,
        "name": "mine",
        "apiBaseUrl": "https://host/v1",
        "concurrency": 0,
        "priority": 2,
        "enabled": True,
        "models": [{"model": "fake-model"}],
        "aiTypeId": "Custom",
        "aiType": {
            "id": "Custom",
            "provider": "CustomOpenAiProvider",
            "website": "",
            "apiBaseUrl": "http://localhost:8080",
            "apiModels": {},
        },
        "selectedModels": ["fake-model"],
    }


async def test_upstream_key_is_encrypted_at_rest(gateway: TestGateway) -> None:
    await gateway.provider("mine", "https://host", apiKey="sk-canary-0123456789")
    files = [path.read_bytes() for path in gateway.data.iterdir() if path.is_file()]
    assert not any(b"canary" in content for content in files)


async def test_key_holder_sees_no_address(gateway: TestGateway) -> None:
    await gateway.provider("mine", "https://internal-host", apiKeyHeader="x-internal")
    key = await gateway.key()
    reply = await gateway.call("GET", "/api/GetActiveProviders", key=key)
    assert b"internal" not in reply.body
    assert reply.json()["results"][0]["name"] == "mine"


async def test_disabled_provider_is_listed_but_not_active(gateway: TestGateway) -> None:
    number = await gateway.provider("mine", "https://host")
    body = {"id": number, "enabled": False}
    assert (await gateway.call("PATCH", "/api/UpdateAiProvider", body)).json() == {"id": "1"}
    assert await names(gateway) == ["mine"]
    assert (await gateway.call("GET", "/api/GetActiveProviders")).json()["results"] == []
    assert (await gateway.chat()).status == 404


async def test_update_changes_only_what_is_given(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    number = await gateway.provider("mine", upstream.base_url, apiKey="sk-first-0123456789")
    body = {"id": number, "name": "renamed", "selectedModels": ["a", "b"], "priority": 3}
    assert (await gateway.call("PATCH", "/api/UpdateAiProvider", body)).status == 200
    [row] = await listed(gateway)
    assert (row["name"], row["selectedModels"], row["priority"]) == ("renamed", ["a", "b"], 3)
    assert (await gateway.chat("b")).status == 200
    assert upstream.requests[-1].header("authorization") == "Bearer sk-first-0123456789"
    await gateway.call("PATCH", "/api/UpdateAiProvider?reset=ApiKey", {"id": number})
    await gateway.chat("b")
    assert upstream.requests[-1].header("authorization") is None


@pytest.mark.parametrize("name", ["", "m" * 301])
async def test_model_that_cannot_be_kept_is_refused(gateway: TestGateway, name: str) -> None:
    new = {"name": "x", "aiTypeId": "Custom", "apiBaseUrl": "http://127.0.0.1:1"}
    for models in ({"selectedModels": [name]}, {"models": [{"model": name}]}):
        assert (
            await gateway.call("POST", "/api/CreateAiProvider", {**new, **models})
        ).status == 400
    assert (await gateway.call("GET", "/api/QueryAiProviders")).json()["results"] == []


async def test_deleted_provider_takes_no_more_calls(gateway: TestGateway) -> None:
    number = await gateway.provider("mine", "https://host")
    reply = await gateway.call("DELETE", f"/api/DeleteAiProvider?id={number}")
    assert (reply.status, reply.body) == (204, b"")
    assert (await gateway.chat()).status == 404
    assert (await gateway.call("DELETE", f"/api/DeleteAiProvider?id={number}")).status == 404
    assert (await gateway.call("PATCH", "/api/UpdateAiProvider", {"id": number})).status == 404


@pytest.mark.parametrize(
    ("members", "field", "says"),
    [
        ({"aiTypeId": "Nobody"}, "AiTypeId", "Open AI, OpenRouter"),
        ({"aiTypeId": None}, "AiTypeId", "must not be empty"),
        ({"name": ""}, "Name", "must not be empty"),
        ({"apiBaseUrl": "host"}, "ApiBaseUrl", "must be a URL"),
        ({"apiBaseUrl": "ftp://host"}, "ApiBaseUrl", "must be a URL"),
        ({"apiBaseUrl": "http://user:pass@host"}, "ApiBaseUrl", "must be a URL"),
        ({"apiBaseUrl": "http://host/a b"}, "ApiBaseUrl", "must be a URL"),
        ({"apiBaseUrl": "http://host:99999"}, "ApiBaseUrl", "must be a URL"),
        ({"apiKey": "a\r\nX-Evil: 1"}, "ApiKey", "plain text"),
        ({"apiKeyHeader": "X: 1"}, "ApiKeyHeader", "header name"),
        ({"apiKeyVar": "A B"}, "ApiKeyVar", "variable"),
        ({"concurrency": -1}, "Concurrency", ">= 0"),
        ({"models": [{"model": ""}]}, "Models[0].model", "length >= 1"),
    ],
)
async def test_wrong_value_names_its_field(
    gateway: TestGateway, members: dict[str, Any], field: str, says: str
) -> None:
    body = {"name": "x", "aiTypeId": "Custom", "apiBaseUrl": "https://host"} | members
    reply = await gateway.call("POST", "/api/CreateAiProvider", body)
    assert reply.status == 400
    errors = {error["fieldName"]: error["message"] for error in reply.problem()["errors"]}
    assert says in errors[field]
    assert await listed(gateway) == []


async def test_same_name_is_a_conflict(gateway: TestGateway) -> None:
    await gateway.provider("mine", "https://host")
    other = await gateway.provider("other", "https://host")
    body = {"name": "mine", "aiTypeId": "Custom"}
    assert (await gateway.call("POST", "/api/CreateAiProvider", body)).status == 409
    body = {"id": other, "name": "mine"}
    assert (await gateway.call("PATCH", "/api/UpdateAiProvider", body)).status == 409


async def test_rows_come_in_pages(gateway: TestGateway) -> None:
    for name in ("b", "a", "c"):
        await gateway.provider(name, "https://host")
    assert await names(gateway, "?orderBy=Name") == ["a", "b", "c"]
    assert await names(gateway, "?orderByDesc=name&take=2") == ["c", "b"]
    assert await names(gateway, "?skip=1&take=1") == ["a"]
    assert await names(gateway, "?name=c") == ["c"]
    reply = await gateway.call("GET", "/api/QueryAiProviders?include=total&take=1&skip=1")
    assert (reply.json()["offset"], reply.json()["total"]) == (1, 3)


@pytest.fixture
async def ranked(gateway: TestGateway) -> None:
    """Providers of priority 0 to 3: alpha, beta, gamma, alpha-2."""
    for priority, name in enumerate(("alpha", "beta", "gamma", "alpha-2")):
        await gateway.provider(name, f"https://{name}", priority=priority)


@pytest.mark.usefixtures("ranked")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("nameContains=ALPHA", ["alpha", "alpha-2"]),
        ("name_contains=%25", []),
        ("priority%3E=2", ["gamma", "alpha-2"]),
        ("%3Epriority=2", ["gamma", "alpha-2"]),
        ("priority%3C=1", ["alpha", "beta"]),
        ("%3Cpriority=1", ["alpha"]),
        ("priority%21=1", ["alpha", "gamma", "alpha-2"]),
        ("%3C%3Epriority=1", ["alpha", "gamma", "alpha-2"]),
        ("Ids=1%2C3", ["alpha", "gamma"]),
        ("idIn=%5B1,3%5D&nameStartsWith=g", ["gamma"]),
        ("offlineDateIsNull=&take=1", ["alpha"]),
        ("createdDateAfter=%2FDate%2832503680000000%29%2F", []),
        ("apiBaseUrlContains=beta", ["beta"]),
        ("genericArgs=%5B%5D&priorityFrom=&version=1&take=1", ["alpha"]),
    ],
)
async def test_conditions_follow_the_name(
    gateway: TestGateway, query: str, expected: list[str]
) -> None:
    assert await names(gateway, f"?{query}&orderBy=id") == expected


@pytest.mark.usefixtures("ranked")
async def test_conditions_may_be_in_the_body(gateway: TestGateway) -> None:
    body = {"nameContains": "alpha", "PriorityFrom": 1, "idIn": [1, 4], "meta": {"x": "y"}}
    reply = await gateway.call("POST", "/api/QueryAiProviders?idOver=2", body)
    assert [row["name"] for row in reply.json()["results"]] == ["alpha-2"]


@pytest.mark.usefixtures("ranked")
async def test_answer_holds_the_named_fields_only(gateway: TestGateway) -> None:
    path = "/api/QueryAiProviders?fields=id,Name&include=Total&take=1&orderByDesc=id"
    reply = await gateway.call("GET", path)
    assert reply.json() == {"offset": 0, "total": 4, "results": [{"id": 4, "name": "alpha-2"}]}
    rows = await listed(gateway, "?fields=DISTINCT+aiTypeId")
    assert rows == [{"aiTypeId": "Custom"}]


@pytest.mark.usefixtures("ranked")
async def test_condition_finds_nothing_out_that_is_hidden(gateway: TestGateway) -> None:
    key = await gateway.key()
    assert await listed(gateway, "?apiBaseUrlContains=beta", key) == []
    assert len(await listed(gateway, "?apiBaseUrlIsNull", key)) == 4
    assert await listed(gateway, "?fields=apiBaseUrl&take=1", key) == [{}]


async def test_condition_that_does_not_fit_names_its_field(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/api/QueryAiProviders?priority%3E=high")
    assert reply.status == 400
    assert [error["fieldName"] for error in reply.problem()["errors"]] == ["Priority"]


async def test_key_in_a_variable_is_read_when_it_is_needed(
    gateway: TestGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.provider("mine", upstream.base_url, apiKeyVar="MY_UPSTREAM_KEY")
    reply = await gateway.chat()
    assert reply.status == 502
    assert reply.json()["error"]["code"] == "provider_misconfigured"
    monkeypatch.setenv("MY_UPSTREAM_KEY", "from-the-variable")
    assert (await gateway.chat()).status == 200
    assert upstream.requests[-1].header("authorization") == "Bearer from-the-variable"


async def test_provider_comes_and_goes_with_its_variable(
    tmp_path: Any, migrated: bytes, upstream: FakeUpstream
) -> None:
    variables = {"OPENAI_API_KEY": "sk-from-env-0123456789", "OPENAI_BASE_URL": upstream.base_url}
    data = tmp_path / "data"
    async with running(data, migrated, **variables) as gateway:
        assert await names(gateway) == ["openai"]
        await gateway.app._discovery.renew()
        assert (await gateway.chat()).status == 200
        assert upstream.requests[-1].header("authorization") == "Bearer sk-from-env-0123456789"
        body = {"id": 1, "priority": 7}
        assert (await gateway.call("PATCH", "/api/UpdateAiProvider", body)).status == 200
        for change in ({"apiKey": "x"}, {"name": "x"}):
            reply = await gateway.call("PATCH", "/api/UpdateAiProvider", {"id": 1, **change})
            assert reply.status == 409
        assert (await gateway.call("DELETE", "/api/DeleteAiProvider?id=1")).status == 409
    async with running(data, None, **variables) as gateway:
        assert (await listed(gateway))[0]["priority"] == 7
    async with running(data) as gateway:
        assert await names(gateway) == []


async def test_own_provider_is_not_replaced_by_a_variable(tmp_path: Any, migrated: bytes) -> None:
    data = tmp_path / "data"
    async with running(data, migrated) as gateway:
        await gateway.provider("openai", "https://my-proxy")
    async with running(data, OPENAI_API_KEY="sk-from-env-0123456789") as gateway:
        assert (await listed(gateway))[0]["apiBaseUrl"] == "https://my-proxy"
    async with running(data) as gateway:
        assert await names(gateway) == ["openai"]


async def test_rotated_encryption_is_noticed(gateway: TestGateway, upstream: FakeUpstream) -> None:
    await gateway.provider("mine", upstream.base_url, apiKey="sk-0123456789")
    assert (await gateway.chat()).status == 200
    key_file = gateway.app._data.key_file
    assert key_file is not None
    key_file.add()
    other = Database.open(gateway.data / "app.db")
    cipher = Cipher(*key_file.keys())
    store = ProviderStore(SqliteTables(other), cipher, SystemClock(), lambda _: None)
    assert await store.seal_again() == 1
    key_file.keep_newest()
    other.close()
    await gateway.app._changes.look()
    assert (await gateway.chat()).status == 200
    assert upstream.requests[-1].header("authorization") == "Bearer sk-0123456789"


async def test_lost_encryption_key_is_a_clear_502(
    tmp_path: Any, migrated: bytes, upstream: FakeUpstream
) -> None:
    data = tmp_path / "data"
    async with running(data, migrated) as gateway:
        await gateway.provider("mine", upstream.base_url, apiKey="sk-0123456789")
    (data / "encryption.key").unlink()
    async with running(data) as gateway:
        reply = await gateway.chat()
        assert (reply.status, reply.json()["error"]["code"]) == (502, "provider_misconfigured")


async def test_upstream_that_lists_nothing_is_asked_again(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    upstream.next("reset", "invalid-json", "huge-error")
    await gateway.provider("listing", upstream.base_url, models=None)
    discovery = gateway.app._discovery
    async with asyncio.timeout(5):
        while not discovery.problems:
            await asyncio.sleep(0.01)
    assert "Provider listing" in discovery.problems[1]
    async with asyncio.timeout(5):
        while not await discovery.renew():
            pass
    assert discovery.problems == {}
    assert (await gateway.chat()).status == 200


async def test_changed_variable_moves_its_provider(
    tmp_path: Any, migrated: bytes, upstream: FakeUpstream
) -> None:
    data = tmp_path / "data"
    async with running(data, migrated, OLLAMA_HOST="0.0.0.0:1") as gateway:
        assert (await listed(gateway))[0]["apiBaseUrl"] == "http://127.0.0.1:1"
    async with running(data, OLLAMA_BASE_URL=upstream.base_url) as gateway:
        assert (await listed(gateway))[0]["apiBaseUrl"] == upstream.base_url
