"""Every way to a file against every kind of caller: a key's files are its own."""

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from aiserver.contract.operation import Operation
from aiserver.files.signing import SignedUrls
from aiserver.kit.clock import SystemClock
from gateway import SECRET, Reply, TestGateway, running
from object_stores import on_moto
from stored import PNG, kept, key_with_id, upload

WRONG = "ak-ffffffffffffffffffffffffffffffff"
# What a caller can do to a file that is not its own; another operation must be added here.
CHANGING = {"DeleteFile", "DeleteFiles", "DeleteFileUpload", "MigrateArtifact", "ReplaceFileUpload"}
READING = {"GetArtifact", "GetFileUpload", "GetVariant"}
OTHERS = {"CreateUploadUrl", "QueryFiles", "SendSignedUpload", "StoreFileUpload"}
NOBODY: dict[str, int | None] = {"none": 404, "other": 404, "tampered": 404, "of another file": 404}
EVERYBODY = dict.fromkeys(NOBODY, 200)
ALWAYS = {"wrong": 401, "own": 200, "admin": 200, "scope admin": 200, "session": 200, "signed": 200}


def file_operations(gateway: TestGateway) -> dict[str, Operation]:
    """All that take the path of a file, or stand with those that do."""
    found: dict[str, Operation] = {}
    for operation in gateway.app.gateway._registry:
        members = {field.name for field in msgspec.structs.fields(operation.request)}
        if members & {"path", "paths"} or operation.tag == "Files":
            found[operation.name] = operation
    return found


def reading(gateway: TestGateway, path: str) -> list[str]:
    """Every address that a file of this path may be read at."""
    at = [f"/api/{name}?path={quote(path)}" for name in ("GetArtifact", "GetFileUpload")]
    for operation in file_operations(gateway).values():
        for route in operation.routes:
            if "GET" in route.verbs:
                filled = route.path.replace("{path*}", quote(path))
                at.append(re.sub(r"\{\w+\}", "width=16", filled))
    return at


class Files:
    """One of each kind, all of one key."""

    def __init__(self, gateway: TestGateway, key: str, key_id: int, paths: dict[str, str]) -> None:
        self.gateway = gateway
        self.key = key
        self.key_id = key_id
        self.paths = paths

    async def untouched(self) -> bool:
        replies = [
            await self.gateway.call("GET", f"/artifacts/{quote(path)}", key=self.key)
            for path in self.paths.values()
        ]
        return all(reply.body.startswith(PNG) for reply in replies)


async def of_a_key(gateway: TestGateway) -> Files:
    key, key_id = await key_with_id(gateway)
    paths = {
        "artifact": (await kept(gateway, key_id=key_id)).path,
        "upload": (await kept(gateway, PNG + b"2", key_id=key_id, kind="upload")).path,
    }
    for location in ("pub", "secure"):
        await upload(gateway, location, ("file", "a b.png", PNG), key=key)
        paths[location] = f"{location}/{key_id}/a b.png"
    return Files(gateway, key, key_id, paths)


@pytest.fixture
async def gateway(
    tmp_path: Path, migrated: bytes, storage: dict[str, str]
) -> AsyncGenerator[TestGateway]:
    async with running(tmp_path / "data", migrated, **storage) as opened:
        yield opened


@pytest.fixture
async def files(gateway: TestGateway) -> Files:
    return await of_a_key(gateway)


async def ask(files: Files, who: str, at: str, path: str, method: str = "GET") -> Reply:
    """Asks for an address in the name of each kind of caller."""
    gateway, keys = files.gateway, {"own": files.key, "admin": SECRET, "wrong": WRONG}
    tables = gateway.app._data.engine.tables
    expired = SignedUrls(tables, SystemClock(), ttl=-1)
    headers: dict[str, str] = {}
    query = ""
    if who in ("other", "scope admin"):
        scopes = ["Admin"] if who == "scope admin" else []
        keys[who] = (await key_with_id(gateway, scopes=scopes))[0]
    elif who == "session":
        signed_in = await gateway.call(
            "POST",
            "/api/Authenticate",
            {"provider": "credentials", "password": files.key},
            key=None,
        )
        assert signed_in.status == 200, signed_in.body
        headers["cookie"] = f"ss-id={signed_in.json()['sessionId']}"
    elif who == "signed":
        query = await gateway.app.urls.query(path)
    elif who == "expired":
        query = await expired.query(path)
    elif who == "tampered":
        query = (await gateway.app.urls.query(path))[:-2] + "xx"
    elif who == "of another file":
        query = await gateway.app.urls.query(path + "x")
    joined = at + (query.replace("?", "&") if "?" in at else query)
    return await gateway.call(method, joined, key=keys.get(who), headers=headers)


