"""The secrets that callbacks are signed with: one per API key and one for the administrator's."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from aiserver.jobs.signatures import new_secret
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher, EncryptionKeyError
from aiserver.kit.db import Connection, Database, Row

ROTATION_MS = 24 * 60 * 60 * 1000


class SealedSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `rotated_at` in ms since 1970, None for a secret that was never rotated."""

    key_id: int
    current: bytes
    previous: bytes | None = None
    rotated_at: int | None = None


class SecretStore(Protocol):
    """Where sealed secrets are kept, one row per key."""

    async def find(self, key_id: int) -> SealedSecrets | None: ...

    async def all(self) -> list[SealedSecrets]: ...

    async def add(self, row: SealedSecrets) -> SealedSecrets:
        """Keeps this row unless its key has one; the row that is there then."""
        ...

    async def change(self, row: SealedSecrets, *, was: bytes) -> bool:
        """Replaces a row whose current secret still is `was`; whether it was."""
        ...

    async def remove(self, key_id: int) -> None: ...


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
        self, store: SecretStore, cipher: Cipher, clock: Clock, learn: Callable[[str], None]
    ) -> None:
        self._store = store
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


class SqliteSecrets:
    """Implements `SecretStore`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, key_id: int) -> SealedSecrets | None:
        rows = self._db.read(
            "SELECT key_id, current, previous, rotated_at FROM callback_secrets WHERE key_id = ?",
            (key_id,),
        )
        return _row(rows[0]) if rows else None

    async def all(self) -> list[SealedSecrets]:
        rows = self._db.read("SELECT key_id, current, previous, rotated_at FROM callback_secrets")
        return [_row(row) for row in rows]

    async def add(self, row: SealedSecrets) -> SealedSecrets:
        def insert(connection: Connection) -> SealedSecrets:
            connection.execute(
                "INSERT INTO callback_secrets (key_id, current, previous, rotated_at) "
                "VALUES (?, ?, ?, ?) ON CONFLICT (key_id) DO NOTHING",
                msgspec.structs.astuple(row),
            )
            found = connection.rows(
                "SELECT key_id, current, previous, rotated_at FROM callback_secrets "
                "WHERE key_id = ?",
                (row.key_id,),
            )
            return _row(found[0])

        return await self._db.write(insert)

    async def change(self, row: SealedSecrets, *, was: bytes) -> bool:
        values = (row.current, row.previous, row.rotated_at, row.key_id, was)

        def update(connection: Connection) -> bool:
            changed = connection.execute(
                "UPDATE callback_secrets SET current = ?, previous = ?, rotated_at = ? "
                "WHERE key_id = ? AND current = ?",
                values,
            )
            return changed > 0

        return await self._db.write(update)

    async def remove(self, key_id: int) -> None:
        def delete(connection: Connection) -> None:
            connection.execute("DELETE FROM callback_secrets WHERE key_id = ?", (key_id,))

        await self._db.write(delete)


def _row(row: Row) -> SealedSecrets:
    return SealedSecrets(key_id=row[0], current=row[1], previous=row[2], rotated_at=row[3])
