"""Answers who asks for a signed address for an upload, and who sends a file to one."""

import msgspec

from aiserver.contract.errors import BodyTooLarge, FieldError, InvalidRequest
from aiserver.contract.operation import Call, Handler
from aiserver.contract.uploads import BODY, Upload
from aiserver.files.artifacts import Artifacts
from aiserver.files.operations import (
    CreateUploadUrl,
    CreateUploadUrlResponse,
    SendSignedUpload,
    StoreFileUploadResponse,
)
from aiserver.files.paths import address
from aiserver.files.scratch import scratch_folder
from aiserver.files.upload_handlers import keep, path_for, written
from aiserver.files.upload_urls import UploadUrl, UploadUrls


class SignedUploadHandlers:
    """`largest` in bytes; `base` begins the addresses, else what the caller wrote."""

    def __init__(self, artifacts: Artifacts, urls: UploadUrls, *, largest: int, base: str) -> None:
        self._artifacts = artifacts
        self._urls = urls
        self._largest = largest
        self._base = base

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {CreateUploadUrl: self.create, SendSignedUpload: self.send}

    async def create(self, request: CreateUploadUrl, call: Call) -> CreateUploadUrlResponse:
        path = path_for(request.location, call.caller, request.name)
        most = request.max_size or self._largest
        if most > self._largest:
            problem = (
                f"'Max Size' is over the {self._largest} bytes that this server keeps of a file; "
                "ask for less, or have your administrator raise MAX_FILE."
            )
            error = FieldError("LessThanOrEqual", "MaxSize", problem)
            raise InvalidRequest.of([error], param="maxSize")
        base = self._base or call.base
        url, end = await self._urls.issue(path, most=most, seconds=request.expires_in, base=base)
        return CreateUploadUrlResponse(url=url, path=address(path), max_size=most, expires=end)

    async def send(self, request: SendSignedUpload, call: Call) -> StoreFileUploadResponse:
        url = UploadUrl(id=request.id, path=request.path, most=request.max_size)
        await self._urls.check(url, request.expires, request.signature)
        file: Upload = call.files[BODY]
        if (file.size or 0) > url.most:
            raise _too_large(url.most)
        async with self._urls.arriving(url), scratch_folder() as folder:
            source = folder / "upload"
            if not await written(file, source, most=url.most):
                raise _too_large(url.most)
            async with self._urls.using(url, request.expires):
                await keep(self._artifacts, url.path, source)
        return StoreFileUploadResponse(results=[address(url.path)])


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"This address takes a file of at most {most} bytes, and nothing was kept; send a smaller "
        "one, or ask whoever gave you the address for another one."
    )
