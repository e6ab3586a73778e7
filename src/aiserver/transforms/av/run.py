"""One transform from files to a file: look, plan, run ffmpeg, check."""

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from aiserver.contract.errors import StorageUnavailable
from aiserver.transforms.av.child import Child, Ended
from aiserver.transforms.av.errors import MediaRefused, TransformFailed
from aiserver.transforms.av.found import Found
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.parts import Plan, Source
from aiserver.transforms.av.plan import plan
from aiserver.transforms.av.probe import Reader, probe, ready
from aiserver.transforms.av.programs import Programs, find_programs
from aiserver.transforms.av.progress import Progress
from aiserver.transforms.av.requests import Request, WatermarkVideo, check
from aiserver.transforms.av.verify import verify

DISK_FULL = "No space left on device"
# What ffmpeg says when it is the server, and not the file, that falls short.
OUR_FAULT = (
    "Unknown encoder",
    "Unrecognized option",
    "Option not found",
    "Error parsing options",
    "Cannot allocate memory",
    "Permission denied",
    "Read-only file system",
    "Input/output error",
)


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """The caller's files on local disk; their names are of the server's choosing."""

    media: Path
    watermark: Path | None = None


class Produced(msgspec.Struct, frozen=True, kw_only=True):
    """The result: its file, with the dot of its suffix, its MIME type and what it holds."""

    path: Path
    suffix: str
    media_type: str
    found: Found


async def transform(
    request: Request,
    sources: Sources,
    target_folder: Path,
    *,
    report: Callable[[int], None],
    limits: Limits,
    programs: Programs | None = None,
) -> Produced:
    """Makes a file in the folder, which is there already; when this fails nothing is left in it.

    `report` gets percents, upwards to 100. Raises InvalidRequest for what the caller can mend,
    StorageUnavailable for a full disk, TransformFailed for the rest. Cancelling kills the child.
    """
    check(request)
    chosen = programs or find_programs()
    media = await _look(sources.media, chosen, limits)
    watermark = None
    if isinstance(request, WatermarkVideo):
        if sources.watermark is None:
            raise MediaRefused("No watermark image file provided")
        watermark = await _look(sources.watermark, chosen, limits, picture=True)
    planned = plan(request, media, target_folder, watermark=watermark, limits=limits)
    progress = Progress(planned.length, report)
    try:
        found = await _made(planned, chosen, limits, progress)
        verify(found, planned.container, planned.expected, reached=progress.reached)
    except BaseException:
        _remove(planned.target)
        raise
    progress.done()
    return Produced(
        path=planned.target,
        suffix=planned.container.suffix,
        media_type=planned.container.media_type,
        found=found,
    )


async def _look(path: Path, programs: Programs, limits: Limits, *, picture: bool = False) -> Source:
    found = await probe(path, programs=programs, limits=limits, picture=picture)
    return Source(path=path, found=found)


async def _made(planned: Plan, programs: Programs, limits: Limits, progress: Progress) -> Found:
    if programs.ffprobe is not None:
        await _run(planned, programs, limits, progress)
        return await _result(planned, programs, limits)
    async with ready(planned.target.parent, limits=limits) as reader:
        await _run(planned, programs, limits, progress)
        return await _result(planned, programs, limits, reader)


async def _run(planned: Plan, programs: Programs, limits: Limits, progress: Progress) -> None:
    child = Child(
        (programs.ffmpeg, *planned.arguments),
        limits=limits.for_transform(),
        folder=planned.target.parent,
        on_output=progress.feed,
    )
    ended = await child.run(limits.seconds)
    if ended.timed_out:
        raise TransformFailed(
            f"The transform took longer than {limits.seconds:g} seconds; send a shorter file",
            detail=ended.said,
        )
    if ended.code != 0:
        raise _failure(ended, limits)


async def _result(
    planned: Plan, programs: Programs, limits: Limits, reader: Reader | None = None
) -> Found:
    try:
        return await probe(planned.target, programs=programs, limits=limits, reader=reader)
    except MediaRefused as error:
        raise MediaRefused(
            "Nothing could be made of this file: what it says it holds cannot be decoded",
            detail=error.detail or error.message,
        ) from error


def _failure(ended: Ended, limits: Limits) -> Exception:
    if ended.code == -signal.SIGXFSZ:
        most = limits.result_bytes
        return MediaRefused(f"The result would be larger than {most} bytes; send a shorter file")
    if ended.code == -signal.SIGKILL:
        return TransformFailed(
            f"The transform took more than {limits.cpu_seconds} seconds of processor time or too "
            "much memory; send a shorter file",
            detail=ended.said,
        )
    if DISK_FULL in ended.said:
        return StorageUnavailable("The server's disk is full; nothing was changed. Try again later")
    if ended.code < 0 or any(words in ended.said for words in OUR_FAULT):
        return TransformFailed(
            "The transform failed on the server", detail=f"exit code {ended.code}: {ended.said}"
        )
    return MediaRefused(
        "This file cannot be transformed: it is damaged, or holds something that is not supported",
        detail=ended.said,
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
