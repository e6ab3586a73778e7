"""Queue twins through the door: forms with files, what is missing, and who may queue."""

from typing import Any, cast

import msgspec
import pytest

from aiserver.contract.operation import POST, Access, Call, Queued, operation
from aiserver.contract.registry import Registry
from aiserver.contract.responses import Wire
from aiserver.contract.twins import split, twin_of
from aiserver.contract.uploads import FileField
from aiserver.dispatch import Dispatch
from aiserver.jobs.records import BackgroundJobState, QueueGenerationResponse, acknowledgement
from aiserver.jobs.status_operations import GetArtifactGenerationStatus
from gateway import TestGateway


@operation(
    tag="T",
    verbs=POST,
    access=Access.KEY,
    returns=None,
    files=(FileField("image"),),
    queued=Queued(
        into=QueueGenerationResponse,
        kind="media",
        status="GetArtifactGenerationStatus",
        renamed={"positivePrompt": "text"},
    ),
)
class PaintImage(Wire, kw_only=True):
    """Paints."""

    positive_prompt: str
    width: int | None = None
    ref_id: str | None = None
    tag: str | None = None


class Queue:
    """Keeps what it is told to queue."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any], Any]] = []

    async def take(self, request: msgspec.Struct, call: Call) -> msgspec.Struct:
        members, wishes = split(request, call.members)
        assert call.operation.twin_of is not None
        self.taken.append((call.operation.twin_of.name, members, wishes))
        self.files = {name: await file.read() for name, file in call.files.items()}
        return acknowledgement(
            call.operation,
            job_id=len(self.taken),
            ref_id=wishes.ref_id or "made",
            state=BackgroundJobState.QUEUED,
        )


async def nothing(request: Any, call: Call) -> None:
    return None


@pytest.fixture
def queue(gateway: TestGateway) -> Queue:
    kept = Queue()
    twin = cast("type[msgspec.Struct]", twin_of(PaintImage))
    registry = Registry(
        {PaintImage: nothing, twin: kept.take, GetArtifactGenerationStatus: nothing}
    )
    door = gateway.app.gateway
    door._registry, door._dispatch = (
        registry,
        Dispatch(registry, gateway.app._ring, gateway.app.settlement),
    )
    return kept


def part(name: str, value: str, more: str = "") -> bytes:
    return (
        f'--XX\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()
    )


async def test_form_with_a_file_is_queued(gateway: TestGateway, queue: Queue) -> None:
    body = part("Text", "a cat") + part("replyTo", "https://x.test/") + part("width", "64")
    body += part("image", "pixels", '; filename="cat.png"') + b"--XX--\r\n"
    reply = await gateway.call(
        "POST",
        "/api/QueuePaintImage?refId=r%201&tag=t",
        body,
        headers={"content-type": "multipart/form-data; boundary=XX"},
    )
    assert reply.json() == {
        "jobId": 1,
        "refId": "r 1",
        "jobState": "Queued",
        "status": "Queued",
        "statusUrl": "/api/GetArtifactGenerationStatus?RefId=r%201",
    }
    ((name, members, wishes),) = queue.taken
    assert name == "PaintImage"
    assert members == {"positivePrompt": "a cat", "width": "64", "refId": "r 1", "tag": "t"}
    assert (wishes.reply_to, wishes.ref_id) == ("https://x.test/", "r 1")
    assert queue.files == {"image": b"pixels"}


async def test_missing_file_is_refused_before_it_is_queued(
    gateway: TestGateway, queue: Queue
) -> None:
    reply = await gateway.call("POST", "/api/QueuePaintImage", {"text": "a cat"})
    assert (reply.status, reply.problem()["errors"][0]["fieldName"]) == (400, "Image")
    assert queue.taken == []


async def test_twin_needs_a_key_as_its_original_does(gateway: TestGateway, queue: Queue) -> None:
    reply = await gateway.call("POST", "/api/QueuePaintImage", {"text": "a cat"}, key=None)
    assert (reply.status, queue.taken) == (401, [])
