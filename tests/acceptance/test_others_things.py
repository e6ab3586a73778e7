"""Every operation that can name a file, a job or a callback, asked about another key's."""

import asyncio
import io
import json
import re
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints
from urllib.parse import quote

import msgspec
import pytest

from aiserver.contract.operation import Access, Content, Operation
from fakes.painting import form as parts
from fakes.receiver import Receiver
from fakes.upstream import FakeUpstream
from gateway import Reply, TestGateway, running
from pictures import quarters
from stored import kept, key_with_id, upload

# Members that name something of somebody, by operation. A new operation, or a member that is not
# among NEUTRAL, stands here with what it names.
NAMING: dict[str, dict[str, str]] = {
    "CancelJob": {"id": "job", "ref_id": "ref"},
    "DeleteFile": {"path": "path"},
    "DeleteFileUpload": {"path": "path"},
    "DeleteFiles": {"paths": "path"},
    "GetArtifact": {"path": "path"},
    "GetArtifactGenerationStatus": {"job_id": "job", "ref_id": "ref"},
    "GetFileUpload": {"path": "path"},
    "GetJobEvents": {"id": "job", "ref_id": "ref"},
    "GetOllamaGenerationStatus": {"job_id": "job", "ref_id": "ref"},
    "GetOpenAiChat": {"id": "job", "ref_id": "ref"},
    "GetOpenAiChatStatus": {"job_id": "job", "ref_id": "ref"},
    "GetTextGenerationStatus": {"job_id": "job", "ref_id": "ref"},
    "GetVariant": {"path": "path"},
    "MigrateArtifact": {"path": "path"},
    "QueryDeliveries": {"id": "delivery", "job_id": "job", "ref_id": "ref"},
    "QueryFiles": {"key_id": "key", "contains": "part"},
    "RedeliverCallback": {"id": "delivery"},
    "ReplaceFileUpload": {"path": "path"},
    "SendSignedUpload": {"path": "path"},
    "WaitForOpenAiChat": {"id": "job", "ref_id": "ref"},
}
# A refId given to what is begun: keys have their own, so another's is free to take.
BEGINNING = re.compile(
    r"(Queue)?(Convert|Crop|Scale|Trim|Watermark)(Image|Video|Audio)"
    r"|(Queue)?(OpenAiChatCompletion|OllamaGeneration)|CreateMediaTransform"
)
# Names of what everybody shares, and what becomes a name in the caller's own folder.
SHARED = {
    "CreateMediaTransform": {f"{of}_file_name" for of in ("image", "video", "audio", "watermark")},
    "CreateUploadUrl": {"name"},
    "DummyReplyTo": {"ref_id"},
    "GetModel": {"model"},
    "GetModelImage": {"model"},
    "HasDummyReplyTo": {"ref_id"},
    "Hello": {"name"},
    "QueryAiProviders": {"name"},
    "QueryMediaModels": {"id", "provider_id"},
    "SendSignedUpload": {"id"},
    "StoreFileUpload": {"name"},
}
# Members without which an operation looks at nothing.
MORE: dict[str, dict[str, Any]] = {
    "GetVariant": {"variant": "width=64"},
    "SendSignedUpload": {"id": "0" * 32, "maxSize": 100, "expires": 2**33, "signature": "x"},
}
NEUTRAL = frozenset(
    {
        *("access_token", "access_token_secret", "attachment", "audio_bitrate"),
        *("audio_codec", "audio_sample_rate", "context", "crop_height", "crop_width"),
        *("crop_x", "crop_y", "cut_end", "cut_start", "date", "download", "end_time"),
        *("error_view", "expires", "expires_in", "fast", "fields", "format"),
        *("frequency_penalty", "height", "image_output_format", "images", "include"),
        *("keep_alive", "kind", "location", "logit_bias", "logprobs", "margin"),
        *("max_completion_tokens", "max_size", "max_tokens", "messages", "meta", "model"),
        *("n", "opacity", "options", "order_by", "order_by_desc", "output_format"),
        *("password", "position", "presence_penalty", "priority", "prompt", "provider"),
        *("quality", "raw", "remember_me", "reply_to", "request", "response_format"),
        *("return_url", "run_after", "scale_height", "scale_width", "seed", "signature"),
        *("skip", "start_time", "state", "stop", "stream", "stream_options", "suffix", "system"),
        *("tag", "take", "task_type", "temperature", "template", "text", "tiled", "tool_choice"),
        *("tools", "top_logprobs", "top_p", "user", "user_name", "variant", "video_codec"),
        *("vision", "watermark_position", "watermark_scale", "width", "x", "y"),
    }
)


