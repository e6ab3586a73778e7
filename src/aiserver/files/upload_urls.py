"""Signed addresses that take a file without a key: one file, of a bounded size, until a time."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from aiserver.contract.errors import Conflict, Forbidden
from aiserver.files.paths import owner_in
from aiserver.files.signing import SignedUrls, Verdict
from aiserver.kit.clock import Clock
from aiserver.kit.db import StorageError
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import Statement, Tables

ROOT = "/signed-uploads/"
_FIND = "SELECT id FROM upload_addresses WHERE id = ?"
_USE = """
INSERT INTO upload_addresses (id, expires) VALUES (?, ?) ON CONFLICT (id) DO NOTHING
RETURNING id"""
_FREE = "DELETE FROM upload_addresses WHERE id = ?"
_SWEEP = "DELETE FROM upload_addresses WHERE expires < ?"
# The slowest sender is done: who began before the end of an address may send on after it.
_REMEMBERED_SECONDS = 86400
_ANOTHER = "Ask whoever gave you this address for another one."


class UploadUrl(msgspec.Struct, frozen=True, kw_only=True):
    """What an address says and its signature covers: `path` names the owner, `most` is in bytes."""

    id: str
    path: str
    most: int


class UploadUrls:
    """`may_act` tells of a key's id whether the key may still be used.

    Calls raise StorageError where secrets or used addresses cannot be read.
    """

    def __init__(self, tables: Tables, clock: Clock, may_act: Callable[[int], bool]) -> None:
        self._may_act = may_act
        self._tables = tables
        self._clock = clock
        self._signed = SignedUrls(tables, clock, ttl=0)
        self._arriving: set[str] = set()

    async def issue(self, path: str, *, most: int, seconds: int, base: str) -> tuple[str, datetime]:
        """An address and its end; `base` is scheme, host and prefix."""
        url = UploadUrl(id=random_hex(16), path=path, most=most)
        signed = SignedUrls(self._tables, self._clock, ttl=seconds)
        end = datetime.fromtimestamp(int(self._clock.now().timestamp()) + seconds, UTC)
        query = f"{await signed.query(_signed(url))}&id={url.id}&maxSize={most}"
        return f"{base.rstrip('/')}{ROOT}{quote(path)}{query}", end

    async def check(self, url: UploadUrl, expires: int, signature: str) -> None:
        """Raises Forbidden for an address that opens nothing, Conflict for a used one."""
        verdict = await self._signed.verdict(_signed(url), expires, signature)
        if verdict is Verdict.EXPIRED:
            raise Forbidden(
                f"This address for an upload expired. {_ANOTHER}",
                code="LinkExpired",
                reason="link_expired",
            )
        if verdict is not Verdict.VALID:
            raise Forbidden(
                "This address for an upload is not as the server signed it: path, id, maxSize, "
                f"expires and signature must stay as they are. {_ANOTHER}",
                code="LinkInvalid",
                reason="link_invalid",
            )
        owner = owner_in(url.path)
        if owner is None or not self._may_act(owner):
            raise Forbidden(
                f"The API key behind this address for an upload may not be used now. {_ANOTHER}",
                code="LinkInvalid",
                reason="link_invalid",
            )
        if await self._tables.read(_FIND, url.id):
            raise _used()

    @asynccontextmanager
    async def arriving(self, url: UploadUrl) -> AsyncGenerator[None]:
        """One sender at a time in this process. Raises Conflict for a second one."""
        if url.id in self._arriving:
            raise Conflict(
                "A file is being sent to this address, which takes one; see in a moment whether it "
                "arrived.",
                code="UploadInProgress",
                reason="upload_in_progress",
                retry_after=1,
            )
        self._arriving.add(url.id)
        try:
            yield
        finally:
            self._arriving.discard(url.id)

    @asynccontextmanager
    async def using(self, url: UploadUrl, expires: int) -> AsyncGenerator[None]:
        """Uses the address up, unless the block fails. Raises Conflict for a used one."""
        before = int(self._clock.now().timestamp()) - _REMEMBERED_SECONDS
        _, taken = await self._tables.write(
            Statement(_SWEEP, (before,)), Statement(_USE, (url.id, expires))
        )
        if not taken:
            raise _used()
        try:
            yield
        except BaseException:
            # Where this fails too, the sender needs another address.
            with suppress(StorageError):
                await self._tables.write(Statement(_FREE, (url.id,)))
            raise


def _signed(url: UploadUrl) -> str:
    # No path of a stored file has a line break: one of these never opens a file for reading.
    return f"upload\n{url.id}\n{url.most}\n{url.path}"


def _used() -> Conflict:
    return Conflict(f"A file was sent to this address, which takes one. {_ANOTHER}")