async def test_every_operation_with_a_path_is_walked(gateway: TestGateway) -> None:
    known = CHANGING | READING | OTHERS
    assert file_operations(gateway).keys() <= known


@on_moto
@pytest.mark.parametrize("kind", ["artifact", "upload", "pub", "secure"])
async def test_only_who_may_reads_a_file(files: Files, kind: str) -> None:
    path = files.paths[kind]
    expected = (EVERYBODY if kind == "pub" else NOBODY) | ALWAYS
    expected["expired"] = 200 if kind == "pub" else 403
    for at in reading(files.gateway, path):
        beyond = kind in ("artifact", "upload") and ("/uploads/" in at or "Upload?" in at)
        for who, status in expected.items():
            wanted = 404 if beyond and status != 401 else status
            for method in ("GET", "HEAD"):
                reply = await ask(files, who, at, path, method)
                if at.startswith("/variants/") and wanted == 200:
                    # Let in; the picture of these tests cannot be decoded.
                    assert reply.status == 400, (who, method, at, reply.body)
                    continue
                assert reply.status == wanted, (who, method, at, reply.body)
                assert method == "HEAD" or (PNG in reply.body) == (wanted == 200)


@pytest.mark.parametrize("kind", ["artifact", "upload", "secure"])
async def test_stranger_cannot_tell_that_a_file_is_there(files: Files, kind: str) -> None:
    path = files.paths[kind]
    missing = path.replace(".png", ".gif")
    for at, nowhere in zip(
        reading(files.gateway, path), reading(files.gateway, missing), strict=True
    ):
        for who in ("none", "other", "tampered"):
            there, absent = [await ask(files, who, each, path) for each in (at, nowhere)]
            assert (there.status, there.body) == (absent.status, absent.body), (who, at)
            assert PNG not in there.body


async def test_expired_link_says_how_to_get_a_new_one(files: Files) -> None:
    path = files.paths["artifact"]
    reply = await ask(files, "expired", f"/artifacts/{path}", path)
    assert (reply.status, reply.problem()["errorCode"]) == (403, "LinkExpired")
    assert re.match(r"This link expired at \d{4}-.* to get a new one\.", reply.problem()["message"])


@on_moto
@pytest.mark.parametrize("who", ["none", "wrong", "other", "signed"])
async def test_stranger_changes_nothing(files: Files, who: str) -> None:
    gateway = files.gateway
    key = {"wrong": WRONG, "other": (await key_with_id(gateway))[0]}.get(who)
    refusals = {403, 400, 404} if who == "other" else {401}
    for path in files.paths.values():
        signed = await gateway.app.urls.query(path) if who == "signed" else ""
        and_signed = signed.replace("?", "&")
        for form in (f"/artifacts/{path}", f"/{path}", path, f"/uploads/{path}"):
            named = f"path={quote(form)}{and_signed}"
            replies = [
                await gateway.call("DELETE", f"/api/DeleteFile?{named}", key=key),
                await gateway.call("DELETE", f"/api/DeleteFileUpload?{named}", key=key),
                await gateway.call("DELETE", f"/files{quote('/' + form)}{signed}", key=key),
                await gateway.call("DELETE", f"/uploads/{quote(path)}{signed}", key=key),
                await gateway.call("POST", "/api/MigrateArtifact", {"path": form}, key=key),
                await upload(gateway, quote(path), ("f", "a.png", b"x"), key=key, method="PUT"),
            ]
            assert {reply.status for reply in replies} <= refusals, form
            reply = await gateway.call("POST", "/api/DeleteFiles", {"paths": [form]}, key=key)
            if who == "other":
                assert reply.json() == {"deleted": [], "missing": [], "failed": [form]}
            else:
                assert reply.status == 401
    assert await files.untouched()


