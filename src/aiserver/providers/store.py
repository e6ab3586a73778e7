"""The table of providers, upstream keys encrypted."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher
from aiserver.kit.db import IntegrityError, Row
from aiserver.kit.tables import Rows, Statement, Tables
from aiserver.kit.times import iso, parse_iso
from aiserver.providers.operations import AiProviderModel

ADMIN, ENVIRONMENT, EMBEDDED = "admin", "environment", "embedded"

_REVISION = "providers"
_COLUMNS = (
    "id, name, source, ai_type_id, api_base_url, api_key, api_key_var, api_key_header, "
    "heartbeat_url, task_paths, concurrency, priority, weight, enabled, offline, created, models"
)


class NameTaken(Exception):
    """A provider of this name exists."""


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One provider; `api_key` stays sealed until a call needs it."""

    id: int
    name: str
    source: str
    ai_type_id: str
    api_base_url: str | None = None
    api_key: bytes | None = None
    api_key_var: str | None = None
    api_key_header: str | None = None
    heartbeat_url: str | None = None
    task_paths: dict[str, str] | None = None
    concurrency: int = 0
    priority: int = 0
    weight: int = 1
    enabled: bool = True
    offline: datetime | None = None
    created: datetime
    models: list[AiProviderModel] = []

    def __repr__(self) -> str:
        return f"Provider({self.id}, {self.name!r})"


class ProviderStore:
    """Who holds copies in memory learns of changes by `revision`.

    `learn` is told every upstream key that passes here, so that no sink ever shows it.
    """

    def __init__(
        self, tables: Tables, cipher: Cipher, clock: Clock, learn: Callable[[str], None]
    ) -> None:
        self._tables = tables
        self._cipher = cipher
        self._learn = learn
        self._clock = clock

    async def all(self) -> list[Provider]:
        sql = f"SELECT {_COLUMNS} FROM providers ORDER BY priority DESC, id"
        return _providers(await self._tables.read(sql))

    async def revision(self) -> int:
        return await self._tables.revision(_REVISION)

    def key_of(self, provider: Provider) -> str | None:
        """The upstream key in clear. Raises EncryptionKeyError when it cannot be opened."""
        if provider.api_key is None:
            return None
        key = self._cipher.open(provider.api_key, bound_to=f"provider {provider.name}")
        self._learn(key)
        return key

    async def create(self, name: str, source: str, members: Mapping[str, Any]) -> Provider:
        """Raises NameTaken."""
        values = {"name": name, "source": source, "created": self._clock.now(), **members}
        written = self._written(name, values)

        insert = Statement(
            f"INSERT INTO providers ({', '.join(written)}) "
            f"VALUES ({', '.join('?' for _ in written)}) RETURNING {_COLUMNS}",
            list(written.values()),
        )
        try:
            [rows] = await self._tables.write(insert, moves=_REVISION, check=_readable)
        except IntegrityError:
            raise NameTaken from None
        return _provider(rows[0])

    async def update(self, provider: Provider, members: Mapping[str, Any]) -> None:
        """Raises NameTaken. A key is sealed for its provider's name; a new name seals it anew."""
        values = dict(members)
        name = values.get("name", provider.name)
        if name != provider.name and "api_key" not in values:
            values["api_key"] = self.key_of(provider)
        written = self._written(name, values)

        pairs = ", ".join(f"{column} = ?" for column in written) or "id = id"
        change = Statement(
            f"UPDATE providers SET {pairs} WHERE id = ? RETURNING {_COLUMNS}",
            (*written.values(), provider.id),
        )
        try:
            await self._tables.write(change, moves=_REVISION, check=_readable)
        except IntegrityError:
            raise NameTaken from None

    async def seal_again(self) -> int:
        """Seals every upstream key with the newest encryption key, all or none; how many."""
        keys = [(p, key) for p in await self.all() if (key := self.key_of(p)) is not None]
        sealed = [(self._written(p.name, {"api_key": key})["api_key"], p.id) for p, key in keys]
        sql = "UPDATE providers SET api_key = ? WHERE id = ?"
        await self._tables.write(*(Statement(sql, row) for row in sealed), moves=_REVISION)
        return len(sealed)

    async def delete(self, provider_id: int) -> bool:
        delete = Statement("DELETE FROM providers WHERE id = ? RETURNING id", (provider_id,))
        [rows] = await self._tables.write(delete, moves=_REVISION)
        return bool(rows)

    def _written(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        written = dict(values)
        for column, value in values.items():
            if column == "api_key" and value is not None:
                self._learn(value)
                written[column] = self._cipher.seal(value, bound_to=f"provider {name}")
            elif column in ("models", "task_paths") and value is not None:
                written[column] = msgspec.json.encode(value).decode()
            elif isinstance(value, datetime):
                written[column] = iso(value)
        return written


def _readable(found: list[Rows]) -> None:
    """Before the commit: a row that cannot be read would stop the next start."""
    _providers(found[0])


def _providers(rows: Rows) -> list[Provider]:
    return [_provider(row) for row in rows]


def _provider(row: Row) -> Provider:
    values = dict(zip((name.strip() for name in _COLUMNS.split(",")), row, strict=True))
    values["models"] = msgspec.json.decode(values["models"], type=list[AiProviderModel])
    if values["task_paths"] is not None:
        values["task_paths"] = msgspec.json.decode(values["task_paths"])
    values["enabled"] = bool(values["enabled"])
    values["created"] = parse_iso(values["created"])
    values["offline"] = parse_iso(values["offline"]) if values["offline"] else None
    return Provider(**values)