def _picture() -> bytes:
    written = io.BytesIO()
    quarters().save(written, "png")
    return written.getvalue()


PICTURE = _picture()
# What nobody else may ever read.
MARKS = (PICTURE[:40], b"said by b", b"private-of-b.png")


class Named(NamedTuple):
    """What B has, and what nobody has; `member` as it is on the wire."""

    operation: Operation
    member: str
    theirs: Any
    absent: Any


class Way(NamedTuple):
    """One request."""

    verb: str
    at: str
    body: Any = None
    headers: dict[str, str] | None = None


class Another:
    """A key with one of each thing, and `stranger`, who asks about them."""

    def __init__(self, gateway: TestGateway, key: str, key_id: int, stranger: str) -> None:
        self.gateway = gateway
        self.key = key
        self.stranger = stranger
        # Of each kind: B's, and what is not there.
        self.named: dict[str, list[tuple[Any, Any]]] = {
            "key": [(key_id, key_id + 1000)],
            "part": [("private-of-b", "private-of-c")],
        }

    async def ask(self, way: Way, key: str | None) -> Reply:
        return await self.gateway.call(way.verb, way.at, way.body, key=key, headers=way.headers)

    async def state(self) -> list[tuple[int, bytes]]:
        """What its owner sees of it all."""
        asked = [f"/artifacts/{quote(path)}" for path, _ in self.named["path"]]
        for ref, _ in self.named["ref"]:
            asked += [f"/api/{name}?refId={ref}" for name in ("GetOpenAiChat", "QueryDeliveries")]
        asked.append("/api/QueryFiles?include=total&fields=id,path,size,sha256")
        replies = [await self.gateway.call("GET", at, key=self.key) for at in asked]
        return [(reply.status, re.sub(rb'"offset".*', b"", reply.body)) for reply in replies]


def operations(gateway: TestGateway) -> Iterator[Operation]:
    """Those that are not for administrators alone."""
    for operation in gateway.app.gateway._registry:
        if operation.access is not Access.ADMIN:
            yield operation


def members(operation: Operation) -> dict[str, str]:
    """Their names on the wire."""
    return {field.name: field.encode_name for field in msgspec.structs.fields(operation.request)}


def within(operation: Operation) -> set[str]:
    """Members of what is nested whole in the member `request`."""
    nested = get_type_hints(operation.request).get("request")
    return {
        field.name
        for kind in (nested, *get_args(nested))
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        for field in msgspec.structs.fields(kind)
    }


@pytest.fixture
async def another(
    tmp_path: Path, migrated: bytes, upstream: FakeUpstream
) -> AsyncGenerator[Another]:
    settings = {"OUTBOUND_ALLOW": "127.0.0.1", "SHUTDOWN_GRACE": "0s"}
    async with running(tmp_path / "data", migrated, **settings) as gateway, Receiver() as receiver:
        await gateway.provider("fake", upstream.base_url)
        key, key_id = await key_with_id(gateway)
        made = Another(gateway, key, key_id, (await key_with_id(gateway))[0])
        made.named["path"] = await files_of(gateway, key, key_id)
        await chats_of(made, receiver)
        yield made


async def files_of(gateway: TestGateway, key: str, key_id: int) -> list[tuple[str, str]]:
    found = [
        (await kept(gateway, PICTURE, key_id=key_id, name="private-of-b.png")).path,
        (await kept(gateway, PICTURE + b"2", key_id=key_id, kind="upload")).path,
    ]
    await upload(gateway, "secure", ("file", "private-of-b.png", PICTURE), key=key)
    found.append(f"secure/{key_id}/private-of-b.png")
    return [(path, path.replace(".png", ".gif")) for path in found]


