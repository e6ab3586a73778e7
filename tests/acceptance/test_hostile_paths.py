"""Paths that lead out of the store, in every operation and at every route that takes one."""

import json
import re
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import pytest_asyncio

from aiserver.contract.operation import Operation
from gateway import SECRET, Reply, TestGateway, running
from stored import PNG, kept, key_with_id, upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRIVATE = b"words of the operator"
DAY = "2026/11/23"
SHA = "0" * 64
# What is written as a path, after the address was decoded once.
HOSTILE = {
    "parent": "../../operator.txt",
    "parents": "../" * 40 + "etc/passwd",
    "parent in the middle": f"{DAY}/1/../../../../../operator.txt",
    "parent of a key": f"{DAY}/1/../2/{SHA}.png",
    "here": f"./{DAY}/./1/{SHA}.png",
    "nothing but dots": "...",
    "absolute": "/etc/passwd",
    "absolute after the prefix": "/artifacts//etc/passwd",
    "address": "file:///etc/passwd",
    "address elsewhere": "http://127.0.0.1/x",
    "encoded": "%2e%2e%2f%2e%2e%2foperator.txt",
    "encoded twice": "%252e%252e%252foperator.txt",
    "encoded slash": f"..%2f{DAY}",
    "overlong encoding": "%c0%ae%c0%ae%c0%afoperator.txt",
    "nul": f"{DAY}/1/{SHA}.png\0.txt",
    "encoded nul": f"{DAY}/1/{SHA}.png%00.txt",
    "line end": f"{DAY}/1/{SHA}.png\r\nx: y",
    "too long": "a" * 601,
    "much too long": "a/" * 950,
    "far too long": "a" * 5000,
    "backslash": "..\\..\\operator.txt",
    "drive": "C:\\Windows\\win.ini",
    "share": "\\\\server\\share\\x",
    "device": f"{DAY}/1/CON",
    "device with an ending": f"{DAY}/1/aux.png",
    "device folder": "NUL/1/COM1.txt",
    "stream": f"{DAY}/1/{SHA}.png::$DATA",
    "ending in a dot": f"{DAY}/1/{SHA}.png.",
    "ending in a space": f"{DAY}/1/{SHA}.png ",
    "full-width dots": "\uff0e\uff0e\uff0foperator.txt",
    "one-dot leaders": "\u2024\u2024/operator.txt",
    "division slash": "..\u2215..\u2215operator.txt",
    "turned direction": f"{DAY}/1/\u202egnp.exe",
    "no width": f"{DAY}/1/\u200b{SHA}.png",
    "digits of another script": f"{DAY}/\u0661/{SHA}.png",
    "letters of another script": "\u0430rtifacts/x.png",
    "home": "~/operator.txt",
    "variable": "$HOME/operator.txt",
    "pattern": f"{DAY}/*/*",
    "statement": "' OR 1=1 --",
    "link": f"{DAY}/1/link.png",
    "linked folder": f"{DAY}/3/operator.txt",
    "the database": "app.db",
    "the key file": "encryption.key",
}
# As bytes of an address, which are no text.
UNREADABLE = (
    "%ff",
    "%fe%fe",
    "%ed%a0%80",
    "%80/x",
    "%",
    "%2",
    "%zz",
    "%c0%ae%c0%ae/x",
    "%00",
    "..",
)
PREFIXES = ("/artifacts/", "/files/", "/uploads/", "/uploads/secure/1/")
MORE: dict[str, dict[str, Any]] = {
    "GetVariant": {"variant": "width=64"},
    "SendSignedUpload": {"id": "0" * 32, "maxSize": 100, "expires": 2**33, "signature": "x"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated: bytes
) -> AsyncGenerator[TestGateway]:
    """One for all; the operator's file lies beside the store, with links to it in the store."""
    data = tmp_path_factory.mktemp("hostile") / "data"
    async with running(data, migrated) as opened:
        await key_with_id(opened)
        await kept(opened, key_id=1)
        (data / "operator.txt").write_bytes(PRIVATE)
        for root in ("artifacts", "files"):
            folder = data / root / DAY
            (folder / "1").mkdir(parents=True, exist_ok=True)
            (folder / "1" / "link.png").symlink_to(data / "operator.txt")
            (folder / "3").symlink_to(data)
        yield opened


def taking_paths(gateway: TestGateway) -> dict[str, tuple[Operation, str]]:
    """Operations with the member that is a path, by name."""
    found: dict[str, tuple[Operation, str]] = {}
    for operation in gateway.app.gateway._registry:
        for field in msgspec.structs.fields(operation.request):
            if field.name in ("path", "paths"):
                found[operation.name] = operation, field.encode_name
    return found


def requests(operation: Operation, member: str, value: str) -> Iterator[tuple[str, str, Any]]:
    """Verb, address and body of each way to send this path."""
    more, verb = MORE.get(operation.name, {}), operation.verbs[0]
    sent: Any = [value] if member == "paths" else value
    body = {member: sent, **more}
    if verb != "GET":
        yield verb, f"/api/{operation.name}", body
        yield "POST", f"/api/{operation.name}[]", [body]
    try:
        whole, plain = quote(value, safe=""), quote(value)
    except UnicodeEncodeError:
        return
    query = "".join(f"&{name}={each}" for name, each in more.items())
    written = quote(json.dumps(sent)) if member == "paths" else whole
    yield verb, f"/api/{operation.name}?{member}={written}{query}", None
    for route in operation.routes:
        for form in (whole, plain, value if re.fullmatch(r"[!-~]+", value) else whole):
            path = route.path.replace(f"{{{member}*}}", form).replace("{variant}", "width=64")
            yield route.verbs[0], path + query.replace("&", "?", 1), None if verb == "GET" else {}


def refused(reply: Reply, asked: object) -> None:
    """The caller's fault, said in words, with nothing of the disk in it."""
    if reply.status == 200:
        told = reply.json()
        each = told[0] if isinstance(told, list) else told
        assert each["deleted"] == [], asked
    else:
        assert 400 <= reply.status < 500, (asked, reply.status, reply.body)
        problem = reply.problem()
        assert problem["message"], asked
        assert not re.search(r"Errno|/tmp|Traceback", problem["message"]), (asked, problem)
    assert PRIVATE not in reply.body, asked
    assert b"root:" not in reply.body, asked


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_path_is_refused_everywhere(gateway: TestGateway, what: str) -> None:
    key = await gateway.key()
    for operation, member in taking_paths(gateway).values():
        plain, *others = requests(operation, member, HOSTILE[what])
        asked = [(plain, key), (plain, SECRET), *((way, SECRET) for way in others)]
        for prefix in PREFIXES:
            asked.append((next(requests(operation, member, prefix + HOSTILE[what])), SECRET))
        for (verb, at, body), by in asked:
            reply = await gateway.call(verb, at, body, key=by)
            refused(reply, (operation.name, verb, at, body))
    assert (gateway.data / "operator.txt").read_bytes() == PRIVATE


@pytest.mark.parametrize("written", UNREADABLE)
async def test_address_that_is_no_text_is_refused(gateway: TestGateway, written: str) -> None:
    for operation, member in taking_paths(gateway).values():
        for route in operation.routes:
            path = route.path.replace(f"{{{member}*}}", written).replace("{variant}", "width=64")
            for verb in route.verbs:
                body = None if verb == "GET" else {}
                refused(await gateway.call(verb, path, body), (operation.name, verb, path))
        for verb in operation.verbs:
            at = f"/api/{operation.name}?{member}={written}"
            refused(await gateway.call(verb, at), (operation.name, verb, at))


@pytest.mark.parametrize("raw", [b"\\u0000", b"\\ud800", b"\\udc00x", b"\xff", b"\xc0\xae"])
async def test_body_with_a_path_that_is_no_text_is_refused(
    gateway: TestGateway, raw: bytes
) -> None:
    for operation, member in taking_paths(gateway).values():
        value = b'"' + raw + b'"'
        sent = b"[" + value + b"]" if member == "paths" else value
        more = json.dumps({"x": 1, **MORE.get(operation.name, {})}).encode()[1:]
        body = b'{"' + member.encode() + b'":' + sent + b"," + more
        for verb in {*operation.verbs, "POST"}:
            reply = await gateway.call(verb, f"/api/{operation.name}", body)
            refused(reply, (operation.name, verb, body))


async def test_raw_bytes_in_an_address_end_the_call(gateway: TestGateway) -> None:
    for path in (b"/artifacts/a\0b", b"/artifacts/..\\..\\operator.txt", b"/artifacts/\xff\xfe"):
        said = await gateway.raw(
            b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", said), (path, said)
        assert PRIVATE not in said


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_name_of_an_upload_stays_in_its_folder(
    gateway: TestGateway, what: str
) -> None:
    key, key_id = await key_with_id(gateway)
    name = HOSTILE[what]
    replies = [
        await gateway.call("POST", "/api/CreateUploadUrl", {"name": name}, key=key),
        await upload(gateway, "secure", ("file", name.replace("\r\n", ""), PNG), key=key),
    ]
    for reply in replies:
        assert reply.status == 200 or 400 <= reply.status < 500, reply.body
        if reply.status != 200:
            assert reply.problem()["message"]
            continue
        told = reply.json()
        [path] = told.get("results") or [told["path"]]
        assert re.fullmatch(rf"/uploads/secure/{key_id}/[^/]+", path)
        assert not re.search(r"%(00|0A|0D|2F|5C)|/\.", path)
    if replies[1].status == 200:
        [path] = replies[1].json()["results"]
        assert (await gateway.call("GET", path, key=key)).body == PNG
    assert [each.name for each in gateway.data.glob("operator*")] == ["operator.txt"]
    assert Path(gateway.data / "operator.txt").read_bytes() == PRIVATE
