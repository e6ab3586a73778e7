"""Answers transforms, as jobs: their files come into a scratch folder, the result is stored."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from aiserver.contract.errors import InvalidRequest
from aiserver.contract.operation import Call, Handler, operation_of
from aiserver.files.artifacts import Artifact, Artifacts
from aiserver.files.names import plain_name
from aiserver.jobs.records import ArtifactOutput
from aiserver.transforms import images, media
from aiserver.transforms.av import run
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.images import Imaging
from aiserver.transforms.operations import (
    KIND,
    ArtifactGenerationResponse,
    ImageRequest,
    MediaRequest,
)
from aiserver.transforms.scratch import Scratch, write
from aiserver.transforms.slots import CoreSlots

_MARK = "watermark"


class Taken(NamedTuple):
    """The caller's files on the scratch disk; `name` is that of the first as it was sent."""

    source: Path
    mark: Path | None
    name: str | None


class Transforms:
    """The room of transforms; `imaging` is started and stopped by who gives it."""

    def __init__(
        self,
        *,
        imaging: Imaging,
        artifacts: Artifacts,
        scratch: Scratch,
        slots: CoreSlots,
        limits: Limits | None = None,
    ) -> None:
        self._imaging = imaging
        self._artifacts = artifacts
        self._scratch = scratch
        self._slots = slots
        self._limits = limits or Limits()

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        pictures: dict[type[msgspec.Struct], Handler] = dict.fromkeys(
            get_args(ImageRequest), self.picture
        )
        return {**pictures, **dict.fromkeys(get_args(MediaRequest), self.medium)}

    def slots(self) -> Mapping[str, CoreSlots]:
        return {KIND: self._slots}

    def places(self) -> Mapping[str, Callable[[Any, Call], tuple[str, str]]]:
        return {request.__name__: checked for request in self.handlers()}

    async def picture(self, request: ImageRequest, call: Call) -> ArtifactGenerationResponse:
        began = time.monotonic()
        async with self._scratch.folder() as folder:
            taken = await _taken(call, folder)
            result = folder / "result"
            job = images.job_of(request, source=taken.source, result=result, mark=taken.mark)
            _tell(call, 0.0, "Transforming")
            made = await images.made(self._imaging, job)
            _tell(call, 0.99, "Storing the result")
            saved = await self._artifacts.save(
                result,
                key_id=call.caller.key_id or 0,
                extension=made.format,
                name=_named(taken.name, made.format),
                operation=call.operation.name,
                job_id=call.job and call.job.id,
                job_ref=call.job and call.job.ref_id,
                width=made.width,
                height=made.height,
            )
        return _answer(saved, began)

    async def medium(self, request: MediaRequest, call: Call) -> ArtifactGenerationResponse:
        began = time.monotonic()
        async with self._scratch.folder() as folder:
            taken = await _taken(call, folder)
            _tell(call, 0.0, "Transforming")
            made = await run.transform(
                media.asked(request),
                run.Sources(media=taken.source, watermark=taken.mark),
                folder,
                report=lambda percent: _tell(call, percent / 100),
                limits=self._limits,
            )
            _tell(call, 1.0, "Storing the result")
            video = next(iter(made.found.videos), None)
            extension = made.suffix.removeprefix(".")
            saved = await self._artifacts.save(
                made.path,
                key_id=call.caller.key_id or 0,
                extension=extension,
                name=_named(taken.name, extension),
                operation=call.operation.name,
                job_id=call.job and call.job.id,
                job_ref=call.job and call.job.ref_id,
                width=video and video.width,
                height=video and video.height,
                duration=made.found.duration,
            )
        return _answer(saved, began)


def checked(request: Any, call: Call) -> tuple[str, str]:
    """Any slot will do. Raises InvalidRequest for what is wrong before a job is stored."""
    for name, upload in call.files.items():
        if upload.size == 0:
            raise InvalidRequest(f"The {name} file is empty", param=name)
    check = images.check if isinstance(request, get_args(ImageRequest)) else media.check
    check(request, marked=_MARK in call.files)
    return "", ""


async def _taken(call: Call, folder: Path) -> Taken:
    """In files whose names are ours."""
    _tell(call, None, "Fetching the files")
    main = operation_of(call.operation.request).files[0].name
    source = folder / "source"
    await write(call.files[main], source)
    mark = folder / _MARK if _MARK in call.files else None
    if mark is not None:
        await write(call.files[_MARK], mark)
    return Taken(source, mark, call.files[main].filename)


def _tell(call: Call, progress: float | None, status: str | None = None) -> None:
    if call.job is not None:
        call.job.report(progress=progress, status=status)


def _named(sent: str | None, extension: str) -> str:
    """The caller's own name with the ending of the result."""
    stem = Path(plain_name(sent) or "").stem.strip(". ")
    return f"{stem or 'result'}.{extension}"


def _answer(saved: Artifact, began: float) -> ArtifactGenerationResponse:
    output = ArtifactOutput(url=f"/artifacts/{saved.path}", file_name=saved.name)
    took = timedelta(seconds=round(time.monotonic() - began, 3))
    return ArtifactGenerationResponse(results=[output], duration=took)