async def chats_of(another: Another, receiver: Receiver) -> None:
    """One that has ended, with a callback, and others that wait: one of each kind of status."""
    asked = {"model": "fake-model", "messages": [{"role": "user", "content": "said by b"}]}
    generate = {"model": "fake-model", "prompt": "said by b"}
    later = (datetime.now(UTC) + timedelta(days=20)).isoformat()
    picture, multipart = parts(
        image=("a.png", PICTURE), outputFormat="gif", refId="scales-of-b", runAfter=later
    )
    jobs: dict[str, int] = {}
    for ref, name, body, headers in (
        (
            "ended-of-b",
            "OpenAiChatCompletion",
            {"request": asked, "refId": "ended-of-b", "replyTo": receiver.url},
            None,
        ),
        (
            "waits-of-b",
            "OllamaGeneration",
            {"request": generate, "refId": "waits-of-b", "runAfter": later},
            None,
        ),
        ("scales-of-b", "ConvertImage", picture, multipart),
    ):
        reply = await another.gateway.call(
            "POST", f"/api/Queue{name}", body, key=another.key, headers=headers
        )
        assert reply.status == 200, reply.body
        queued = reply.json()
        jobs[ref] = queued.get("id") or queued["jobId"]
    await receiver.reach(1)
    await another.gateway.call("GET", "/api/GetJobEvents?refId=ended-of-b", key=another.key)
    async with asyncio.timeout(10):
        while True:
            listed = await another.gateway.call("GET", "/api/QueryDeliveries", key=another.key)
            [delivery] = listed.json()["results"]
            if delivery["state"] == "Delivered":
                break
    another.named["ref"] = [(ref, ref.replace("-of-b", "-of-c")) for ref in jobs]
    another.named["job"] = [(job, job + 1000) for job in jobs.values()]
    another.named["delivery"] = [(delivery["id"], "msg_" + "0" * 32)]


# What makes a server answer in another way than usual.
HEADERS = (
    {"range": "bytes=0-9"},
    {"if-none-match": "*"},
    {"if-modified-since": "Fri, 01 Jan 2100 00:00:00 GMT"},
)


def asked_about(another: Another) -> list[Named]:
    """Every member that names something, with B's and with what is not there."""
    found: list[Named] = []
    for operation in operations(another.gateway):
        wire = members(operation)
        for member, kind in NAMING.get(operation.name, {}).items():
            found += [Named(operation, wire[member], *pair) for pair in another.named[kind]]
    return found


def ways(named: Named, value: Any) -> Iterator[Way]:
    """Each way to ask for this value."""
    operation, member = named.operation, named.member
    more = MORE.get(operation.name, {})
    body = {member: [value] if member == "paths" else value, **more}
    query = "&".join(f"{name}={quote(_text(each))}" for name, each in body.items())
    for verb in operation.verbs:
        for name in (operation.name, operation.name.lower(), operation.name.upper()):
            yield Way(verb, f"/api/{name}?{query}")
        yield Way(verb, f"/json/reply/{operation.name}?{query}")
        yield Way(verb, f"/api/{operation.name}.csv?{query.replace(member, member.upper())}")
        yield Way(verb, f"/api/{operation.name}", body)
    yield Way("POST", f"/api/{operation.name}[]", [body])
    yield Way("POST", "/" + re.sub(r"(?<!^)(?=[A-Z])", "-", operation.name).lower(), body)
    for form in ("/{}", "/artifacts/{}", "/uploads/{}", "/files/{}", "files/{}"):
        if isinstance(value, str):
            formed = {
                **body,
                member: [form.format(value)] if member == "paths" else form.format(value),
            }
            written = "&".join(f"{name}={quote(_text(each))}" for name, each in formed.items())
            verb = operation.verbs[0]
            yield Way(verb, f"/api/{operation.name}?{written}", None if verb == "GET" else formed)
    for route in operation.routes:
        for verb in route.verbs:
            yield from (Way(verb, at) for at in _filled(route.path, member, str(value)))
    if operation.returns is Content:
        shown = next(_filled(operation.routes[0].path, member, str(value)))
        yield from (Way("GET", shown, None, headers) for headers in HEADERS)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _filled(route: str, member: str, value: str) -> Iterator[str]:
    """The route with the value as it is, with slashes hidden, hidden whole, and by detours."""
    plain = quote(value)
    hidden = "".join(f"%{byte:02X}" for byte in value.encode())
    forms = [plain, quote(value, safe=""), hidden, quote(hidden)]
    forms += [f"./{plain}", f"x/../{plain}", f"{plain}/", f"/{plain}", plain.upper()]
    for form in forms:
        path = route.replace(f"{{{member}*}}", form).replace(f"{{{member.title()}}}", form)
        yield re.sub(r"\{\w+\*?\}", "width=64", path.replace(f"{{{member}}}", form))


