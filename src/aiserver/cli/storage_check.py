"""What `doctor` looks at where results and files are kept: two folders, or an object store."""

import asyncio
import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from aiserver import settings as s
from aiserver.cli.checks import FAILED, OK, WARNING, Finding, Installation
from aiserver.files.storage import storage_of

NAME = "storage"
_GIGABYTE = 10**9
_LEAST_FREE, _LITTLE_FREE = 0.2 * _GIGABYTE, 2 * _GIGABYTE
# Less than a check has, so that its own words are read.
_SECONDS = 5.0
_LONGEST = 200
_ERROR = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_STATUS = re.compile(r"status code: (\d{3} [\w ]+)")
_MENDED = {
    "NoSuchBucket": "Make the bucket, or correct its name in STORAGE_URL.",
    "InvalidAccessKeyId": "Correct AWS_ACCESS_KEY_ID.",
    "SignatureDoesNotMatch": "Correct AWS_SECRET_ACCESS_KEY.",
    "AccessDenied": "Allow these credentials to put, get, list and delete objects there.",
    "PermanentRedirect": "Set the region of the bucket: ?region= in STORAGE_URL.",
    "AuthorizationHeaderMalformed": "Set the region of the bucket: ?region= in STORAGE_URL.",
    "RequestTimeTooSkewed": "Set the clock of this machine.",
}
# Where a machine in a cloud would be told its own credentials.
_ASKED_AROUND = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")


def folders(at: Installation) -> Finding:
    """Whether both can be written, and how much there is room for."""
    places = storage_of(at.settings).folders
    found: list[str] = []
    free = 0.0
    for setting, folder in zip((s.ARTIFACTS_PATH, s.AI_FILES_PATH), places, strict=True):
        there = _nearest(folder)
        problem = _written(there)
        if problem:
            do = f"Give the server's user write access, or choose another folder: {setting.name}."
            return Finding(NAME, FAILED, f"{folder} cannot be written: {problem}", do)
        room = shutil.disk_usage(there).free
        free = room if not found else min(free, room)
        found.append(f"{folder}" if there == folder else f"{folder} (made with the first file)")
    told = f"{' and '.join(found)}; {free / _GIGABYTE:.1f} GB free"
    if free < _LITTLE_FREE:
        do = "Free some space, set ARTIFACT_TTL, or move ARTIFACTS_PATH and AI_FILES_PATH."
        return Finding(NAME, FAILED if free < _LEAST_FREE else WARNING, told, do)
    return Finding(NAME, OK, told)


async def store(at: Installation) -> Finding:
    """Whether an object can be put, read, listed and deleted in each of its two places."""
    # Ten megabytes that only an installation with a store needs.
    from aiserver.files.blobs import TROUBLE, tried  # noqa: PLC0415

    url = at.settings[s.STORAGE_URL]
    where = url.partition("?")[0]
    try:
        async with asyncio.timeout(_SECONDS + 1):
            for place in ("artifacts", "files"):
                await tried(url, place, seconds=_SECONDS)
    except TROUBLE as error:
        return _failed(where, url, str(error) or "gave no answer in time")
    return Finding(NAME, OK, f"{where} takes, gives, lists and deletes objects")


def _failed(where: str, url: str, said: str) -> Finding:
    code = _ERROR.search(said)
    if code is not None:
        found = f"{code[1]}: {code[2]}" if code[2] else code[1]
        do = _MENDED.get(code[1], "Correct STORAGE_URL, the credentials or their rights.")
    elif any(address in said for address in _ASKED_AROUND):
        found = "there are no credentials, and this machine is given none"
        do = "Set those of the store, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    else:
        status = _STATUS.search(said)
        found = f"status {status[1].strip()}" if status else "it cannot be reached"
        do = f"Start it, or correct {_endpoint(url)} in STORAGE_URL."
    return Finding(NAME, FAILED, f"{where}: {found}"[:_LONGEST], do)


def _endpoint(url: str) -> str:
    return "endpoint=" if "endpoint=" in urlsplit(url).query else "the address"


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one that it would be made in."""
    return next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))


def _written(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as opened:
            opened.write(b"probe")
            opened.flush()
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return ""
