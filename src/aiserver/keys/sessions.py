"""Sessions: who signed in with a key acts with that key's rights until it ends."""

import asyncio
import hashlib
import hmac
from datetime import datetime, timedelta

import msgspec

from aiserver.kit.clock import Clock
from aiserver.kit.db import Row
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import Statement, Tables
from aiserver.kit.times import iso, parse_iso

REMEMBERED = timedelta(days=14)
SHORT = timedelta(hours=12)
# Each is a row and an entry in memory; past this the oldest end.
MOST_SESSIONS = 10_000

_REVISION = "sessions"
_COLUMNS = "hash, key_id, proof, name, created, expires"


class Session(msgspec.Struct, frozen=True):
    """`proof` binds the token to its key or secret: when that changes, the session is over."""

    hash: bytes
    key_id: int
    proof: bytes
    name: str
    created: datetime
    expires: datetime

    def rests_on(self, token: str, credential: bytes) -> bool:
        """Whether this is still the hash of the key or secret that signed in."""
        return hmac.compare_digest(self.proof, _bound(token, credential))


class Sessions:
    """Tokens are kept as hashes; all sessions are in memory, renewed by revision."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._known: dict[bytes, Session] = {}
        self._revision = -1
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Reads the sessions again if they changed. Raises StorageError; then the old ones stay."""
        # One at a time: what was read first must not replace what was read later.
        async with self._reading:
            revision = await self._tables.revision(_REVISION)
            if revision == self._revision:
                return
            found = await self._tables.read(f"SELECT {_COLUMNS} FROM sessions")  # noqa: S608
            self._known = {session.hash: session for session in map(_session, found)}
            self._revision = revision

    def find(self, token: str) -> Session | None:
        session = self._known.get(_hash(token))
        if session is None or session.expires <= self._clock.now():
            return None
        return session

    async def open(self, key_id: int, credential: bytes, name: str, *, remember: bool) -> str:
        """The token of a new session; the only time that it is seen."""
        token, now = random_hex(20), self._clock.now()
        expires = now + (REMEMBERED if remember else SHORT)
        proof = _bound(token, credential)
        row = (_hash(token), key_id, proof, name[:200], iso(now), iso(expires))

        await self._tables.write(
            Statement("DELETE FROM sessions WHERE expires <= ?", (iso(now),)),
            Statement(
                "DELETE FROM sessions WHERE hash NOT IN "
                "(SELECT hash FROM sessions ORDER BY created DESC LIMIT ?)",
                (MOST_SESSIONS - 1,),
            ),
            Statement(f"INSERT INTO sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row),  # noqa: S608
            moves=_REVISION,
        )
        await self.refresh()
        return token

    async def close(self, token: str) -> None:
        """Ends a session; one that is over already is left so."""
        delete = Statement("DELETE FROM sessions WHERE hash = ?", (_hash(token),))
        await self._tables.write(delete, moves=_REVISION)
        await self.refresh()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _bound(token: str, credential: bytes) -> bytes:
    # With the token, which is kept nowhere: a stolen table says nothing about the secret.
    return hmac.digest(token.encode(), credential, "sha256")


def _session(row: Row) -> Session:
    token, key_id, proof, name, created, expires = row
    return Session(token, key_id, proof, name, parse_iso(created), parse_iso(expires))
