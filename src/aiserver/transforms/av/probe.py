"""Looks into a file without trusting it: in a limited child, for a bounded time."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from aiserver.transforms.av import accepted, ffprobe
from aiserver.transforms.av.child import Child, Running
from aiserver.transforms.av.errors import MediaRefused, TransformFailed
from aiserver.transforms.av.found import Found
from aiserver.transforms.av.limits import Limits
from aiserver.transforms.av.parts import guarded
from aiserver.transforms.av.programs import Programs

READER = "aiserver.transforms.av.reader"
UNREADABLE = (
    "This file cannot be read as {}: it is damaged, of another kind, or a playlist; send the "
    "media file itself"
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the reader prints."""

    found: Found | None = None
    refused: str = ""


class Reader:
    """A child that reads one file's headers; `ready` starts it before it is known which."""

    def __init__(self, running: Running, printed: bytearray, limits: Limits) -> None:
        self._running = running
        self._printed = printed
        self._limits = limits

    @property
    def waits(self) -> bool:
        """Whether it can still be told of a file."""
        return self._running.alive

    async def read(self, path: Path, formats: tuple[str, ...]) -> Answer:
        """Once. Raises TransformFailed."""
        seconds = self._limits.probe_seconds
        order = {
            "path": str(path),
            "options": guarded(formats, self._limits),
            "counting": seconds / 2,
        }
        self._running.tell(msgspec.json.encode(order))
        ended = await self._running.ended(seconds)
        if ended.timed_out:
            raise TransformFailed(
                f"Reading this file took longer than {seconds:g} seconds", detail=ended.said
            )
        try:
            return msgspec.json.decode(self._printed, type=Answer)
        except msgspec.DecodeError:
            raise TransformFailed(
                "Reading this file failed on the server",
                detail=f"exit code {ended.code}: {ended.said}",
            ) from None


@asynccontextmanager
async def ready(folder: Path, *, limits: Limits) -> AsyncGenerator[Reader]:
    """For the time of the block, since loading FFmpeg's libraries takes a tenth of a second."""
    # -P, since the folder it runs in holds files of callers.
    argv = (sys.executable, "-P", "-B", "-m", READER)
    printed = bytearray()
    child = _child(argv, folder, limits, printed, told=True)
    async with child.begun() as running:
        yield Reader(running, printed, limits)


async def probe(
    path: Path,
    *,
    programs: Programs,
    limits: Limits,
    picture: bool = False,
    reader: Reader | None = None,
) -> Found:
    """What a file holds, by a `reader` that is ready or by one of its own.

    Raises MediaRefused, TransformFailed when the child crashed or hung.
    """
    what = "a picture" if picture else "audio or video"
    path = _not_empty(path, what)
    formats = accepted.PICTURES if picture else accepted.MEDIA
    found, reason = None, ""
    if programs.ffprobe is not None:
        found, reason = await _by_ffprobe(programs.ffprobe, path, formats, limits)
    if found is None or not (found.exact or picture):
        answer = await _answer(path, formats, limits, reader)
        found, reason = answer.found, answer.refused
    if found is None or found.container not in formats:
        raise MediaRefused(UNREADABLE.format(what), detail=reason or _found_as(found))
    return found


def _found_as(found: Found | None) -> str:
    return "" if found is None else f"it is {found.container}"


async def _by_ffprobe(
    program: str, path: Path, formats: tuple[str, ...], limits: Limits
) -> tuple[Found | None, str]:
    """Quicker, where it is there; what it cannot read, or time, is left to the reader."""
    argv = (program, *ffprobe.arguments(path, formats, limits))
    printed = bytearray()
    ended = await _child(argv, path.parent, limits, printed).run(limits.probe_seconds)
    if ended.timed_out or ended.code != 0:
        return None, ended.said
    try:
        return ffprobe.read(bytes(printed), _size(path)), ""
    except msgspec.DecodeError as error:
        return None, str(error)


async def _answer(
    path: Path, formats: tuple[str, ...], limits: Limits, reader: Reader | None
) -> Answer:
    if reader is not None and reader.waits:
        return await reader.read(path, formats)
    async with ready(path.parent, limits=limits) as own:
        return await own.read(path, formats)


def _child(
    argv: tuple[str, ...], folder: Path, limits: Limits, printed: bytearray, *, told: bool = False
) -> Child:
    def keep(data: bytes) -> None:
        printed.extend(data[: limits.probe_bytes - len(printed)])

    return Child(argv, limits=limits.for_probe(), folder=folder, on_output=keep, told=told)


def _not_empty(path: Path, what: str) -> Path:
    if _size(path) == 0:
        raise MediaRefused(f"This file is empty; send {what}")
    return path.absolute()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise TransformFailed("The file to transform is gone", detail=str(error)) from error
