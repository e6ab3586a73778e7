"""The tables of API keys and of the administrator's secret."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from aiserver.contract.caller import Caller
from aiserver.kit.clock import Clock
from aiserver.kit.db import IntegrityError, Row
from aiserver.kit.ids import random_hex
from aiserver.kit.tables import Rows, Statement, Tables
from aiserver.kit.times import iso, parse_iso

# A feature that an administrator gives a key: anybody may read the results of its calls.
PUBLIC_ARTIFACTS = "PublicArtifacts"
KEY_FORM = re.compile(r"ak-[0-9a-f]{32}")

_COLUMNS = (
    "id, hash, visible, name, user_id, user_name, environment, created, expires, cancelled, "
    "last_used, notes, ref_id, ref_id_str, scopes, features, restrict_to, models, meta"
)
_ADMIN_ROW = "INSERT INTO secrets (name, salt, hash, created) VALUES ('admin', ?, ?, ?)"
_JSON = frozenset({"scopes", "features", "restrict_to", "models", "meta"})
_TIMES = frozenset({"created", "expires", "cancelled", "last_used"})
_REVISION = "keys"
_LISTS = frozenset({"scopes", "features", "restrict_to", "models"})
WRITABLE = frozenset(
    {
        *("name", "user_id", "user_name", "environment", "expires", "cancelled", "notes"),
        *("ref_id", "ref_id_str", "meta"),
        *_LISTS,
    }
)


class KeyTaken(Exception):
    """This key text is in use already."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key; `hash` is the SHA-256 of its text, which is kept nowhere."""

    id: int
    hash: bytes
    visible: str
    name: str
    user_id: str | None
    user_name: str | None
    environment: str | None
    created: datetime
    expires: datetime | None
    cancelled: datetime | None
    last_used: datetime | None
    notes: str | None
    ref_id: int | None
    ref_id_str: str | None
    scopes: list[str]
    features: list[str]
    restrict_to: list[str]
    models: list[str]
    meta: dict[str, str] | None

    def active(self, now: datetime) -> bool:
        return self.cancelled is None and (self.expires is None or self.expires > now)

    @property
    def publishes(self) -> bool:
        """Whether its results are public, also while the key itself is refused."""
        return PUBLIC_ARTIFACTS in self.features

    def caller(self) -> Caller:
        return Caller(
            key_id=self.id,
            name=self.name,
            user_id=self.user_id,
            user_name=self.user_name,
            scopes=frozenset(self.scopes),
            restrict_to=frozenset(self.restrict_to),
            models=frozenset(self.models),
        )


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def new_key() -> str:
    return f"ak-{random_hex(16)}"


def _visible(text: str) -> str:
    return f"{text[:3]}***{text[-3:]}"


