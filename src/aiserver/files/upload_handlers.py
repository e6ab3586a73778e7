"""Answers uploads to /uploads: into a key's own folder, one bounded file at a time."""

import asyncio
from pathlib import Path

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.errors import BodyTooLarge, InvalidRequest, NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.contract.uploads import Upload
from aiserver.files.access import FileAccess
from aiserver.files.artifacts import PUB, SECURE, Artifacts
from aiserver.files.digests import pieces
from aiserver.files.names import upload_path
from aiserver.files.operations import (
    DeleteFileUpload,
    DeleteFileUploadResponse,
    ReplaceFileUpload,
    ReplaceFileUploadResponse,
    StoreFileUpload,
    StoreFileUploadResponse,
)
from aiserver.files.paths import address
from aiserver.files.scratch import scratch_folder

LOCATIONS = (PUB, SECURE)


class UploadHandlers:
    """`largest` in bytes."""

    def __init__(self, artifacts: Artifacts, access: FileAccess, *, largest: int) -> None:
        self._artifacts = artifacts
        self._access = access
        self._largest = largest

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            StoreFileUpload: self.store,
            ReplaceFileUpload: self.replace,
            DeleteFileUpload: self.delete,
        }

    async def store(self, request: StoreFileUpload, call: Call) -> StoreFileUploadResponse:
        if request.name not in LOCATIONS:
            raise NotFound(f"No place {request.name[:50]!r} for uploads; use pub or secure.")
        files = self._sent(call)
        named = [(path_for(request.name, call.caller, each.filename), each) for each in files]
        for path, upload in named:
            await self._keep(path, upload)
        return StoreFileUploadResponse(results=[address(path) for path, _ in named])

    async def replace(self, request: ReplaceFileUpload, call: Call) -> ReplaceFileUploadResponse:
        file = await self._access.own(request.path, call.caller, kinds=LOCATIONS)
        files = self._sent(call)
        if len(files) > 1:
            raise InvalidRequest(f"One file replaces another; {len(files)} were sent.")
        await self._keep(file.path, files[0])
        return ReplaceFileUploadResponse()

    async def delete(self, request: DeleteFileUpload, call: Call) -> DeleteFileUploadResponse:
        file = await self._access.own(request.path, call.caller, kinds=LOCATIONS)
        await self._artifacts.delete([file])
        return DeleteFileUploadResponse(result=True)

    def _sent(self, call: Call) -> list[Upload]:
        """Raises InvalidRequest for none, BodyTooLarge for one that is too large."""
        files: list[Upload] = list(call.files.values())
        if not files:
            raise InvalidRequest("No file was sent; send a form with a file (multipart/form-data).")
        for file in files:
            if (file.size or 0) > self._largest:
                raise BodyTooLarge(
                    f"{(file.filename or 'The file')[:100]} is larger than "
                    f"{self._largest / 1e6:g} MB; send a smaller one, or ask your administrator to "
                    "raise MAX_FILE."
                )
        return files

    async def _keep(self, path: str, upload: Upload) -> None:
        async with scratch_folder() as folder:
            source = folder / "upload"
            await written(upload, source)
            await keep(self._artifacts, path, source)


def path_for(location: str, caller: Caller, name: str | None) -> str:
    """Where a file of this name lies for its sender. Raises InvalidRequest for no name."""
    path = upload_path(location, key_id=caller.key_id or 0, name=name)
    if path is None:
        raise InvalidRequest("A file needs a name that can be seen and begins with no dot.")
    return path


async def written(upload: Upload, target: Path, *, most: int | None = None) -> bool:
    """Whether all of it is in the new file `target`: not where it has more bytes than `most`."""
    size = 0
    opened = await asyncio.to_thread(target.open, "xb")
    with opened:
        async for piece in pieces(upload):
            size += len(piece)
            if most is not None and size > most:
                return False
            await asyncio.to_thread(opened.write, piece)
    return True


async def keep(artifacts: Artifacts, path: str, source: Path) -> None:
    """As `Artifacts.save`, for a path of `path_for`."""
    kind, key_id, name = path.split("/", 2)
    await artifacts.save(
        source,
        key_id=int(key_id),
        extension=Path(name).suffix,
        kind=kind,
        name=name,
        path=path,
    )
