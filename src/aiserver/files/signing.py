"""Signed addresses: who has one may read that file, and its variants, until it expires."""

import base64
import hmac
import os
from enum import Enum
from urllib.parse import quote

from aiserver.files.paths import address
from aiserver.kit.clock import Clock
from aiserver.kit.tables import Statement, Tables
from aiserver.kit.times import iso

# A new one signs; those before it still open what they signed.
MOST_SECRETS = 3
# What another process made or took away counts here after so long at most.
FRESH_SECONDS = 0.5
_SECRET_BYTES = 32
_LONGEST = 128
_NAME = "artifact_urls/"
_SELECT = f"SELECT name, salt FROM secrets WHERE name LIKE '{_NAME}%'"  # noqa: S608 - a constant
_INSERT = """
INSERT INTO secrets (name, salt, hash, created) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO NOTHING"""


class Verdict(Enum):
    """What a signature is worth."""

    VALID = "valid"
    EXPIRED = "expired"
    WRONG = "wrong"


class SignedUrls:
    """`ttl` in seconds. Calls raise StorageError where the secrets cannot be read."""

    def __init__(self, tables: Tables, clock: Clock, *, ttl: float) -> None:
        self._tables = tables
        self._clock = clock
        self._ttl = ttl
        self._secrets: tuple[bytes, ...] = ()
        self._looked = 0.0
        self._version: int | None = None

    def __repr__(self) -> str:
        return "SignedUrls(***)"

    async def signed(self, path: str, base: str = "") -> str:
        """The address of a stored path after `base`, which is scheme, host and prefix."""
        return base.rstrip("/") + address(path) + await self.query(path)

    async def variant(self, path: str, options: str, base: str = "") -> str:
        """As `signed`, of a picture's variant such as `width=512`."""
        named = f"/variants/{quote(options, safe='=,')}/{quote(path)}"
        return base.rstrip("/") + named + await self.query(path)

    async def query(self, path: str) -> str:
        """`?expires=...&signature=...` for whatever address of this stored path."""
        await self._refresh()
        expires = int(self._clock.now().timestamp() + self._ttl)
        return f"?expires={expires}&signature={_signature(self._secrets[0], path, expires)}"

    async def verdict(self, path: str, expires: int | None, signature: str | None) -> Verdict:
        """`expires` in seconds since 1970; both as the address has them."""
        if expires is None or not signature or len(signature) > _LONGEST:
            return Verdict.WRONG
        await self._refresh()
        if not self._fits(path, expires, signature):
            # Another process may have begun to sign with a new secret this very moment.
            await self._read()
            if not self._fits(path, expires, signature):
                return Verdict.WRONG
        return Verdict.VALID if self.is_before(expires) else Verdict.EXPIRED

    def is_before(self, expires: int) -> bool:
        """Whether this moment, in seconds since 1970, is still to come."""
        return self._clock.now().timestamp() < expires

    async def rotate(self, *, keep: int = MOST_SECRETS - 1) -> int:
        """Signs with a new secret from now on; how many of those before still open, `keep` at most.

        Other processes follow within FRESH_SECONDS.
        """
        rows = await self._rows()
        kept, dropped = rows[:keep], rows[keep:]
        sql = "DELETE FROM secrets WHERE name = ?"
        await self._tables.write(
            self._added(rows[0][0] + 1 if rows else 1),
            *(Statement(sql, (f"{_NAME}{number}",)) for number, _ in dropped),
        )
        await self._read()
        return len(kept)

    def _fits(self, path: str, expires: int, signature: str) -> bool:
        shown = signature.encode("utf-8", "replace")
        fits = False
        for secret in self._secrets:
            fits |= hmac.compare_digest(_signature(secret, path, expires).encode(), shown)
        return fits

    async def _refresh(self) -> None:
        version = self._tables.version()
        if version is None:
            fresh = self._clock.monotonic() - self._looked < FRESH_SECONDS
        else:
            fresh = version == self._version
        if not self._secrets or not fresh:
            await self._read()

    async def _read(self) -> None:
        self._looked, self._version = self._clock.monotonic(), self._tables.version()
        rows = await self._rows()
        if not rows:
            await self._tables.write(self._added(1))
            # Whoever was first has made the one that counts.
            rows = await self._rows()
        self._secrets = tuple(secret for _, secret in rows[:MOST_SECRETS])

    async def _rows(self) -> list[tuple[int, bytes]]:
        """The newest first."""
        rows = await self._tables.read(_SELECT)
        return sorted(((int(n.removeprefix(_NAME)), bytes(s)) for n, s in rows), reverse=True)

    def _added(self, number: int) -> Statement:
        made = (f"{_NAME}{number}", os.urandom(_SECRET_BYTES), b"", iso(self._clock.now()))
        return Statement(_INSERT, made)


def _signature(secret: bytes, path: str, expires: int) -> str:
    signed = hmac.digest(secret, f"{expires}\n{path}".encode("utf-8", "replace"), "sha256")
    return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()
