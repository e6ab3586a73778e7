"""Smaller copies of stored pictures, made when they are first asked for."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.errors import ApiError, InvalidRequest, StorageUnavailable, TooBusy
from aiserver.contract.operation import Call, Handler
from aiserver.files.accepted import format_for
from aiserver.files.access import FileAccess, owns
from aiserver.files.artifacts import PUB, SECURE, Artifact, Artifacts
from aiserver.files.download import Again, Download
from aiserver.files.table import ms
from aiserver.files.variant_cache import Kept, Key, VariantCache
from aiserver.files.variant_operations import GetVariant
from aiserver.files.variant_options import MOST_READ, Presets, VariantOptions
from aiserver.kit import log
from aiserver.kit.imaging import jobs
from aiserver.kit.imaging.errors import ImageRefused, ImagingBusy, ImagingFailed
from aiserver.kit.imaging.jobs import CONTENT_TYPES, Format

# As many as may wait for a child, and a copy of each one's source on the scratch disk.
MOST_AT_ONCE = 64
VARIANT_SECONDS = 30.0
PRESETS_FILE = "variants.json"
# To be raised when the same options come to mean another picture.
_EDITION = 1
_log = log.get("files")


class Imaging(Protocol):
    """Runs jobs on pictures in children (kit.imaging)."""

    @property
    def limits(self) -> jobs.Limits: ...

    async def run(self, job: jobs.Job, *, timeout: float) -> jobs.Result: ...


class Folders(Protocol):
    """Gives an empty folder or room for a file, for a block's time, on the disk of the cache."""

    def folder(self) -> AbstractAsyncContextManager[Path]: ...

    def file(self) -> AbstractAsyncContextManager[Path]: ...


class RefusedPicture(InvalidRequest):
    """This file is no picture that a variant can be made of."""

    reason = "invalid_media"


class VariantFailed(ApiError):
    """The server could not make this variant; try again."""

    reason = "variant_failed"