async def test_refusal_to_delete_does_not_tell_what_is_there(files: Files) -> None:
    key, _ = await key_with_id(files.gateway)
    path = files.paths["artifact"]
    for each in (path, path.replace(".png", ".gif")):
        reply = await files.gateway.call("DELETE", f"/files/{each}", key=key)
        assert (reply.status, reply.problem()["message"]) == (403, "Invalid API Key for File")
    reply = await files.gateway.call("DELETE", "/api/DeleteFile?path=/artifacts/../x", key=key)
    assert (reply.status, reply.problem()["message"]) == (403, "Invalid Path")


async def test_stranger_lists_nothing(files: Files) -> None:
    gateway, (other, _) = files.gateway, await key_with_id(files.gateway)
    for query in ("", f"&keyId={files.key_id}", "&contains=png", "&kind=pub", "&skip=-1"):
        reply = await gateway.call("GET", f"/api/QueryFiles?include=total{query}", key=other)
        assert reply.json()["results"] == []
        assert reply.json()["total"] == 0
        for key in (None, WRONG):
            assert (await gateway.call("GET", f"/api/QueryFiles?{query}", key=key)).status == 401
    reply = await gateway.call("GET", "/api/QueryFiles?include=total", key=files.key)
    assert reply.json()["total"] == 4


async def test_stranger_cannot_upload_into_the_folder(files: Files) -> None:
    other, other_id = await key_with_id(files.gateway)
    for name in (
        f"../{files.key_id}/a b.png",
        f"/uploads/secure/{files.key_id}/a b.png",
        "a b.png",
    ):
        reply = await upload(files.gateway, "secure", ("file", name, b"x"), key=other)
        assert reply.json()["results"] == [f"/uploads/secure/{other_id}/a%20b.png"]
    for key in (None, WRONG):
        assert (await upload(files.gateway, "pub", ("f", "a", b"x"), key=key)).status == 401
    assert await files.untouched()


@on_moto
async def test_page_of_another_site_sees_what_everybody_sees(files: Files) -> None:
    signed_in = await files.gateway.call(
        "POST", "/api/Authenticate", {"provider": "credentials", "password": files.key}, key=None
    )
    cookie = f"ss-id={signed_in.json()['sessionId']}"
    for site, expected in (("same-origin", 200), ("same-site", 404), ("cross-site", 404)):
        headers = {"cookie": cookie, "sec-fetch-site": site}
        found = {
            kind: (await files.gateway.call("GET", at, key=None, headers=headers)).status
            for kind, at in (
                ("secure", f"/artifacts/{quote(files.paths['secure'])}"),
                ("pub", f"/artifacts/{quote(files.paths['pub'])}"),
                ("signed", await files.gateway.app.urls.signed(files.paths["secure"])),
            )
        }
        assert found == {"secure": expected, "pub": 200, "signed": 200}


async def test_key_that_was_taken_away_reads_nothing(files: Files) -> None:
    changed = {"id": files.key_id, "cancelledDate": "2020-01-01T00:00:00Z"}
    reply = await files.gateway.call("PATCH", "/api/AdminUpdateApiKey", changed)
    assert reply.status == 200, reply.body
    path = f"/artifacts/{files.paths['artifact']}"
    assert (await files.gateway.call("GET", path, key=files.key)).status == 401


async def test_public_artifacts_open_results_alone(
    tmp_path: Path, migrated: bytes, storage: dict[str, str]
) -> None:
    settings = {"PUBLIC_ARTIFACTS": "true", **storage}
    async with running(tmp_path / "data", migrated, **settings) as gateway:
        files = await of_a_key(gateway)
        found = {
            kind: (await gateway.call("GET", f"/artifacts/{quote(path)}", key=None)).status
            for kind, path in files.paths.items()
        }
    assert found == {"artifact": 200, "upload": 404, "pub": 200, "secure": 404}


@on_moto
async def test_signed_address_survives_a_restart(
    tmp_path: Path, migrated: bytes, storage: dict[str, str]
) -> None:
    async with running(tmp_path / "data", migrated, **storage) as gateway:
        files = await of_a_key(gateway)
        url = await gateway.app.urls.signed(files.paths["secure"])
        assert (await gateway.call("GET", url, key=None)).body == PNG
    async with running(tmp_path / "data", migrated, **storage) as gateway:
        assert (await gateway.call("GET", url, key=None)).body == PNG
        await gateway.app.urls.rotate()
        assert (await gateway.call("GET", url, key=None)).body == PNG