class KeyStore:
    """Reads and writes keys; who holds copies in memory learns of changes by `revision`."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock

    async def all(self) -> list[ApiKey]:
        return _keys(await self._tables.read(f"SELECT {_COLUMNS} FROM api_keys ORDER BY id"))

    async def revision(self) -> int:
        return await self._tables.revision(_REVISION)

    async def create(self, text: str, members: Mapping[str, Any]) -> ApiKey:
        """Raises KeyTaken when a key with this text exists."""
        now = self._clock.now()
        values = {"name": now.strftime("%Y-%m")} | {
            k: v for k, v in members.items() if v is not None
        }
        values |= {"hash": digest(text), "visible": _visible(text), "created": now}

        names, marks, written = _assignments(values)
        insert = Statement(
            f"INSERT INTO api_keys ({', '.join(names)}) VALUES ({', '.join(marks)})"
            f" RETURNING {_COLUMNS}",
            written,
        )
        try:
            [rows] = await self._tables.write(insert, moves=_REVISION, check=_readable)
        except IntegrityError:
            raise KeyTaken from None
        return _key(rows[0])

    async def update(self, key_id: int, members: Mapping[str, Any]) -> bool:
        """Writes these members; False when there is no such key."""
        names, marks, written = _assignments(members)
        pairs = ", ".join(f"{n} = {m}" for n, m in zip(names, marks, strict=True))
        change = Statement(
            f"UPDATE api_keys SET {pairs or 'id = id'} WHERE id = ? RETURNING {_COLUMNS}",
            (*written, key_id),
        )
        [rows] = await self._tables.write(change, moves=_REVISION, check=_readable)
        return bool(rows)

    async def delete(self, key_id: int) -> bool:
        delete = Statement("DELETE FROM api_keys WHERE id = ? RETURNING id", (key_id,))
        [rows] = await self._tables.write(delete, moves=_REVISION)
        return bool(rows)

    async def rotate(self, key_id: int, text: str) -> None:
        """Gives a key another text; its rights and its id stay."""
        row = (digest(text), _visible(text), key_id)
        change = Statement("UPDATE api_keys SET hash = ?, visible = ? WHERE id = ?", row)
        await self._tables.write(change, moves=_REVISION)

    async def touch(self, used: Mapping[int, datetime]) -> None:
        """Keeps when keys were last used; no revision, as nobody's rights change."""
        # In one order, so that two processes never wait for each other.
        await self._tables.write(
            *(
                Statement("UPDATE api_keys SET last_used = ? WHERE id = ?", (iso(when), key_id))
                for key_id, when in sorted(used.items())
            )
        )


class AdminSecret:
    """The administrator's secret, kept as a salted hash: it has too many bits to guess."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock

    async def stored(self) -> tuple[bytes, bytes] | None:
        """(salt, hash), or None before the first start."""
        rows = await self._tables.read("SELECT salt, hash FROM secrets WHERE name = 'admin'")
        return (rows[0][0], rows[0][1]) if rows else None

    async def create(self) -> str | None:
        """The first secret, the only time its text is seen; None when there is one already."""
        text, row = self._made()
        sql = f"{_ADMIN_ROW} ON CONFLICT DO NOTHING RETURNING name"
        [rows] = await self._tables.write(Statement(sql, row), moves=_REVISION)
        return text if rows else None

    async def replace(self) -> str:
        """A new secret; the only time its text is seen."""
        text, row = self._made()
        sql = (
            f"{_ADMIN_ROW} ON CONFLICT (name) DO UPDATE SET"
            " salt = excluded.salt, hash = excluded.hash, created = excluded.created"
        )
        await self._tables.write(Statement(sql, row), moves=_REVISION)
        return text

    def _made(self) -> tuple[str, tuple[Any, ...]]:
        text = f"as-{random_hex(20)}"
        salt = bytes.fromhex(random_hex(16))
        return text, (salt, salted(salt, text), iso(self._clock.now()))


def salted(salt: bytes, text: str) -> bytes:
    return hmac.digest(salt, text.encode(), "sha256")


def _assignments(members: Mapping[str, Any]) -> tuple[list[str], list[str], list[Any]]:
    names = list(members)
    return names, ["?"] * len(names), [_written(name, members[name]) for name in names]


def _written(name: str, value: Any) -> Any:
    if name in _JSON and value is not None:
        return msgspec.json.encode(value).decode()
    if name in _LISTS:
        return "[]"
    return iso(value) if isinstance(value, datetime) else value


def _readable(found: list[Rows]) -> None:
    """Before the commit: a row that cannot be read would stop the next start."""
    _keys(found[0])


def _keys(rows: Rows) -> list[ApiKey]:
    return [_key(row) for row in rows]


def _key(row: Row) -> ApiKey:
    names = [name.strip() for name in _COLUMNS.split(",")]
    values = dict(zip(names, row, strict=True))
    for name in _TIMES:
        values[name] = parse_iso(values[name]) if values[name] else None
    for name in _JSON:
        values[name] = msgspec.json.decode(values[name]) if values[name] else None
    return ApiKey(**values)
