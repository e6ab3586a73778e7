"""Queue twins: made from a declaration, bound as any operation, taken apart into call and wishes."""

from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.contract.binding import Binder
from aiserver.contract.caller import Caller
from aiserver.contract.errors import Forbidden, InvalidRequest
from aiserver.contract.operation import (
    GET,
    POST,
    Access,
    Answer,
    Call,
    Operation,
    Queued,
    operation,
    operation_of,
)
from aiserver.contract.registry import Registry, RegistryError
from aiserver.contract.responses import Wire
from aiserver.contract.twins import Split, Wishes, split, status_url, twin_of, twins_of
from aiserver.contract.uploads import FileField
from aiserver.jobs.records import (
    BackgroundJobState,
    QueueGenerationResponse,
    QueueMediaTransformResponse,
    QueueOpenAiChatResponse,
    acknowledgement,
)
from aiserver.keys.access import permit
from contract import compare, read_contract

ARTIFACT = Queued(into=QueueGenerationResponse, kind="media", status="GetArtifactGenerationStatus")
WISHES = {"refId", "provider", "replyTo", "tag", "state", "priority", "runAfter"}


class ImageOutputFormat(Enum):
    PNG = "png"
    WEBP = "webp"


@operation(
    tag="AI",
    verbs=POST,
    access=Access.KEY,
    returns=None,
    queued=msgspec.structs.replace(ARTIFACT, renamed={"input": "text"}),
)
class TextToSpeech(Wire, kw_only=True):
    """Speaks a text."""

    input: Annotated[str, Meta(min_length=1)]
    model: str | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    ref_id: str | None = None
    tag: str | None = None


@operation(
    tag="AI",
    verbs=POST,
    access=Access.KEY,
    returns=None,
    files=(FileField("image"),),
    queued=msgspec.structs.replace(
        ARTIFACT, status="GetTextGenerationStatus", without=("model", "prompt")
    ),
)
class ImageToText(Wire, kw_only=True):
    """Tells what an image shows."""

    model: str | None = None
    prompt: str | None = None
    ref_id: str | None = None
    tag: str | None = None


@operation(
    tag="Media",
    verbs=POST,
    access=Access.KEY,
    returns=None,
    files=(FileField("image"),),
    queued=Queued(
        into=QueueMediaTransformResponse, kind="transform", status="GetArtifactGenerationStatus"
    ),
)
class ConvertImage(Wire, kw_only=True):
    """Converts an image."""

    output_format: ImageOutputFormat
    sizes: list[int] = []
    ref_id: str | None = None
    tag: str | None = None


@operation(
    tag="Media",
    verbs=POST,
    access=Access.KEY,
    returns=QueueMediaTransformResponse,
    queued=Queued(
        into=QueueMediaTransformResponse,
        kind="transform",
        status="GetArtifactGenerationStatus",
        only=True,
    ),
)
class QueueAnything(Wishes, kw_only=True):
    """Queues whatever it is told."""

    request: dict[str, int]


@operation(tag="Media", verbs=GET, access=Access.KEY, returns=None)
class GetArtifactGenerationStatus(Wire, kw_only=True):
    """Tells how far it is."""


async def nothing(request: Any, call: Call) -> Answer:
    return None


def twin(request: type[msgspec.Struct]) -> type[msgspec.Struct]:
    made = twin_of(request)
    assert made is not None
    return made


def queue(request: type[msgspec.Struct]) -> Operation:
    return operation_of(twin(request))


def queued(request: type[msgspec.Struct], members: dict[str, Any], **pairs: str) -> Split:
    """As the dispatcher and a handler would: bound in place, then taken apart."""
    bound = Binder(twin(request)).bind(members, pairs.items())
    return split(bound, members)


def members_of(request: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(twin(request))}


def declare(queued: Queued, **members: Any) -> type[msgspec.Struct]:
    fields = [(name, kind, None) for name, kind in members.items()]
    made = msgspec.defstruct("Paint", fields, bases=(Wire,), namespace={"__doc__": "Paints."})
    return operation(tag="T", verbs=POST, access=Access.KEY, returns=None, queued=queued)(made)


def test_chat_twin_nests_the_call_beside_the_wishes() -> None:
    assert members_of(OpenAiChatCompletion) == {"request", *WISHES}
    assert members_of(OllamaGeneration) == {"request", *WISHES}
    made = queue(OpenAiChatCompletion)
    assert (made.name, made.verbs, made.access, made.tag, made.returns, made.routes) == (
        "QueueOpenAiChatCompletion",
        POST,
        Access.KEY,
        "AI",
        QueueOpenAiChatResponse,
        (),
    )


def test_chat_twins_keep_the_contract() -> None:
    names = ("QueueOpenAiChatCompletion", "QueueOllamaGeneration")
    found = compare([queue(OpenAiChatCompletion), queue(OllamaGeneration)], read_contract())
    assert {(each.member, each.what) for each in found if each.on in names} == {
        (member, "extra") for member in ("priority", "runAfter", "state")
    }


