"""What the callback of a job says, and where `replyTo` may send it."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from aiserver.contract.errors import InvalidRequest
from aiserver.jobs.callbacks import Callbacks, body_of, example_body
from aiserver.jobs.job import Job, State
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.kit.outbound import Guard, Outbound
from clients.python_dtos import OpenAiChatResponse

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "fast",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def job(**members: Any) -> Job:
    given: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    given |= {
        **{"id": 17, "ref_id": "a" * 32, "key_id": 3, "operation": "OpenAiChatCompletion"},
        **{"kind": "chat", "state": State.COMPLETED, "created": 1_000, "ended": 2_000},
        **{"result": json.dumps(ANSWER).encode()},
    }
    return Job(**(given | members))


def addresses(*own: str, allow: str = "", resolved: Sequence[str] = ("8.8.8.8",)) -> ReplyAddresses:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return resolved

    return ReplyAddresses(Outbound(Guard(allow), resolve=resolve), own=own)


def test_answer_keeps_its_members_beside_the_job() -> None:
    said = json.loads(body_of(job(echo="my state")))
    assert said == {
        **ANSWER,
        **{"refId": "a" * 32, "jobId": 17, "jobState": "Completed", "state": "my state"},
    }


def test_typed_client_reads_a_callback_as_the_answer() -> None:
    read = OpenAiChatResponse.from_json(body_of(job()))  # pyright: ignore[reportAttributeAccessIssue]
    assert read.choices[0].message.content == "hi"
    assert (read.model, read.usage.total_tokens, read.response_status) == ("fast", 2, None)


@pytest.mark.filterwarnings("ignore:.*of non-optional type errors:RuntimeWarning")
def test_typed_client_reads_a_failure() -> None:
    failed = job(state=State.FAILED, result=None, error_code="UpstreamFailed")
    read = OpenAiChatResponse.from_json(body_of(failed))  # pyright: ignore[reportAttributeAccessIssue]
    assert read.response_status.error_code == "UpstreamFailed"


def test_number_of_an_answer_is_not_rewritten() -> None:
    exact = b'{"created":1.50,"big":12345678901234567890123}'
    assert body_of(job(result=exact)).startswith(exact[:-1])


def test_failure_is_told() -> None:
    failed = job(
        state=State.FAILED, result=None, error_code="UpstreamFailed", error_message="It fell over."
    )
    assert json.loads(body_of(failed)) == {
        **{"refId": "a" * 32, "jobId": 17, "jobState": "Failed"},
        "responseStatus": {"errorCode": "UpstreamFailed", "message": "It fell over."},
    }


def test_cancelled_job_calls_back_too() -> None:
    said = json.loads(body_of(job(state=State.CANCELLED, result=None)))
    assert said["jobState"] == "Cancelled"
    assert said["responseStatus"]["errorCode"] == "Cancelled"


def test_answer_cannot_speak_for_the_job() -> None:
    said = json.loads(body_of(job(result=b'{"RefID": "forged", "jobid": 1, "id": "x"}')))
    assert said == {"id": "x", "refId": "a" * 32, "jobId": 17, "jobState": "Completed"}


@pytest.mark.parametrize(
    ("result", "members"),
    [
        (b"[1, 2]", {"result": [1, 2]}),
        (b"not json", {"result": "not json"}),
        (b'{"\xff": 1}', {"result": '{"\ufffd": 1}'}),
        (b'{"a":' + b"[" * 9_999 + b"]" * 9_999 + b"}", {"jobId": 17}),
        (b"", {}),
        (None, {}),
    ],
)
def test_result_that_is_no_object_is_a_member(result: bytes, members: dict[str, Any]) -> None:
    assert json.loads(body_of(job(result=result))).items() >= members.items()


def test_callback_of_a_job_goes_where_it_asked() -> None:
    made = Callbacks(addresses()).of(job(reply_to="put https://Hooks.Example/a?id=1"))
    assert made is not None
    assert (made.verb, made.url) == ("PUT", "https://Hooks.Example/a?id=1")
    assert (made.receiver, made.job_id, made.key_id) == ("https://hooks.example:443", 17, 3)
    assert made.id.startswith("msg_")
    assert made.due == 2_000


@pytest.mark.parametrize("reply_to", [None, "ftp://nowhere"])
def test_job_without_usable_address_ends_all_the_same(reply_to: str | None) -> None:
    assert Callbacks(addresses()).of(job(reply_to=reply_to)) is None


def test_example_says_that_it_is_one() -> None:
    assert msgspec.json.decode(example_body("msg_1"))["test"] is True


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("https://hooks.example/", "POST"),
        ("  https://hooks.example/ ", "POST"),
        ("PUT https://hooks.example/", "PUT"),
        ("patch  https://hooks.example/", "PATCH"),
    ],
)
def test_verb_may_stand_before_the_address(text: str, verb: str) -> None:
    assert addresses().read(text).verb == verb


@pytest.mark.parametrize(
    "text",
    [
        *("", "nowhere", "GET https://hooks.example/", "PUT POST https://hooks.example/"),
        *("file:///etc/passwd", "https://user:pw@hooks.example/", "https://hooks.example/a b"),
    ],
)
def test_unusable_address_is_the_callers_error(text: str) -> None:
    with pytest.raises(InvalidRequest, match="replyTo: ") as refused:
        addresses().read(text)
    assert refused.value.http_status == 400
    assert refused.value.fields[0].field_name == "ReplyTo"


async def test_private_address_is_refused_before_a_job_is_stored() -> None:
    for url in ("http://169.254.169.254/latest", "http://127.0.0.1:8080/", "http://[::1]/"):
        with pytest.raises(InvalidRequest, match="OUTBOUND_ALLOW"):
            await addresses().admit(url)
    with pytest.raises(InvalidRequest, match="is not a public address") as refused:
        await addresses(resolved=["10.1.2.3"]).admit("https://hooks.example/")
    assert "10.1.2.3" not in refused.value.message


async def test_allowed_private_address_is_admitted() -> None:
    admitted = await addresses(allow="10.0.0.0/8", resolved=["10.1.2.3"]).admit("http://a.test/")
    assert admitted.receiver == "http://a.test:80"


async def test_own_sink_needs_no_permission() -> None:
    own = addresses("https://ai.example/base/", "http://localhost:5006")
    for url in ("https://ai.example/base/dummyreplyto", "http://LOCALHOST:5006/dummyreplyto?x=1"):
        assert (await own.admit(url)).own


@pytest.mark.parametrize(
    "url",
    [
        *("https://ai.example/base", "https://ai.example/base/api/AdminCancelJobs"),
        *("https://ai.example./base/v1/chat/completions", "https://AI.Example:443/base/"),
        *("https://ai.example/base/x/../dummyreplyto", "https://ai.example/base//dummyreplyto"),
        *(
            "https://ai.example//base/x",
            "https://ai.example/./base/x",
            "https://ai.example/b%61se/x",
        ),
        *("https://ai.example/hooks/../base/x", "https://ai.example/hooks/%2e%2E/base/x"),
        *("https://ai.example/hooks/..%2fbase/x", "https://ai.example/hooks%5c..%5cbase/x"),
        *("https://ai.example/hooks/%252e%252e/base/x", "https://ai.example/base/../hooks"),
        *("https://ai.example/base?x=/../../hooks", "https://ai.example/../base/x"),
    ],
)
async def test_nothing_else_of_this_server_is_called(url: str) -> None:
    with pytest.raises(InvalidRequest, match="/dummyreplyto"):
        await addresses("https://ai.example/base").admit(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://ai.example/hooks", "https://ai.example/", "https://ai.example"),
        *(
            "https://ai.example/dummyreplyto",
            "https://ai.example/based/x",
            "https://ai.example/x/base",
        ),
        *("https://ai.example/hooks?to=/base/x", "https://ai.example:8443/base/x"),
    ],
)
async def test_rest_of_a_host_with_a_base_path_is_called(url: str) -> None:
    assert not (await addresses("https://ai.example/base").admit(url)).own


@pytest.mark.parametrize("path", ["", "/", "/hooks", "/hooks/../dummyreplyto", "//dummyreplyto"])
async def test_whole_host_is_own_without_a_base_path(path: str) -> None:
    with pytest.raises(InvalidRequest, match="/dummyreplyto"):
        await addresses("https://ai.example/").admit(f"https://ai.example{path}")


def test_impossible_own_address_stops_the_start() -> None:
    with pytest.raises(ValueError, match="PUBLIC_URL"):
        addresses("https://user:pw@ai.example")
