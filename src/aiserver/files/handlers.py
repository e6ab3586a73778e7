"""Answers what is called about stored files, one's own or open ones."""

from collections.abc import AsyncGenerator
from typing import cast

import msgspec

from aiserver import settings as s
from aiserver.contract.autoquery import asks_total
from aiserver.contract.errors import ApiError, InvalidRequest, NotFound
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import EmptyResponse, QueryResponse
from aiserver.files.access import FileAccess, Publishes
from aiserver.files.artifacts import ARTIFACT, PUB, SECURE, Artifact, Artifacts
from aiserver.files.download import ELSEWHERE_SECONDS, Download
from aiserver.files.operations import (
    DeleteFile,
    DeleteFiles,
    DeleteFilesResponse,
    GetArtifact,
    GetFileUpload,
    MigrateArtifact,
    MigrateArtifactResponse,
    QueryFiles,
    StoredArtifact,
)
from aiserver.files.paths import address
from aiserver.files.queries import LANGUAGE, page_asked
from aiserver.files.scratch import scratch_folder
from aiserver.files.signed_upload_handlers import SignedUploadHandlers
from aiserver.files.signing import SignedUrls
from aiserver.files.table import AT_ONCE, ms
from aiserver.files.upload_handlers import UploadHandlers
from aiserver.files.upload_urls import UploadUrls
from aiserver.kit.clock import Clock
from aiserver.kit.tables import Tables


