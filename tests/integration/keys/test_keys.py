"""The administrator's work on keys, over HTTP, and how soon it counts."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aiserver.kit.db import Database
from gateway import TestGateway

OWN = "ak-0123456789abcdef0123456789abcdef"


async def listed(gateway: TestGateway, **query: str) -> list[dict[str, Any]]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    return (await gateway.call("GET", f"/api/AdminQueryApiKeys?{text}")).json()["results"]


async def works(gateway: TestGateway, key: str) -> bool:
    return (await gateway.call("GET", "/api/Authenticate", key=key)).status == 200


async def test_created_key_works_at_once(gateway: TestGateway) -> None:
    key = await gateway.key(name="app")
    assert await works(gateway, key)
    reply = await gateway.call("POST", "/api/Authenticate", {}, key=key)
    assert reply.json() == {
        "userId": "1",
        "userName": "app",
        "displayName": "app",
        "roles": [],
        "permissions": [],
        "authProvider": "apikey",
    }


async def test_key_is_listed_without_its_text(gateway: TestGateway) -> None:
    key = await gateway.key(
        name="app",
        notes="for tests",
        scopes=["Admin"],
        restrictTo=["Hello"],
        models=["m"],
        expiryDate="2030-01-01T00:00:00Z",
        refId=7,
        refIdStr="seven",
        meta={"Any_Key": "v"},
    )
    reply = await gateway.call("GET", "/api/AdminQueryApiKeys")
    assert key.encode() not in reply.body
    [row] = reply.json()["results"]
    row.pop("createdDate")
    assert row == {
        "id": 1,
        "name": "app",
        "visibleKey": f"ak-***{key[-3:]}",
        "expiryDate": "2030-01-01T00:00:00Z",
        "scopes": ["Admin"],
        "features": [],
        "restrictTo": ["Hello"],
        "models": ["m"],
        "notes": "for tests",
        "refId": 7,
        "refIdStr": "seven",
        "meta": {"Any_Key": "v"},
        "active": True,
    }


async def test_key_text_is_stored_nowhere(gateway: TestGateway) -> None:
    key = await gateway.key()
    files = [path.read_bytes() for path in gateway.data.iterdir() if path.is_file()]
    assert not any(key.encode() in content or key[3:].encode() in content for content in files)


async def test_keys_are_found_by_what_is_known(gateway: TestGateway) -> None:
    first = await gateway.key(name="alpha", userId="u1")
    await gateway.key(name="beta", notes="alpha too")
    await gateway.key(name="gamma")
    assert [row["name"] for row in await listed(gateway)] == ["alpha", "beta", "gamma"]
    assert [row["name"] for row in await listed(gateway, search="ALPHA")] == ["alpha", "beta"]
    assert [row["name"] for row in await listed(gateway, apiKey=first)] == ["alpha"]
    assert [row["name"] for row in await listed(gateway, userId="u1")] == ["alpha"]
    assert [row["name"] for row in await listed(gateway, id="2")] == ["beta"]
    assert [row["name"] for row in await listed(gateway, orderBy="-name", take="2")] == [
        "gamma",
        "beta",
    ]
    assert [row["name"] for row in await listed(gateway, skip="1", take="1")] == ["beta"]
    assert await listed(gateway, take="-5") == []


async def test_own_text_must_have_the_form(gateway: TestGateway) -> None:
    for wrong in ("ak-1", OWN.upper(), OWN + "0", "sk-" + OWN[3:], "p@ss"):
        reply = await gateway.call("POST", "/api/CreateApiKey", {"key": wrong, "name": "x"})
        assert reply.status == 400
        assert reply.problem()["errors"][0]["fieldName"] == "Key"
    reply = await gateway.call("POST", "/api/CreateApiKey", {"key": OWN, "name": "mine"})
    assert (reply.json()["key"], reply.json()["visibleKey"]) == (OWN, "ak-***def")
    assert await works(gateway, OWN)


async def test_same_text_twice_is_a_conflict(gateway: TestGateway) -> None:
    await gateway.call("POST", "/api/CreateApiKey", {"key": OWN, "name": "mine"})
    reply = await gateway.call("POST", "/api/CreateApiKey", {"key": OWN, "name": "again"})
    assert reply.status == 409
    assert OWN.encode() not in reply.body


async def test_update_changes_only_what_is_given(gateway: TestGateway) -> None:
    await gateway.key(name="app", notes="keep", models=["m"])
    body = {"id": 1, "name": "renamed", "notes": None}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", body)).json() == {}
    [row] = await listed(gateway)
    assert (row["name"], row["notes"], row["models"]) == ("renamed", "keep", ["m"])


async def test_disabled_key_stops_at_once_and_reset_lets_it_in(gateway: TestGateway) -> None:
    key = await gateway.key()
    now = datetime.now(UTC).isoformat()
    await gateway.call("PATCH", "/api/AdminUpdateApiKey", {"id": 1, "cancelledDate": now})
    assert not await works(gateway, key)
    assert (await listed(gateway))[0]["active"] is False
    body = {"id": 1, "reset": ["CancelledDate", "Models"]}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", body)).status == 200
    assert await works(gateway, key)


async def test_reset_in_the_query_clears_too(gateway: TestGateway) -> None:
    await gateway.key(notes="x", refIdStr="y")
    path = "/api/AdminUpdateApiKey?reset=Notes,RefIdStr"
    assert (await gateway.call("PATCH", path, {"id": 1})).status == 200
    [row] = await listed(gateway)
    assert "notes" not in row
    assert "refIdStr" not in row
    reply = await gateway.call("PATCH", "/api/AdminUpdateApiKey?reset=Id", {"id": 1})
    assert reply.problem()["errors"][0]["fieldName"] == "Reset"


async def test_expired_key_is_refused(gateway: TestGateway) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    key = await gateway.key(expiryDate=past)
    reply = await gateway.call("GET", "/api/Authenticate", key=key)
    assert reply.status == 401
    assert "expired" in reply.problem()["message"]


async def test_restricted_key_calls_only_its_operations(gateway: TestGateway) -> None:
    key = await gateway.key(restrictTo=["QueryAiProviders"])
    assert (await gateway.call("GET", "/api/QueryAiProviders", key=key)).status == 200
    reply = await gateway.call("GET", "/api/GetActiveProviders", key=key)
    assert reply.status == 403
    assert "it may call QueryAiProviders" in reply.problem()["message"]


async def test_restriction_must_name_operations(gateway: TestGateway) -> None:
    reply = await gateway.call("POST", "/api/AdminCreateApiKey", {"restrictTo": ["Hello", "Helo"]})
    assert reply.status == 400
    assert "unknown operations: Helo" in reply.problem()["message"]


async def test_deleted_key_is_gone(gateway: TestGateway) -> None:
    key = await gateway.key()
    assert (await gateway.call("DELETE", "/api/AdminDeleteApiKey?id=1")).status == 200
    assert not await works(gateway, key)
    assert (await gateway.call("DELETE", "/api/AdminDeleteApiKey?id=1")).status == 404
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", {"id": 1})).status == 404


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
async def test_number_beyond_the_store_is_refused(gateway: TestGateway, number: int) -> None:
    for method, name, body in (
        ("POST", "CreateApiKey", {"refId": number}),
        ("POST", "AdminCreateApiKey", {"refId": number}),
        ("PATCH", "AdminUpdateApiKey", {"id": number}),
        ("PATCH", "AdminUpdateApiKey", {"id": 1, "refId": number}),
        ("POST", "AdminDeleteApiKey", {"id": number}),
    ):
        assert (await gateway.call(method, f"/api/{name}", body)).status == 400, name


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.9999999Z"])
async def test_first_and_last_dates_are_kept(gateway: TestGateway, date: str) -> None:
    await gateway.key()
    body = {"id": 1, "expiryDate": date}
    assert (await gateway.call("PATCH", "/api/AdminUpdateApiKey", body)).status == 200
    assert (await listed(gateway))[0]["expiryDate"][:10] == date[:10]


async def test_ids_are_never_given_twice(gateway: TestGateway) -> None:
    await gateway.key()
    await gateway.call("DELETE", "/api/AdminDeleteApiKey?id=1")
    await gateway.key()
    assert (await listed(gateway))[0]["id"] == 2


async def test_change_by_another_process_counts_within_a_second(gateway: TestGateway) -> None:
    key = await gateway.key()
    other = Database.open(gateway.data / "app.db")
    await other.write(lambda c: c.execute("UPDATE api_keys SET cancelled = '2026-01-01T00:00:00Z'"))
    await other.write(lambda c: c.execute("UPDATE revisions SET number = number + 1"))
    other.close()
    async with asyncio.timeout(1):
        while await works(gateway, key):
            await asyncio.sleep(0.02)


async def test_last_use_is_kept(gateway: TestGateway) -> None:
    key = await gateway.key()
    await works(gateway, key)
    await gateway.app._keep_last_used()
    assert "lastUsedDate" in (await listed(gateway))[0]


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "authsecret"])
async def test_each_header_carries_a_key(gateway: TestGateway, header: str) -> None:
    key = await gateway.key()
    value = f"bEaReR  {key}" if header == "authorization" else key
    reply = await gateway.call("GET", "/api/Authenticate", key=None, headers={header: value})
    assert reply.status == 200


async def test_administrator_is_named(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/auth")
    assert (reply.json()["userId"], reply.json()["roles"]) == ("0", ["Admin"])
    assert reply.json()["authProvider"] == "authsecret"