def unnamed(reply: Reply, value: Any) -> bytes:
    """The body without what was asked for, which an answer may repeat."""
    body = reply.body
    for written in sorted({str(value), quote(str(value)), str(value).upper()}, key=len):
        body = body.replace(written.encode(), b"?")
        body = body.replace(written[:40].encode(), b"?") if len(written) > 40 else body
    return body


async def test_stranger_hears_the_same_of_anothers_and_of_nothing(another: Another) -> None:
    before = await another.state()
    named = asked_about(another)
    assert {each.operation.name for each in named} == NAMING.keys()
    for each in named:
        pairs = zip(ways(each, each.theirs), ways(each, each.absent), strict=True)
        for theirs, absent in pairs:
            for key in (another.stranger, None):
                there, nowhere = await another.ask(theirs, key), await another.ask(absent, key)
                told = (each.operation.name, key is None, theirs, there.status, there.body)
                assert there.status == nowhere.status < 500, told
                assert unnamed(there, each.theirs) == unnamed(nowhere, each.absent), told
                assert not any(mark in unnamed(there, each.theirs) for mark in MARKS), told
                assert "etag" not in there.headers, told
                if theirs.verb == "GET":
                    head = await another.ask(theirs._replace(verb="HEAD"), key)
                    assert (head.status, head.body) == (there.status, b""), told
                    assert "etag" not in head.headers, told
    assert await another.state() == before


async def test_walk_reaches_what_it_asks_about(another: Another) -> None:
    """Its owner is let in by the same ways, so that a refusal there means something."""
    reached: set[str] = set()
    named = asked_about(another)
    # What is read first, since other ways change or delete it.
    for each in sorted(
        named, key=lambda each: (each.operation.verbs[0] != "GET", "Delete" in each.operation.name)
    ):
        name = each.operation.name
        for way in ways(each, each.theirs):
            if name in reached:
                break
            if (await another.ask(way, another.key)).status == 200:
                reached.add(name)
    assert NAMING.keys() - reached == {"ReplaceFileUpload", "SendSignedUpload"}


async def test_every_member_that_can_name_something_is_known(gateway: TestGateway) -> None:
    unknown = {
        f"{operation.name}.{member}"
        for operation in operations(gateway)
        for member in (*members(operation), *within(operation))
        if member not in NEUTRAL
        and member not in NAMING.get(operation.name, {})
        and member not in SHARED.get(operation.name, ())
        and not (member == "ref_id" and BEGINNING.fullmatch(operation.name))
    }
    assert unknown == set()


async def test_ref_id_of_another_key_is_free_to_take(another: Another) -> None:
    gateway = another.gateway
    before = await another.state()
    for ref, _ in another.named["ref"]:
        asked = {"model": "fake-model", "messages": [{"role": "user", "content": "said by a"}]}
        body = {"request": asked, "refId": ref}
        begun = await gateway.call(
            "POST", "/api/QueueOpenAiChatCompletion", body, key=another.stranger
        )
        assert begun.status == 200, begun.body
        assert begun.json()["id"] not in [job for job, _ in another.named["job"]]
        await gateway.call("GET", f"/api/GetJobEvents?refId={ref}", key=another.stranger)
        told = await gateway.call(
            "GET", f"/api/GetOpenAiChatStatus?refId={ref}", key=another.stranger
        )
        assert "echo: said by a" in told.body.decode()
    assert await another.state() == before