class FileHandlers:
    """`base` begins the addresses that it tells, else what the caller wrote; `urls` signs them.

    `redirects`: downloads may be answered by the object store.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        access: FileAccess,
        urls: SignedUrls,
        *,
        base: str,
        redirects: bool,
    ) -> None:
        self._artifacts = artifacts
        self._access = access
        self._urls = urls
        self._base = base
        self._redirects = redirects

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            GetArtifact: self.get,
            GetFileUpload: self.get_upload,
            DeleteFile: self.delete,
            DeleteFiles: self.delete_all,
            MigrateArtifact: self.migrate,
            QueryFiles: self.query,
        }

    async def get(self, request: GetArtifact, call: Call) -> Download:
        file = await self._access.readable(
            request.path, call.caller, expires=request.expires, signature=request.signature
        )
        return self._download(file, attachment=request.download is True)

    async def get_upload(self, request: GetFileUpload, call: Call) -> Download:
        file = await self._access.readable(
            request.path,
            call.caller,
            expires=request.expires,
            signature=request.signature,
            kinds=(PUB, SECURE),
        )
        attachment = request.attachment is True or request.download is True
        return self._download(file, attachment=attachment)

    async def delete(self, request: DeleteFile, call: Call) -> EmptyResponse:
        await self._artifacts.delete([await self._access.own(request.path, call.caller)])
        return EmptyResponse()

    async def delete_all(self, request: DeleteFiles, call: Call) -> DeleteFilesResponse:
        if not request.paths:
            raise InvalidRequest("No artifact paths specified")
        done = DeleteFilesResponse(deleted=[], missing=[], failed=[])
        for path in request.paths:
            try:
                await self._artifacts.delete([await self._access.own(path, call.caller)])
                done.deleted.append(path)
            except NotFound:
                done.missing.append(path)
            except ApiError:
                done.failed.append(path)
        return done

    async def migrate(self, request: MigrateArtifact, call: Call) -> MigrateArtifactResponse:
        path = request.path or ""
        if not path.startswith("/artifacts/"):
            raise InvalidRequest("Invalid Path. Send one that begins with /artifacts/.")
        file = await self._access.own(path, call.caller, kinds=(ARTIFACT,))
        async with scratch_folder() as folder:
            source = await self._artifacts.fetch(file, folder)
            copy = await self._artifacts.save(
                source,
                key_id=call.caller.key_id or 0,
                extension=file.path.rpartition(".")[2],
                name=file.name,
                operation=file.operation,
                job_id=file.job_id,
                job_ref=file.job_ref,
                width=file.width,
                height=file.height,
                duration=file.duration,
                day=request.date,
            )
        return MigrateArtifactResponse(file_path=f"/artifacts/{copy.path}")

    async def query(self, request: QueryFiles, call: Call) -> QueryResponse[StoredArtifact]:
        skip, take = page_asked(request, call.pairs)
        key_id = request.key_id if call.caller.is_admin else call.caller.key_id
        found: list[Artifact] = []
        total = 0
        if request.key_id in (None, key_id):
            found, total = await self._page(request, key_id, skip=skip, take=take)
        return QueryResponse(
            offset=skip,
            total=total if asks_total(request) else 0,
            results=LANGUAGE.answered(request, [await self._told(file, call) for file in found]),
        )

    async def _page(
        self, request: QueryFiles, key_id: int | None, *, skip: int, take: int
    ) -> tuple[list[Artifact], int]:
        found: list[Artifact] = []
        while True:
            some, total = await self._artifacts.list(
                key_id=key_id,
                kind=request.kind,
                contains=request.contains,
                skip=skip + len(found),
                take=min(take - len(found), AT_ONCE),
            )
            found += some
            if not some or len(found) >= take:
                return found, total

    async def _told(self, file: Artifact, call: Call) -> StoredArtifact:
        base = self._base or call.base
        is_public = self._access.is_public(file)
        return StoredArtifact(
            id=file.id,
            path=address(file.path),
            url=base + address(file.path)
            if is_public
            else await self._urls.signed(file.path, base),
            kind=file.kind,
            key_id=file.key_id,
            name=file.name,
            content_type=file.content_type,
            size=file.size,
            sha256=file.sha256,
            created_date=file.created,
            expires=file.expires,
            operation=file.operation,
            job_id=file.job_id,
            ref_id=file.job_ref,
            width=file.width,
            height=file.height,
            duration=file.duration,
        )

    def _download(self, file: Artifact, *, attachment: bool) -> Download:
        def read(start: int, end: int) -> AsyncGenerator[bytes]:
            return cast("AsyncGenerator[bytes]", self._artifacts.read(file, start, end))

        async def elsewhere() -> str | None:
            return await self._artifacts.address(file, seconds=ELSEWHERE_SECONDS)

        return Download(
            read=read,
            size=file.size,
            sha256=file.sha256,
            content_type=file.content_type,
            name=file.name or file.path.rpartition("/")[2],
            modified=ms(file.created),
            public=self._access.is_public(file),
            # An upload may be replaced; a result is named by its bytes.
            lasting=file.kind not in (PUB, SECURE),
            attachment=attachment,
            elsewhere=elsewhere if self._redirects else None,
        )


class FileRoom:
    """Everything that is called about files; no job of its own."""

    def __init__(self, *rooms: FileHandlers | UploadHandlers | SignedUploadHandlers) -> None:
        self._rooms = rooms

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {request: each for room in self._rooms for request, each in room.handlers().items()}


def base_of(settings: s.Settings) -> str:
    """What addresses of files begin with; nothing where no address is known."""
    return settings.get(s.ASSETS_BASE_URL) or settings.get(s.PUBLIC_URL) or ""


def urls_of(settings: s.Settings, tables: Tables, clock: Clock) -> SignedUrls:
    return SignedUrls(tables, clock, ttl=settings[s.ARTIFACT_URL_TTL])


def file_room(
    settings: s.Settings,
    artifacts: Artifacts,
    urls: SignedUrls,
    publishes: Publishes,
    uploads: UploadUrls,
) -> FileRoom:
    """As the settings have it."""
    access = FileAccess(artifacts, urls, publishes)
    base, largest = base_of(settings), settings[s.MAX_FILE]
    redirects = settings[s.STORAGE_REDIRECTS]
    return FileRoom(
        FileHandlers(artifacts, access, urls, base=base, redirects=redirects),
        UploadHandlers(artifacts, access, largest=largest),
        SignedUploadHandlers(artifacts, uploads, largest=largest, base=base),
    )
