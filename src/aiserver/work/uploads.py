"""The uploads of queued calls: kept before a job is acknowledged, given to it each time it runs."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from aiserver.contract.errors import ApiError, Gone, NotFound, StorageUnavailable
from aiserver.contract.uploads import Upload
from aiserver.files.digests import digest_of, told_apart
from aiserver.files.store import FileStore, StoredFile
from aiserver.jobs.job import Job, NewJob
from aiserver.jobs.queue import EarlyAnswer, Queue
from aiserver.jobs.store import Accepted
from aiserver.kit.db import StorageError
from aiserver.kit.ids import random_hex


class JobUploads:
    """A job's `files` is a JSON object: the id of a kept file by the name of its part."""

    def __init__(self, queue: Queue, files: FileStore) -> None:
        self._queue = queue
        self._files = files

    async def add(
        self, job: NewJob, uploads: Mapping[str, Upload], answer: EarlyAnswer | None = None
    ) -> Accepted:
        """As `Queue.add`; what is refused or was there before leaves no file behind."""
        if not uploads:
            return await self._queue.add(job, answer)
        digests = {field: await digest_of(upload) for field, upload in uploads.items()}
        # Named now, so that the files of a job that was never stored can be told.
        ref_id = job.ref_id or random_hex()
        kept: dict[str, str] = {}
        try:
            for field, upload in uploads.items():
                file = await self._files.put(
                    upload, digests[field], key_id=job.key_id, job_ref=ref_id
                )
                kept[field] = file.id
            body_hash = job.body_hash and told_apart(job.body_hash, uploads, digests)
            named = msgspec.json.encode(kept).decode()
            accepted = await self._queue.add(
                msgspec.structs.replace(job, ref_id=ref_id, files=named, body_hash=body_hash),
                answer,
            )
        except ApiError:
            # After any other error the job may be there: the sweep will see.
            await self._drop(kept.values())
            raise
        if accepted.replayed:
            await self._drop(kept.values())
        return accepted

    async def body_hash(self, members: bytes, uploads: Mapping[str, Upload]) -> bytes:
        """What `add` makes of a job's own: a hash of its files too, where it has any."""
        if not uploads:
            return members
        digests = {field: await digest_of(upload) for field, upload in uploads.items()}
        return told_apart(members, uploads, digests)

    async def of(self, job: Job) -> dict[str, Upload]:
        """What its call came with, to be read from the start. Raises Gone."""
        try:
            return {
                field: await self._files.open(id, key_id=job.key_id)
                for field, id in _named(job.files).items()
            }
        except NotFound:
            raise Gone("The files of this job were deleted; make the call again.") from None

    async def forget(self, named: Iterable[str]) -> None:
        """Deletes what the `files` of jobs named, once these jobs name them no more."""
        await self._files.delete([id for files in named for id in _named(files).values()])

    async def sweep(self) -> None:
        """Deletes the files of jobs that were never stored, or are there no more."""
        await self._files.sweep(self._is_wanted)

    async def sweep_disk(self) -> None:
        """Deletes what a crash left on the disk."""
        await self._files.sweep_disk()

    async def _drop(self, ids: Iterable[str]) -> None:
        with suppress(StorageError, StorageUnavailable):
            await self._files.delete(list(ids))

    async def _is_wanted(self, file: StoredFile) -> bool:
        # One that moves to the archive or back just now may be missed once.
        return await self._names(file) or await self._names(file)

    async def _names(self, file: StoredFile) -> bool:
        if file.job_ref is None:
            return True
        job = await self._queue.store.find(ref_id=file.job_ref, key_id=file.key_id)
        return job is not None and file.id in _named(job.files).values()


def _named(files: str | None) -> dict[str, str]:
    return msgspec.json.decode(files, type=dict[str, str]) if files else {}
