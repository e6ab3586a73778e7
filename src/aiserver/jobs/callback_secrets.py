"""The secrets that callbacks are signed with: one per API key and one for the administrator's."""

from collections.abc import Callable

import msgspec

from aiserver.jobs.signatures import new_secret
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher, EncryptionKeyError
from aiserver.kit.db import Row
from aiserver.kit.tables import Statement, Tables

ROTATION_MS = 24 * 60 * 60 * 1000

_COLUMNS = "key_id, current, previous, rotated_at"
_SELECT = f"SELECT {_COLUMNS} FROM callback_secrets"  # noqa: S608 - a constant


class SealedSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `rotated_at` in ms since 1970, None for a secret that was never rotated."""

    key_id: int
    current: bytes
    previous: bytes | None = None
    rotated_at: int | None = None


class Secrets(msgspec.Struct, frozen=True):
    """In clear: `current`, and until `previous_until` (ms) the one before it."""

    current: str
    previous: str | None = None
    previous_until: int | None = None

    def __repr__(self) -> str:
        return "Secrets(***)"

    def both(self) -> tuple[str, ...]:
        """What an attempt is signed with now."""
        return (self.current,) if self.previous is None else (self.current, self.previous)


class CallbackSecrets:
    """Makes a key's secret when it is first asked for. `learn` is told each, to mask it in logs."""

    def __init__(
        self, tables: Tables, cipher: Cipher, clock: Clock, learn: Callable[[str], None]
    ) -> None:
        self._store = _Rows(tables)
        self._cipher = cipher
        self._clock = clock
        self._learn = learn

    async def of(self, key_id: int) -> Secrets:
        """Raises EncryptionKeyError when they cannot be opened, StorageError when not kept."""
        return self._opened(await self._row(key_id))

    async def rotate(self, key_id: int) -> Secrets:
        """A new secret; the one before it, if it opens, signs too for another day."""
        row = await self._row(key_id)
        fresh = SealedSecrets(
            key_id=key_id,
            current=self._seal(new_secret(), key_id),
            previous=row.current if self._opens(row.current, key_id) else None,
            rotated_at=self._now(),
        )
        # Two at once make one new secret: else neither caller's old one would be valid.
        changed = await self._store.change(fresh, was=row.current)
        return self._opened(fresh) if changed else await self.of(key_id)

    async def forget(self, key_id: int) -> None:
        """For a key that was deleted."""
        await self._store.remove(key_id)

    async def seal_again(self) -> int:
        """Seals every secret with the newest encryption key; how many rows."""
        rows = await self._store.all()
        for row in rows:
            previous = self._open(row.previous, row.key_id) if row.previous else None
            fresh = msgspec.structs.replace(
                row,
                current=self._seal(self._open(row.current, row.key_id), row.key_id),
                previous=self._seal(previous, row.key_id) if previous else None,
            )
            # One that was rotated meanwhile is sealed with the newest key already.
            await self._store.change(fresh, was=row.current)
        return len(rows)

    async def _row(self, key_id: int) -> SealedSecrets:
        row = await self._store.find(key_id)
        if row is None:
            sealed = self._seal(new_secret(), key_id)
            row = await self._store.add(SealedSecrets(key_id=key_id, current=sealed))
        return row

    def _opened(self, row: SealedSecrets) -> Secrets:
        current = self._open(row.current, row.key_id)
        until = (row.rotated_at or 0) + ROTATION_MS
        if row.previous is None or self._now() >= until:
            return Secrets(current)
        return Secrets(current, self._open(row.previous, row.key_id), until)

    def _seal(self, secret: str, key_id: int) -> bytes:
        self._learn(secret)
        return self._cipher.seal(secret, bound_to=f"callback {key_id}")

    def _open(self, sealed: bytes, key_id: int) -> str:
        secret = self._cipher.open(sealed, bound_to=f"callback {key_id}")
        self._learn(secret)
        return secret

    def _opens(self, sealed: bytes, key_id: int) -> bool:
        try:
            self._open(sealed, key_id)
        except EncryptionKeyError:
            return False
        return True

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


class _Rows:
    """One sealed row per key."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def find(self, key_id: int) -> SealedSecrets | None:
        rows = await self._tables.read(f"{_SELECT} WHERE key_id = ?", key_id)
        return _row(rows[0]) if rows else None

    async def all(self) -> list[SealedSecrets]:
        return [_row(row) for row in await self._tables.read(_SELECT)]

    async def add(self, row: SealedSecrets) -> SealedSecrets:
        """Keeps this row unless its key has one; the row that is there then."""
        insert = (
            f"INSERT INTO callback_secrets ({_COLUMNS}) VALUES (?, ?, ?, ?)"  # noqa: S608
            " ON CONFLICT (key_id) DO NOTHING"
        )
        await self._tables.write(Statement(insert, msgspec.structs.astuple(row)))
        return await self.find(row.key_id) or row

    async def change(self, row: SealedSecrets, *, was: bytes) -> bool:
        """Replaces a row whose current secret still is `was`; whether it was."""
        update = (
            "UPDATE callback_secrets SET current = ?, previous = ?, rotated_at = ?"
            " WHERE key_id = ? AND current = ? RETURNING key_id"
        )
        values = (row.current, row.previous, row.rotated_at, row.key_id, was)
        [changed] = await self._tables.write(Statement(update, values))
        return bool(changed)

    async def remove(self, key_id: int) -> None:
        delete = "DELETE FROM callback_secrets WHERE key_id = ?"
        await self._tables.write(Statement(delete, (key_id,)))


def _row(row: Row) -> SealedSecrets:
    return SealedSecrets(key_id=row[0], current=row[1], previous=row[2], rotated_at=row[3])
