"""Looks into a file without trusting it: in a limited child, for a bounded time."""

import sys
from pathlib import Path

import msgspec

from aiserver.transforms.av import accepted, ffprobe
from aiserver.transforms.av.child import Child, Ended
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


async def probe(path: Path, *, programs: Programs, limits: Limits, picture: bool = False) -> Found:
    """What a file holds. Raises MediaRefused, TransformFailed when the child crashed or hung."""
    what = "a picture" if picture else "audio or video"
    path = _not_empty(path, what)
    formats = accepted.PICTURES if picture else accepted.MEDIA
    found, reason = None, ""
    if programs.ffprobe is not None:
        found, reason = await _by_ffprobe(programs.ffprobe, path, formats, limits)
    if found is None or not (found.exact or picture):
        found, reason = await _by_reader(path, formats, limits)
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
    printed, ended = await _run(argv, path.parent, limits)
    if ended.timed_out or ended.code != 0:
        return None, ended.said
    try:
        return ffprobe.read(printed, _size(path)), ""
    except msgspec.DecodeError as error:
        return None, str(error)


async def _by_reader(
    path: Path, formats: tuple[str, ...], limits: Limits
) -> tuple[Found | None, str]:
    order = {
        "path": str(path),
        "options": guarded(formats, limits),
        "counting": limits.probe_seconds / 2,
    }
    # -P, since the folder it runs in holds files of callers.
    argv = (sys.executable, "-P", "-B", "-m", READER, msgspec.json.encode(order).decode())
    printed, ended = await _run(argv, path.parent, limits)
    if ended.timed_out:
        raise TransformFailed(
            f"Reading this file took longer than {limits.probe_seconds:g} seconds",
            detail=ended.said,
        )
    try:
        answer = msgspec.json.decode(printed, type=Answer)
    except msgspec.DecodeError:
        raise TransformFailed(
            "Reading this file failed on the server", detail=f"exit code {ended.code}: {ended.said}"
        ) from None
    return answer.found, answer.refused


async def _run(argv: tuple[str, ...], folder: Path, limits: Limits) -> tuple[bytes, Ended]:
    printed = bytearray()

    def keep(data: bytes) -> None:
        printed.extend(data[: limits.probe_bytes - len(printed)])

    child = Child(argv, limits=limits.for_probe(), folder=folder, on_output=keep)
    ended = await child.run(limits.probe_seconds)
    return bytes(printed), ended


def _not_empty(path: Path, what: str) -> Path:
    if _size(path) == 0:
        raise MediaRefused(f"This file is empty; send {what}")
    return path.absolute()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise TransformFailed("The file to transform is gone", detail=str(error)) from error
