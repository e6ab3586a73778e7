"""The table of callback secrets in PostgreSQL."""

from aiserver.jobs.callback_secrets import SealedSecrets
from aiserver.kit.postgres import Postgres, Record


class PostgresSecrets:
    """Implements `SecretStore`. The database is closed by its owner."""

    def __init__(self, database: Postgres) -> None:
        self._db = database

    async def find(self, key_id: int) -> SealedSecrets | None:
        rows = await self._db.read(
            "SELECT key_id, current, previous, rotated_at FROM callback_secrets WHERE key_id = $1",
            key_id,
        )
        return _row(rows[0]) if rows else None

    async def all(self) -> list[SealedSecrets]:
        rows = await self._db.read(
            "SELECT key_id, current, previous, rotated_at FROM callback_secrets"
        )
        return [_row(row) for row in rows]

    async def add(self, row: SealedSecrets) -> SealedSecrets:
        await self._db.execute(
            "INSERT INTO callback_secrets (key_id, current, previous, rotated_at) "
            "VALUES ($1, $2, $3, $4) ON CONFLICT (key_id) DO NOTHING",
            row.key_id,
            row.current,
            row.previous,
            row.rotated_at,
        )
        return await self.find(row.key_id) or row

    async def change(self, row: SealedSecrets, *, was: bytes) -> bool:
        changed = await self._db.execute(
            "UPDATE callback_secrets SET current = $1, previous = $2, rotated_at = $3 "
            "WHERE key_id = $4 AND current = $5",
            row.current,
            row.previous,
            row.rotated_at,
            row.key_id,
            was,
        )
        return changed > 0

    async def remove(self, key_id: int) -> None:
        await self._db.execute("DELETE FROM callback_secrets WHERE key_id = $1", key_id)


def _row(row: Record) -> SealedSecrets:
    key_id, current, previous, rotated_at = row
    return SealedSecrets(key_id=key_id, current=current, previous=previous, rotated_at=rotated_at)