def test_queued_chat_reaches_the_original_as_sent() -> None:
    sent = {
        "RefId": "r1",
        "provider": "groq",
        "request": {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "maxTokens": 5,
            "stream": True,
            "reasoning_effort": "low",
        },
    }
    found = queued(OpenAiChatCompletion, sent)
    assert found.members == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "reasoning_effort": "low",
        "refId": "r1",
        "provider": "groq",
    }
    again = Binder(OpenAiChatCompletion).bind(dict(found.members))
    assert (again.model, again.ref_id, again.provider) == ("m", "r1", "groq")
    assert sent["request"]["stream"] is True  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_ollama_options_arrive_unchanged() -> None:
    call = {"model": "m", "prompt": "p", "keepAlive": "5m", "options": {"top_k": 3, "new": 1}}
    found = queued(OllamaGeneration, {"request": dict(call), "tag": "t"})
    assert found.members == {
        "model": "m",
        "prompt": "p",
        "keep_alive": "5m",
        "options": {"top_k": 3, "new": 1},
        "tag": "t",
    }


def test_wishes_are_read_in_any_spelling() -> None:
    found = queued(
        TextToSpeech,
        {"text": "hi", "reply_to": "PUT https://x.test/", "State": "s", "priority": "7"},
        refId="r",
        RunAfter="2026-05-09T12:00:00+02:00",
    )
    assert found.wishes == Wishes(
        ref_id="r",
        reply_to="PUT https://x.test/",
        state="s",
        priority=7,
        run_after=datetime(2026, 5, 9, 10, tzinfo=UTC),
    )


def test_empty_wish_is_none() -> None:
    found = queued(TextToSpeech, {"text": "hi", "refId": "", "replyTo": "", "state": None})
    assert found == ({"input": "hi"}, Wishes())


def test_queueing_alone_never_reaches_the_call() -> None:
    given = {"replyTo": "https://x.test/", "state": "s", "priority": 1, "tag": "t", "seed": 4}
    found = queued(TextToSpeech, {"text": "hi", **given})
    assert found.members == {"input": "hi", "seed": 4, "tag": "t"}


def test_drifted_name_stands_for_the_original() -> None:
    assert members_of(TextToSpeech) == {"text", "model", "seed", *WISHES}
    with pytest.raises(InvalidRequest) as refused:
        queued(TextToSpeech, {"input": "hi"})
    assert [error.field_name for error in refused.value.fields] == ["Text"]
    assert queued(TextToSpeech, {"text": "a", "input": "b"}).members == {"input": "a"}


def test_member_that_the_twin_lacks_stays_out() -> None:
    assert members_of(ImageToText) == WISHES
    assert queued(ImageToText, {"prompt": "what?", "tag": "t"}).members == {"tag": "t"}


