"""The secrets that callbacks are signed with: one per API key and one for the administrator's."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import msgspec

from aiserver.contract.errors import Conflict, InvalidRequest
from aiserver.jobs.signatures import new_secret
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher, EncryptionKeyError
from aiserver.kit.db import Row
from aiserver.kit.tables import Statement, Tables
from aiserver.kit.times import iso

ROTATION_MS = 24 * 60 * 60 * 1000
MOST_SIGNING = 5
ADMINISTRATOR = 0
# A job may begin 30 days after its key has gone, and its callback be tried for eleven more.
KEPT_DAYS = 45

_KEPT_MS = KEPT_DAYS * 24 * 60 * 60 * 1000
_COLUMNS = "key_id, current, previous, rotated_at, older"
_SELECT = f"SELECT {_COLUMNS} FROM callback_secrets"  # noqa: S608 - a constant


class KeyDeleted(InvalidRequest):
    """The API key that signs this callback was deleted, and nobody has a secret to verify it."""


class Sealed(msgspec.Struct, frozen=True):
    """A secret that was replaced, and the moment (ms) until which it signs."""

    secret: bytes
    until: int


class SealedSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `rotated_at` in ms since 1970, None for a secret that was never rotated.

    `older` is JSON of those before `previous`.
    """

    key_id: int
    current: bytes
    previous: bytes | None = None
    rotated_at: int | None = None
    older: bytes | None = None

    def earlier(self) -> list[Sealed]:
        """Newest first, also those whose time has passed."""
        older = msgspec.json.decode(self.older, type=list[Sealed]) if self.older else []
        if self.previous is None:
            return older
        return [Sealed(self.previous, (self.rotated_at or 0) + ROTATION_MS), *older]


class Secrets(msgspec.Struct, frozen=True):
    """In clear: `current`, and those before it that sign too, the newest until `previous_until`."""

    current: str
    earlier: tuple[str, ...] = ()
    previous_until: int | None = None

    def __repr__(self) -> str:
        return "Secrets(***)"

    def signing(self) -> tuple[str, ...]:
        """What an attempt is signed with now."""
        return (self.current, *self.earlier)


async def _any_key(_: int) -> bool:
    return True


class CallbackSecrets:
    """Makes a key's secret when it is first asked for. `learn` is told each, to mask it in logs.

    `is_key` tells whether there is a key with this id: none is made for one that was deleted.
    """

    def __init__(
        self,
        tables: Tables,
        cipher: Cipher,
        clock: Clock,
        learn: Callable[[str], None],
        *,
        is_key: Callable[[int], Awaitable[bool]] = _any_key,
    ) -> None:
        self._store = _Rows(tables)
        self._cipher = cipher
        self._clock = clock
        self._learn = learn
        self._is_key = is_key

    async def of(self, key_id: int) -> Secrets:
        """Raises KeyDeleted, EncryptionKeyError when they cannot be opened, or StorageError."""
        return self._opened(await self._row(key_id))

    async def rotate(self, key_id: int) -> Secrets:
        """A new secret; those before it, if they open, sign too, each for its day.

        Raises Conflict while there are too many of them, and what `of` raises.
        """
        row = await self._row(key_id)
        earlier = self._signing(row)
        if len(earlier) + 1 >= MOST_SIGNING:
            raise _too_many(earlier[-1].until)
        fresh = SealedSecrets(
            key_id=key_id,
            current=self._seal(new_secret(), key_id),
            previous=row.current if self._opens(row.current, key_id) else None,
            rotated_at=self._now(),
            older=_json([each for each in earlier if self._opens(each.secret, key_id)]),
        )
        # Two at once make one new secret: else neither caller's old one would be valid.
        changed = await self._store.change(fresh, was=row.current)
        return self._opened(fresh) if changed else await self.of(key_id)

    async def forget(self, key_id: int) -> None:
        """For a key that was deleted: what signs callbacks that are under way is kept a while."""
        await self._store.mark(key_id, at=self._now())

    async def tidy(self) -> None:
        """Removes the secrets of keys that were deleted long ago."""
        await self._store.remove(before=self._now() - _KEPT_MS)

    async def seal_again(self) -> int:
        """Seals every secret with the newest encryption key; how many rows."""
        rows = await self._store.all()
        for row in rows:
            fresh = msgspec.structs.replace(
                row,
                current=self._sealed_again(row.current, row.key_id),
                previous=self._sealed_again(row.previous, row.key_id) if row.previous else None,
                older=_json(
                    [
                        Sealed(self._sealed_again(each.secret, row.key_id), each.until)
                        for each in row.earlier()[0 if row.previous is None else 1 :]
                    ]
                ),
            )
            # One that was rotated meanwhile is sealed with the newest key already.
            await self._store.change(fresh, was=row.current)
        return len(rows)

    async def _row(self, key_id: int) -> SealedSecrets:
        row = await self._store.find(key_id)
        if row is None:
            if key_id != ADMINISTRATOR and not await self._is_key(key_id):
                raise KeyDeleted
            sealed = self._seal(new_secret(), key_id)
            row = await self._store.add(SealedSecrets(key_id=key_id, current=sealed))
        return row

    def _opened(self, row: SealedSecrets) -> Secrets:
        current = self._open(row.current, row.key_id)
        earlier = self._signing(row)
        opened = tuple(self._open(each.secret, row.key_id) for each in earlier)
        return Secrets(current, opened, earlier[0].until if earlier else None)

    def _signing(self, row: SealedSecrets) -> list[Sealed]:
        """Those before the current one whose time has not passed, newest first."""
        now = self._now()
        return [each for each in row.earlier() if now < each.until]

    def _sealed_again(self, sealed: bytes, key_id: int) -> bytes:
        return self._seal(self._open(sealed, key_id), key_id)

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
            f"INSERT INTO callback_secrets ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)"  # noqa: S608 - a constant
            " ON CONFLICT (key_id) DO NOTHING"
        )
        await self._tables.write(Statement(insert, msgspec.structs.astuple(row)))
        return await self.find(row.key_id) or row

    async def change(self, row: SealedSecrets, *, was: bytes) -> bool:
        """Replaces a row whose current secret still is `was`; whether it was."""
        update = (
            "UPDATE callback_secrets SET current = ?, previous = ?, rotated_at = ?, older = ?"
            " WHERE key_id = ? AND current = ? RETURNING key_id"
        )
        values = (row.current, row.previous, row.rotated_at, row.older, row.key_id, was)
        [changed] = await self._tables.write(Statement(update, values))
        return bool(changed)

    async def mark(self, key_id: int, *, at: int) -> None:
        mark = "UPDATE callback_secrets SET forgotten = ? WHERE key_id = ? AND forgotten IS NULL"
        await self._tables.write(Statement(mark, (at, key_id)))

    async def remove(self, *, before: int) -> None:
        delete = "DELETE FROM callback_secrets WHERE forgotten < ?"
        await self._tables.write(Statement(delete, (before,)))


def _row(row: Row) -> SealedSecrets:
    return SealedSecrets(
        key_id=row[0], current=row[1], previous=row[2], rotated_at=row[3], older=row[4]
    )


def _json(sealed: Sequence[Sealed]) -> bytes | None:
    return msgspec.json.encode(sealed) if sealed else None


def _too_many(until: int) -> Conflict:
    oldest = iso(datetime.fromtimestamp(until / 1000, UTC))
    return Conflict(
        f"{MOST_SIGNING} callback secrets of this key sign already, each for the day that was "
        f"promised with it. Rotate again after {oldest}, the previousUntil of the oldest."
    )
