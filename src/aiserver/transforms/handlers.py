"""Answers transforms, as jobs: their files come into a scratch folder, the result is stored."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec

from aiserver.contract.operation import Call, Handler
from aiserver.files.artifacts import Artifact, Artifacts
from aiserver.files.names import plain_name
from aiserver.jobs.records import ArtifactOutput
from aiserver.transforms import images
from aiserver.transforms.av import run
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.requests import Request
from aiserver.transforms.images import Imaging
from aiserver.transforms.operations import (
    KIND,
    ArtifactGenerationResponse,
    ImageRequest,
    MediaRequest,
)
from aiserver.transforms.scratch import Scratch, write
from aiserver.transforms.slots import CoreSlots
from aiserver.transforms.task_operations import CreateMediaTransform
from aiserver.transforms.tasks import MARK, check, part_of, task_of


class Taken(NamedTuple):
    """The caller's files on the scratch disk; `name` is that of the first as it was sent."""

    source: Path
    mark: Path | None
    name: str | None


class Made(NamedTuple):
    """A result on the scratch disk; `duration` in seconds, None for a picture."""

    path: Path
    extension: str
    width: int | None
    height: int | None
    duration: float | None = None


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
        requests = (*get_args(ImageRequest), *get_args(MediaRequest), CreateMediaTransform)
        return dict.fromkeys(requests, self.transform)

    def slots(self) -> Mapping[str, CoreSlots]:
        return {KIND: self._slots}

    def places(self) -> Mapping[str, Callable[[Any, Call], tuple[str, str]]]:
        return {request.__name__: checked for request in self.handlers()}

    async def transform(
        self, request: ImageRequest | MediaRequest | CreateMediaTransform, call: Call
    ) -> ArtifactGenerationResponse:
        began = time.monotonic()
        task = task_of(request)
        async with self._scratch.folder() as folder:
            taken = await _taken(call, part_of(task), folder)
            _tell(call, 0.0, "Transforming")
            if isinstance(task, ImageRequest):
                made = await self._picture(task, taken, folder)
            else:
                made = await self._medium(task, taken, folder, call)
            _tell(call, 1.0, "Storing the result")
            saved = await self._artifacts.save(
                made.path,
                key_id=call.caller.key_id or 0,
                extension=made.extension,
                name=_named(taken.name, made.extension),
                operation=call.operation.name,
                job_id=call.job and call.job.id,
                job_ref=call.job and call.job.ref_id,
                width=made.width,
                height=made.height,
                duration=made.duration,
            )
        return _answer(saved, began)

    async def _picture(self, task: ImageRequest, taken: Taken, folder: Path) -> Made:
        result = folder / "result"
        job = images.job_of(task, source=taken.source, result=result, mark=taken.mark)
        made = await images.made(self._imaging, job)
        return Made(result, made.format, made.width, made.height)

    async def _medium(self, task: Request, taken: Taken, folder: Path, call: Call) -> Made:
        made = await run.transform(
            task,
            run.Sources(media=taken.source, watermark=taken.mark),
            folder,
            report=lambda percent: _tell(call, percent / 100),
            limits=self._limits,
        )
        video = next(iter(made.found.videos), None)
        return Made(
            made.path,
            made.suffix.removeprefix("."),
            video and video.width,
            video and video.height,
            made.found.duration,
        )


def checked(request: Any, call: Call) -> tuple[str, str]:
    """Any slot will do. Raises InvalidRequest for what is wrong before a job is stored."""
    check(task_of(request), call.files)
    return "", ""


async def _taken(call: Call, part: str, folder: Path) -> Taken:
    """In files whose names are ours."""
    _tell(call, None, "Fetching the files")
    source = folder / "source"
    await write(call.files[part], source)
    mark = folder / MARK if MARK in call.files else None
    if mark is not None:
        await write(call.files[MARK], mark)
    return Taken(source, mark, call.files[part].filename)


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