def test_media_twin_keeps_rules_defaults_and_files() -> None:
    made = queue(ConvertImage)
    assert (made.files, made.returns, made.tag, made.keeps_members) == (
        (FileField("image"),),
        QueueMediaTransformResponse,
        "Media",
        True,
    )
    found = queued(ConvertImage, {"outputFormat": "ImageOutputFormat.WEBP"}, sizes="1,2")
    assert found.members == {"outputFormat": "ImageOutputFormat.WEBP", "sizes": ["1", "2"]}
    again = Binder(ConvertImage).bind(found.members)
    assert (again.output_format, again.sizes) == (ImageOutputFormat.WEBP, [1, 2])
    with pytest.raises(InvalidRequest) as refused:
        queued(ConvertImage, {"sizes": ["x"]})
    assert [error.field_name for error in refused.value.fields] == ["OutputFormat", "Sizes[0]"]


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("refId", "r" * 201, "Length"),
        ("refId", "a\x00b", "RequestBindingException"),
        ("tag", "a\n", "RequestBindingException"),
        ("priority", 101, "LessThanOrEqual"),
        ("priority", -101, "GreaterThanOrEqual"),
        ("state", "s" * 4001, "Length"),
        ("replyTo", "h" * 2001, "Length"),
        ("runAfter", "soon", "RequestBindingException"),
    ],
)
def test_wish_out_of_bounds_is_refused(member: str, value: Any, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        queued(TextToSpeech, {"text": "hi", member: value})
    (error,) = refused.value.fields
    assert (error.error_code, error.field_name) == (code, member[0].upper() + member[1:])


def test_wish_at_its_bound_is_taken() -> None:
    at = {"refId": "r" * 200, "priority": -100, "state": "s" * 4000}
    assert queued(TextToSpeech, {"text": "hi", **at}).wishes.priority == -100


def test_twin_is_one_type_and_knows_its_original() -> None:
    assert twin_of(TextToSpeech) is twin_of(TextToSpeech)
    assert queue(TextToSpeech).twin_of is operation_of(TextToSpeech)
    assert twin_of(GetArtifactGenerationStatus) is None
    asked = [GetArtifactGenerationStatus, ConvertImage, TextToSpeech]
    assert [each.__name__ for each in twins_of(asked)] == ["QueueConvertImage", "QueueTextToSpeech"]


def test_twin_is_documented_as_any_operation() -> None:
    schema = msgspec.json.schema(twin(ConvertImage))["$defs"]["QueueConvertImage"]
    assert schema["required"] == ["outputFormat"]
    assert set(schema["properties"]) == {"outputFormat", "sizes", *WISHES}
    assert queue(ConvertImage).summary.startswith("Queues ConvertImage: answers at once")
    assert schema["description"] == queue(ConvertImage).summary


def test_key_limited_to_the_original_may_not_queue() -> None:
    limited = Caller(key_id=1, restrict_to=frozenset({"ConvertImage"}))
    permit(limited, operation_of(ConvertImage))
    with pytest.raises(Forbidden, match="may not call QueueConvertImage"):
        permit(limited, queue(ConvertImage))


def test_answer_takes_the_form_that_the_twin_declares() -> None:
    chat = acknowledgement(
        queue(OpenAiChatCompletion), job_id=7, ref_id="a b", state=BackgroundJobState.QUEUED
    )
    assert msgspec.to_builtins(chat) == {
        "id": 7,
        "refId": "a b",
        "statusUrl": "/api/GetOpenAiChatStatus?RefId=a%20b",
    }
    text = acknowledgement(
        queue(ImageToText), job_id=8, ref_id="r", state=BackgroundJobState.STARTED
    )
    assert msgspec.to_builtins(text) == {
        "jobId": 8,
        "refId": "r",
        "jobState": "Started",
        "status": "Started",
        "statusUrl": "/api/GetTextGenerationStatus?RefId=r",
    }


def test_unknown_member_in_a_declaration_stops_the_start() -> None:
    wrong = msgspec.structs.replace(ARTIFACT, renamed={"inputs": "text"}, without=("more",))
    with pytest.raises(TypeError, match="Paint has no member inputs, more"):
        twin_of(declare(wrong, input=str))


@pytest.mark.parametrize(
    ("queued", "members"),
    [
        (ARTIFACT, {"priority": int}),
        (msgspec.structs.replace(ARTIFACT, renamed={"input": "state"}), {"input": str}),
        (msgspec.structs.replace(ARTIFACT, renamed={"a": "b"}), {"a": str, "b": str}),
    ],
)
def test_member_twice_stops_the_start(queued: Queued, members: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"The twin of Paint would have \w+ twice"):
        twin_of(declare(queued, **members))


def test_twin_without_its_status_call_stops_the_start() -> None:
    handlers = dict.fromkeys([ConvertImage, twin(ConvertImage)], nothing)
    with pytest.raises(RegistryError, match="needs 'GetArtifactGenerationStatus'"):
        Registry(handlers)
    found = Registry({**handlers, GetArtifactGenerationStatus: nothing})
    assert found.named("queueconvertimage") is queue(ConvertImage)


def test_twin_without_its_original_stops_the_start() -> None:
    handlers = dict.fromkeys([twin(ConvertImage), GetArtifactGenerationStatus], nothing)
    with pytest.raises(RegistryError, match="needs 'ConvertImage'"):
        Registry(handlers)


def test_operation_that_only_queues_has_no_twin() -> None:
    assert twin_of(QueueAnything) is None
    assert twins_of([QueueAnything]) == []
    assert operation_of(QueueAnything).queues is operation_of(QueueAnything)
    assert queue(ConvertImage).queues is operation_of(ConvertImage)
    assert operation_of(ConvertImage).queues is None


def test_operation_that_only_queues_is_taken_apart_too() -> None:
    members = {"Request": {"a": 1}, "ref_id": "r", "state": "s", "priority": "7", "new": 1}
    bound = Binder(QueueAnything).bind(members)
    found = split(bound, members)
    assert found.members == {"request": {"a": 1}, "refId": "r", "new": 1}
    assert found.wishes == Wishes(ref_id="r", state="s", priority=7)
    answer = acknowledgement(
        operation_of(QueueAnything), job_id=1, ref_id="r", state=BackgroundJobState.QUEUED
    )
    assert msgspec.to_builtins(answer)["statusUrl"] == "/api/GetArtifactGenerationStatus?RefId=r"


def test_operation_that_only_queues_needs_its_status_call() -> None:
    with pytest.raises(RegistryError, match="needs 'GetArtifactGenerationStatus'"):
        Registry({QueueAnything: nothing})


def test_only_a_twin_can_be_taken_apart() -> None:
    with pytest.raises(TypeError, match="queues no operation"):
        split(GetArtifactGenerationStatus(), {})
    with pytest.raises(TypeError, match="cannot be queued"):
        status_url(operation_of(GetArtifactGenerationStatus), "r")
    with pytest.raises(TypeError, match="queues no operation"):
        acknowledgement(
            operation_of(ConvertImage), job_id=1, ref_id="r", state=BackgroundJobState.QUEUED
        )
