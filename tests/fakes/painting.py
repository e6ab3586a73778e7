"""A room of operations with uploads that can be queued: one makes files, one tells a text.

`wish` in a request says how it goes: refused, broken (by its upstream), or held until `gate` opens.
Run as a program, it serves on the folder that is named, holds every job and tells of what it does.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from aiserver.contract.errors import InvalidRequest, UpstreamFailed
from aiserver.contract.operation import POST, Access, Call, Handler, Queued, operation
from aiserver.contract.responses import ResponseStatus, Wire
from aiserver.contract.trace import Trace
from aiserver.contract.uploads import FileField
from aiserver.jobs.records import ArtifactOutput, QueueGenerationResponse, TextOutput
from aiserver.work.rooms import Slots
from aiserver.work.twins import Placing
from fakes.upstream import Occurrences
from gateway import running_with


class PaintPictureResponse(Wire, kw_only=True):
    results: list[ArtifactOutput] | None = None
    response_status: ResponseStatus | None = None


@operation(
    tag="T",
    verbs=POST,
    access=Access.KEY,
    returns=PaintPictureResponse,
    files=(FileField("image"), FileField("mask", required=False)),
    queued=Queued(into=QueueGenerationResponse, kind="easel", status="GetArtifactGenerationStatus"),
)
class PaintPicture(Wire, kw_only=True):
    """Paints a picture over."""

    wish: str | None = None
    width: int | None = None
    ref_id: str | None = None
    tag: str | None = None


class ReadPictureResponse(Wire, kw_only=True):
    results: list[TextOutput] | None = None
    response_status: ResponseStatus | None = None


@operation(
    tag="T",
    verbs=POST,
    access=Access.KEY,
    returns=ReadPictureResponse,
    files=(FileField("image"),),
    queued=Queued(into=QueueGenerationResponse, kind="easel", status="GetTextGenerationStatus"),
)
class ReadPicture(Wire, kw_only=True):
    """Tells what a picture shows."""

    wish: str | None = None
    ref_id: str | None = None
    tag: str | None = None


class Seen(msgspec.Struct, frozen=True):
    """What a run was given of one upload."""

    field: str
    name: str | None
    content_type: str | None
    size: int | None
    content: bytes


class FreeSlot:
    worker = "easel"

    def give(self, trace: Trace) -> None: ...

    def release(self) -> None: ...


class Room:
    """There is always room."""

    def reserve(self, model: str, provider: str) -> FreeSlot:
        return FreeSlot()

    def watch(self, names: Sequence[tuple[str, ...]], freed: Callable[[], None]) -> None: ...


class Easel:
    """`seen` has the uploads of each run; `started` counts runs."""

    def __init__(self) -> None:
        self.seen: list[list[Seen]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = Occurrences()

    def handlers(self) -> Mapping[type[msgspec.Struct], Handler]:
        return {PaintPicture: self.paint, ReadPicture: self.tell}

    def slots(self) -> Mapping[str, Slots]:
        return {"easel": Room()}

    def places(self) -> Mapping[str, Placing]:
        return {}

    async def paint(self, request: PaintPicture, call: Call) -> PaintPictureResponse:
        seen = await self._look(request.wish, call)
        made = [ArtifactOutput(url=f"/artifacts/{s.field}.png", file_name=s.name) for s in seen]
        return PaintPictureResponse(results=made)

    async def tell(self, request: ReadPicture, call: Call) -> ReadPictureResponse:
        [seen] = await self._look(request.wish, call)
        return ReadPictureResponse(results=[TextOutput(text=seen.content.decode())])

    async def _look(self, wish: str | None, call: Call) -> list[Seen]:
        seen = [
            Seen(field, file.filename, file.content_type, file.size, await file.read())
            for field, file in sorted(call.files.items())
        ]
        self.seen.append(seen)
        self.started.add()
        await self.gate.wait()
        if wish == "refuse":
            raise InvalidRequest("The picture is too wide.")
        if wish == "break":
            raise UpstreamFailed("The easel broke.", retry_after=0.001)
        return seen


def form(**parts: str | tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A body with values and files (name, bytes), and the headers that go with it."""
    body = b""
    for name, value in parts.items():
        head = f'--XX\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, str):
            body += f"{head}\r\n\r\n{value}\r\n".encode()
            continue
        kind = "Content-Type: image/png"
        body += f'{head}; filename="{value[0]}"\r\n{kind}\r\n\r\n'.encode() + value[1] + b"\r\n"
    return body + b"--XX--\r\n", {"content-type": "multipart/form-data; boundary=XX"}


async def _serve(data: Path, environment: dict[str, str]) -> None:
    easel = Easel()
    easel.gate.clear()
    async with running_with([easel], data, None, environment) as gateway:
        print(gateway.port, flush=True)  # noqa: T201
        await easel.started.reach(1)
        print("started", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), dict(each.split("=", 1) for each in sys.argv[2:])))
