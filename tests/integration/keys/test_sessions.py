"""Sessions: signing in and out, what a cookie may do, and what another site's page may not."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aiserver.contract.caller import ADMINISTRATOR
from aiserver.contract.errors import TooBusy
from aiserver.contract.operation import Access, Content
from aiserver.keys import sessions as sessions_module
from aiserver.keys.sessions import REMEMBERED, Sessions
from aiserver.keys.signin import MOST_ADDRESSES, MOST_FAILURES, WINDOW_SECONDS, SignInLimit
from aiserver.kit.tables import Tables
from gateway import SECRET, Reply, TestGateway, running

SIGN_IN = "/api/Authenticate"

# What a caller without a key may ask for.
UNKEYED = (Access.OPEN, Access.CATALOGUE)


async def sign_in(gateway: TestGateway, password: str, **members: Any) -> Reply:
    body = {"provider": "credentials", "userName": "Ann", "password": password, **members}
    return await gateway.call("POST", SIGN_IN, body, key=None)


def cookies_of(reply: Reply) -> dict[str, str]:
    """Name to value; the client joins several Set-Cookie headers with a comma."""
    parts = reply.headers["set-cookie"].split(", ")
    return dict(part.split(";")[0].split("=", 1) for part in parts)  # pyright: ignore[reportReturnType]


async def session(gateway: TestGateway, password: str) -> dict[str, str]:
    jar = cookies_of(await sign_in(gateway, password))
    return {"cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}


async def test_key_signs_in_and_acts_with_its_rights(gateway: TestGateway) -> None:
    key = await gateway.key(name="app", restrictTo=["QueryAiProviders"])
    reply = await sign_in(gateway, key)
    assert reply.json() == {
        "userId": "1",
        "sessionId": cookies_of(reply)["ss-id"],
        "userName": "Ann",
        "displayName": "Ann",
        "roles": [],
        "permissions": [],
        "authProvider": "apikey",
    }
    headers = await session(gateway, key)
    for path, status in (
        ("/api/QueryAiProviders", 200),
        ("/api/GetActiveProviders", 403),
        ("/api/AdminQueryApiKeys", 401),
    ):
        assert (await gateway.call("GET", path, key=None, headers=headers)).status == status


async def test_secret_signs_in_as_administrator(gateway: TestGateway) -> None:
    headers = await session(gateway, SECRET)
    reply = await gateway.call("GET", "/auth", key=None, headers=headers)
    assert (reply.json()["roles"], reply.json()["userName"]) == (["Admin"], "Ann")
    assert (
        await gateway.call("GET", "/api/AdminQueryApiKeys", key=None, headers=headers)
    ).status == 200


@pytest.mark.parametrize("path", ["/auth", "/auth/credentials", "/authenticate", SIGN_IN])
async def test_every_sign_in_path_works_by_form_too(gateway: TestGateway, path: str) -> None:
    form = f"provider=credentials&userName=Ann&password={SECRET}&rememberMe=true".encode()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    reply = await gateway.call("POST", path, form, key=None, headers=kind)
    assert reply.status == 200
    assert cookies_of(reply)["ss-opt"] == "perm"


async def test_cookies_are_for_this_site_and_no_script(gateway: TestGateway) -> None:
    reply = await sign_in(gateway, SECRET, rememberMe=True)
    cookies = reply.headers["set-cookie"].split(", ")
    assert len(cookies) == 3
    for cookie in cookies:
        assert cookie.endswith(
            f"; Path=/; Max-Age={int(REMEMBERED.total_seconds())}; HttpOnly; SameSite=Strict"
        )
        assert "Expires" not in cookie


@pytest.mark.parametrize("password", ["", "wrong", "ak-" + "0" * 32, "x" * 513, "\u20ac"])
async def test_wrong_password_is_refused(gateway: TestGateway, password: str) -> None:
    reply = await sign_in(gateway, password)
    assert reply.status in (400, 401)
    assert "set-cookie" not in reply.headers
    if reply.status == 401:
        assert reply.problem()["errorCode"] == "Unauthorized"


async def test_nobody_is_401(gateway: TestGateway) -> None:
    for verb in ("GET", "POST"):
        reply = await gateway.call(verb, "/auth", {} if verb == "POST" else None, key=None)
        assert (reply.status, reply.problem()["errorCode"]) == (401, "Unauthorized")


@pytest.mark.parametrize(
    "style",
    [
        "ss-id={0}",
        "other=1; ss-opt=temp; ss-id={0}; more=2",
        "ss-opt=perm; ss-pid={0}; ss-id=old",
        '$Version="1"; ss-id="{0}";$Path="/"',
    ],
)
async def test_cookie_is_read_in_every_style(gateway: TestGateway, style: str) -> None:
    token = cookies_of(await sign_in(gateway, SECRET))["ss-id"]
    headers = {"cookie": style.format(token)}
    assert (await gateway.call("GET", "/auth", key=None, headers=headers)).status == 200


async def test_sign_out_ends_the_session(gateway: TestGateway) -> None:
    headers = await session(gateway, SECRET)
    reply = await gateway.call("POST", "/auth/logout", {}, key=None, headers=headers)
    assert reply.status == 200
    assert set(cookies_of(reply).values()) == {""}
    assert (await gateway.call("GET", "/auth", key=None, headers=headers)).status == 401


async def test_session_ends_with_its_key(gateway: TestGateway) -> None:
    key = await gateway.key()
    headers = await session(gateway, key)
    now = datetime.now(UTC).isoformat()
    await gateway.call("PATCH", "/api/AdminUpdateApiKey", {"id": 1, "cancelledDate": now})
    assert (await gateway.call("GET", "/auth", key=None, headers=headers)).status == 401
    await gateway.call("PATCH", "/api/AdminUpdateApiKey", {"id": 1, "reset": ["cancelledDate"]})
    assert (await gateway.call("GET", "/auth", key=None, headers=headers)).status == 200
    await gateway.app._data.keys.rotate(1, "ak-" + "1" * 32)
    await gateway.app._ring.refresh()
    assert (await gateway.call("GET", "/auth", key=None, headers=headers)).status == 401


async def test_session_is_over_in_its_time(tables: Tables) -> None:
    class Clock:
        time = datetime(2026, 11, 22, tzinfo=UTC)

        def now(self) -> datetime:
            return self.time

        def monotonic(self) -> float:
            return 0.0

    clock = Clock()
    sessions = Sessions(tables, clock)
    token = await sessions.open(0, b"p", "Ann", remember=True)
    assert sessions.find(token)
    clock.time += REMEMBERED
    assert sessions.find(token) is None
    await sessions.open(0, b"p", "Bob", remember=False)
    assert await tables.read("SELECT count(*) FROM sessions") == [(1,)]


async def test_sessions_are_bounded(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        time = datetime(2026, 11, 22, tzinfo=UTC)

        def now(self) -> datetime:
            self.time += timedelta(seconds=1)
            return self.time

        def monotonic(self) -> float:
            return 0.0

    monkeypatch.setattr(sessions_module, "MOST_SESSIONS", 3)
    sessions = Sessions(tables, Clock())
    tokens = [await sessions.open(0, b"p", str(n), remember=True) for n in range(5)]
    assert [sessions.find(token) is not None for token in tokens] == [
        False,
        False,
        True,
        True,
        True,
    ]


async def test_token_is_stored_nowhere(gateway: TestGateway) -> None:
    token = cookies_of(await sign_in(gateway, SECRET))["ss-id"]
    files = [path.read_bytes() for path in gateway.data.iterdir() if path.is_file()]
    assert not any(token.encode() in content for content in files)


async def test_proof_does_not_give_the_secret_away(gateway: TestGateway) -> None:
    await sign_in(gateway, SECRET)
    await sign_in(gateway, SECRET)
    first, second = await gateway.rows("SELECT proof FROM sessions")
    known_by = gateway.app._ring.credential(ADMINISTRATOR)
    assert len({first[0], second[0], known_by}) == 3


async def test_guessing_is_slowed_down(gateway: TestGateway) -> None:
    statuses = [(await sign_in(gateway, f"wrong {n}")).status for n in range(MOST_FAILURES + 1)]
    assert statuses == [401] * MOST_FAILURES + [429]
    reply = await sign_in(gateway, SECRET)
    assert reply.status == 429
    assert 0 < int(reply.headers["retry-after"]) <= WINDOW_SECONDS
    assert (await gateway.call("GET", "/auth")).status == 200


def test_failures_are_forgotten_in_time_and_number() -> None:
    class Clock:
        time = 0.0

        def now(self) -> datetime:
            return datetime.now(UTC)

        def monotonic(self) -> float:
            return self.time

    clock = Clock()
    limit = SignInLimit(clock)
    for _ in range(MOST_FAILURES):
        limit.failed("a")
    with pytest.raises(TooBusy):
        limit.check("a")
    limit.check("b")
    clock.time = WINDOW_SECONDS
    limit.check("a")
    for number in range(MOST_ADDRESSES + 10):
        limit.failed(str(number))
    assert len(limit._failures) == MOST_ADDRESSES


OWN = [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"origin": "OWN"}, {}]
FOREIGN = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "OWN"},
    {"origin": "https://evil.example.com"},
    {"origin": "null"},
    {"origin": "http://["},
]


def sent_from(gateway: TestGateway, headers: dict[str, str]) -> dict[str, str]:
    return {name: value.replace("OWN", gateway.url) for name, value in headers.items()}


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["/auth", "/auth/credentials", "/authenticate", SIGN_IN])
async def test_other_sites_page_signs_nobody_in(
    gateway: TestGateway, headers: dict[str, str], path: str
) -> None:
    every = sent_from(gateway, headers)
    form = {**every, "content-type": "application/x-www-form-urlencoded"}
    values = f"provider=credentials&userName=Ann&password={SECRET}"
    for reply in (
        await gateway.call("GET", f"{path}?{values}", key=None, headers=every),
        await gateway.call("POST", path, values.encode(), key=None, headers=form),
        await gateway.call("POST", path, {"password": SECRET}, key=None, headers=every),
        await gateway.call("POST", "/auth/logout", {}, key=None, headers=every),
    ):
        assert reply.status == 403
        assert "another site" in reply.problem()["message"]
        assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("headers", OWN)
async def test_own_page_signs_in(gateway: TestGateway, headers: dict[str, str]) -> None:
    body = {"userName": "Ann", "password": SECRET}
    every = sent_from(gateway, headers)
    reply = await gateway.call("POST", SIGN_IN, body, key=None, headers=every)
    assert reply.status == 200
    assert "ss-id" in cookies_of(reply)


@pytest.mark.parametrize(
    ("allowed", "headers", "status"),
    [
        ("https://app.example.com", {"origin": "https://app.example.com"}, 200),
        ("https://app.example.com", {"origin": "https://evil.example.com"}, 403),
        ("https://app.example.com", {"sec-fetch-site": "cross-site"}, 403),
        ("https://app.example.com", {"origin": "null"}, 403),
        ("*,https://app.example.com", {"origin": "https://app.example.com"}, 200),
    ],
)
async def test_named_sites_page_signs_in(
    tmp_path: Path, migrated: bytes, allowed: str, headers: dict[str, str], status: int
) -> None:
    async with running(tmp_path / "data", migrated, CORS_ORIGINS=allowed) as gateway:
        body = {"userName": "Ann", "password": SECRET}
        every = {"sec-fetch-site": "cross-site", **headers}
        reply = await gateway.call("POST", SIGN_IN, body, key=None, headers=every)
        assert reply.status == status


@pytest.mark.parametrize("allowed", ["*", "*,https://app.example.com"])
async def test_star_lets_no_other_site_use_a_session(
    tmp_path: Path, migrated: bytes, allowed: str
) -> None:
    async with running(tmp_path / "data", migrated, CORS_ORIGINS=allowed) as gateway:
        cookie = await session(gateway, SECRET)
        body = {"userName": "Ann", "password": SECRET}
        for headers in (*FOREIGN, {"origin": "*"}):
            every = sent_from(gateway, headers)
            reply = await gateway.call("POST", SIGN_IN, body, key=None, headers=every)
            assert (reply.status, "set-cookie" in reply.headers) == (403, False), headers
            created = await gateway.call(
                "POST", "/api/AdminCreateApiKey", {"name": "x"}, key=None, headers=cookie | every
            )
            assert created.status == 403, headers


async def test_key_tells_who_it_is_from_anywhere(gateway: TestGateway) -> None:
    headers = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
    assert (await gateway.call("GET", "/auth", headers=headers)).status == 200


@pytest.mark.parametrize("headers", OWN)
async def test_own_page_acts_with_a_session(gateway: TestGateway, headers: dict[str, str]) -> None:
    every = {**await session(gateway, SECRET), **sent_from(gateway, headers)}
    body = {"name": "x"}
    reply = await gateway.call("POST", "/api/AdminCreateApiKey", body, key=None, headers=every)
    assert reply.status == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_other_sites_page_runs_nothing(gateway: TestGateway, headers: dict[str, str]) -> None:
    every = {**await session(gateway, SECRET), **sent_from(gateway, headers)}
    form = {**every, "content-type": "application/x-www-form-urlencoded"}
    for operation in gateway.app.gateway._registry:
        path = f"/api/{operation.name}"
        for reply in (
            await gateway.call("GET", path, key=None, headers=every),
            await gateway.call("POST", path, b"name=x&id=1", key=None, headers=form),
            await gateway.call("POST", path, {"name": "x", "id": 1}, key=None, headers=every),
        ):
            # A picture may be shown on any page; who asks for it there is nobody.
            shown = operation.returns is Content and operation.access in UNKEYED
            assert shown or reply.status == 403, operation.name
    assert (await gateway.call("GET", "/api/AdminQueryApiKeys")).json()["results"] == []


async def test_session_uses_only_an_operations_own_verb(gateway: TestGateway) -> None:
    headers = await session(gateway, SECRET)
    for operation in gateway.app.gateway._registry:
        allowed = {*operation.verbs, *(("POST",) if "GET" in operation.verbs else ())}
        for verb in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
            reply = await gateway.call(
                verb, f"/api/{operation.name}", {}, key=None, headers=headers
            )
            shown = operation.returns is Content and operation.access in UNKEYED
            assert shown or reply.status == 403, (operation.name, verb)
        for verb in allowed & {"GET"}:
            reply = await gateway.call(verb, f"/api/{operation.name}", key=None, headers=headers)
            assert reply.status != 403, (operation.name, verb)


async def test_key_is_free_of_these_rules(gateway: TestGateway) -> None:
    cookie = await session(gateway, SECRET)
    headers = {**cookie, "sec-fetch-site": "cross-site", "origin": "https://app.example.com"}
    assert (await gateway.call("PUT", "/api/QueryAiProviders", {}, headers=headers)).status == 200


async def test_secret_in_the_query_is_understood_and_deprecated(gateway: TestGateway) -> None:
    path = f"/api/AdminQueryApiKeys?authsecret={SECRET}"
    reply = await gateway.call("GET", path, key=None)
    assert (reply.status, reply.headers["deprecation"]) == (200, "@1767225600")
    reply = await gateway.call("GET", f"/api/QueryAiProviders?authsecret={SECRET}", key=None)
    assert reply.status == 401
    reply = await gateway.call("GET", "/api/AdminQueryApiKeys?authsecret=wrong", key=None)
    assert reply.status == 401


@pytest.mark.parametrize("multipart", [False, True])
async def test_secret_in_a_form_is_understood(gateway: TestGateway, multipart: bool) -> None:
    for secret, status in ((SECRET, 200), ("wrong", 401), ("", 401)):
        body = f"name=x&authsecret={secret}".encode()
        kind = "application/x-www-form-urlencoded"
        if multipart:
            part = '--B\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
            body = (part.format("name", "x") + part.format("authsecret", secret) + "--B--").encode()
            kind = "multipart/form-data; boundary=B"
        headers = {"content-type": kind}
        reply = await gateway.call(
            "POST", "/api/AdminCreateApiKey", body, key=None, headers=headers
        )
        assert reply.status == status


async def test_secret_in_the_query_can_be_switched_off(tmp_path: Any, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, AUTH_SECRET_IN_QUERY="false") as gateway:
        path = f"/api/AdminQueryApiKeys?authsecret={SECRET}"
        reply = await gateway.call("GET", path, key=None)
        assert (reply.status, "deprecation" in reply.headers) == (401, False)
        assert "as a header" in reply.problem()["message"]


async def test_sink_remembers_a_callback(gateway: TestGateway) -> None:
    body = {"refId": "r1", "choices": []}
    reply = await gateway.call("POST", "/dummyreplyto?CorrelationId=5", body, key=None)
    assert reply.json() == {"refId": "r1"}
    assert (await gateway.call("POST", "/api/HasDummyReplyTo", {"refId": "r1"})).status == 204
    assert (await gateway.call("POST", "/api/HasDummyReplyTo", {"refId": "r1"})).status == 404
    for number in range(150):
        await gateway.call("POST", "/dummyreplyto", {"refId": str(number)}, key=None)
    assert (await gateway.call("POST", "/api/HasDummyReplyTo", {"refId": "0"})).status == 404
    assert (await gateway.call("POST", "/api/HasDummyReplyTo", {"refId": "149"})).status == 204


async def test_many_sign_in_at_once(gateway: TestGateway) -> None:
    replies = await asyncio.gather(*(sign_in(gateway, SECRET) for _ in range(20)))
    assert {reply.status for reply in replies} == {200}
    assert len({cookies_of(reply)["ss-id"] for reply in replies}) == 20