class Variants:
    """The room of variants; `imaging` is started and stopped by who gives it."""

    def __init__(
        self,
        *,
        artifacts: Artifacts,
        access: FileAccess,
        imaging: Imaging,
        cache: VariantCache,
        scratch: Folders,
        presets: Presets,
    ) -> None:
        self._artifacts = artifacts
        self._access = access
        self._imaging = imaging
        self._cache = cache
        self._scratch = scratch
        self._presets = presets
        self._making: dict[Key, asyncio.Task[Kept]] = {}

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {GetVariant: self.get}

    def slots(self) -> Mapping[str, Any]:
        return {}

    def places(self) -> Mapping[str, Any]:
        return {}

    async def close(self) -> None:
        """Ends what is being made."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        await self._cache.close()

    async def get(self, request: GetVariant, call: Call) -> Download:
        options = self._presets.read(request.variant)
        version = self._artifacts.version()
        source = await self._access.readable(
            request.path, call.caller, expires=request.expires, signature=request.signature
        )
        if not call.caller.known:
            self._presets.require_allowed(options)
        self._refuse(source)
        is_open = options.format == "auto"
        found = (
            format_for(call.accept, source=source.content_type)
            if is_open
            else cast("Format", options.format)
        )
        wanted = options.as_format(found)
        key = _key_of(source.sha256, wanted, found)
        kept = await self._cache.get(key) or await self._made(key, source, wanted, found)
        file = self._download(source, key, kept, found, is_open=is_open)
        if version is None or kept.content is None:
            return file
        again = self._again(source, key, call.caller, until=request.expires, version=version)
        return msgspec.structs.replace(file, again=again)

    def _again(
        self, source: Artifact, key: Key, asked_by: Caller, *, until: int | None, version: int
    ) -> Again:
        """Looks at all that `get` looked at and that can have changed since."""
        known, public = asked_by.known, self._access.is_public(source)
        signed_until = None if public or owns(asked_by, source.key_id) else until

        def again(caller: Caller) -> bytes | None:
            same = (
                self._artifacts.version() == version
                and not self._artifacts.has_ended(source)
                and caller.known == known
                and self._access.is_public(source) == public
                and self._access.still(source, caller, until=signed_until)
            )
            return self._cache.at_hand(key) if same else None

        return again

    async def _made(
        self, key: Key, source: Artifact, options: VariantOptions, found: Format
    ) -> Kept:
        """By the first who asks, for all who ask meanwhile; nobody who leaves ends it."""
        task = self._making.get(key)
        if task is None:
            if len(self._making) >= MOST_AT_ONCE:
                raise TooBusy(str(ImagingBusy()), retry_after=1)
            task = asyncio.create_task(self._make(key, source, options, found))
            self._making[key] = task
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: Key, task: asyncio.Task[Kept]) -> None:
        del self._making[key]
        if not task.cancelled():
            # Looked at here, since everybody who asked may have left.
            task.exception()

    async def _make(
        self, key: Key, source: Artifact, options: VariantOptions, found: Format
    ) -> Kept:
        async with self._local(source) as local, self._scratch.file() as result:
            await self._ran(_job_of(options, found, source=local, result=result))
            kept = await self._cache.keep(key, result)
        if await self._artifacts.find(source.path) is None:
            # It was deleted meanwhile, too early for `forget`.
            await self._cache.forget(key.source)
        return kept

    @asynccontextmanager
    async def _local(self, source: Artifact) -> AsyncGenerator[Path]:
        """Where the source lies on a disk, or a copy of it for the time of the block."""
        file = self._artifacts.file(source)
        if file is not None and file.exists():
            yield file
            return
        async with self._scratch.folder() as folder:
            yield await self._fetched(source, folder)

    async def _fetched(self, source: Artifact, folder: Path) -> Path:
        try:
            return await self._artifacts.fetch(source, folder)
        except OSError as error:
            _log.error("scratch_failed", problem=str(error))
            raise StorageUnavailable(retry_after=2) from error

    async def _ran(self, job: jobs.Variant) -> None:
        try:
            await self._imaging.run(job, timeout=VARIANT_SECONDS)
        except ImageRefused as error:
            _log.info("image_refused", code=error.code, detail=error.detail)
            raise RefusedPicture(str(error)) from error
        except ImagingBusy as error:
            raise TooBusy(str(error), retry_after=error.retry_after) from error
        except ImagingFailed as error:
            raise VariantFailed(str(error)) from error

    def _refuse(self, source: Artifact) -> None:
        """What needs no look into the file."""
        if not source.content_type.startswith("image/"):
            raise RefusedPicture(f"Variants are of pictures; this is {source.content_type}.")
        most = self._imaging.limits.source_bytes
        if source.size > most:
            raise RefusedPicture(f"Variants are of pictures of at most {most // 2**20} MiB.")

    def _download(
        self, source: Artifact, key: Key, kept: Kept, found: Format, *, is_open: bool
    ) -> Download:
        name = source.name or source.path.rpartition("/")[2]
        return Download(
            read=kept.read,
            size=kept.size,
            sha256=f"{key.asked}-{kept.size:x}",
            content_type=CONTENT_TYPES[found],
            name=f"{name.rpartition('.')[0] or name}.{found}",
            modified=ms(source.created),
            public=self._access.is_public(source),
            lasting=source.kind not in (PUB, SECURE),
            vary="Accept" if is_open else None,
            content=kept.content,
        )


def presets_in(folder: Path) -> Presets:
    """The shipped ones and those of `variants.json` there; a file that means nothing is left."""
    file = folder / PRESETS_FILE
    try:
        return Presets(msgspec.json.decode(file.read_bytes(), type=dict[str, str]))
    except FileNotFoundError:
        return Presets()
    except (OSError, ValueError, InvalidRequest) as error:
        _log.error("presets_not_read", file=str(file), problem=str(error))
        return Presets()


@lru_cache(MOST_READ)
def _key_of(sha256: str, options: VariantOptions, found: Format) -> Key:
    """Of a variant of these bytes."""
    asked = f"{_EDITION}\n{sha256}\n{options}"
    return Key(sha256, hashlib.sha256(asked.encode()).hexdigest()[:32], found)


def _job_of(options: VariantOptions, found: Format, *, source: Path, result: Path) -> jobs.Variant:
    return jobs.Variant(
        source=str(source),
        result=str(result),
        width=options.width,
        height=options.height,
        fit=options.fit,
        gravity=options.gravity,
        rotate=options.rotate,
        blur=options.blur,
        format=found,
        quality=options.quality,
        strip=options.strip,
    )
