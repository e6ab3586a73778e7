"""The secrets of callbacks: one per key, sealed, rotated with a day of overlap."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest
from msgspec.structs import replace

from aiserver.jobs.callback_secrets import (
    CallbackSecrets,
    SealedSecrets,
    SecretStore,
    SqliteSecrets,
)
from aiserver.jobs.postgres_secrets import PostgresSecrets
from aiserver.kit.crypto import Cipher, EncryptionKeyError
from aiserver.kit.postgres import Postgres
from aiserver.kit.redact import Redactor
from fakes.calls import StillClock
from postgres import server

OLD, NEW = b"o" * 32, b"n" * 32


class Kept:
    def __init__(self, store: SecretStore, *keys: bytes) -> None:
        self.clock = StillClock()
        self.redactor = Redactor()
        self.secrets = CallbackSecrets(
            store, Cipher(*(keys or (OLD,))), self.clock, self.redactor.learn
        )


@pytest.fixture
async def table(engine: str, request: pytest.FixtureRequest) -> AsyncGenerator[SecretStore]:
    if engine == "sqlite":
        yield SqliteSecrets(request.getfixturevalue("database"))
        return
    database = await Postgres.open(server().fresh_database())
    yield PostgresSecrets(database)
    await database.close()


async def test_each_key_has_a_secret_of_its_own(table: SecretStore) -> None:
    kept = Kept(table)
    of_key, of_admin = await kept.secrets.of(1), await kept.secrets.of(0)
    assert of_key.current != of_admin.current
    assert await Kept(table).secrets.of(1) == of_key


async def test_two_first_calls_get_one_secret(table: SecretStore) -> None:
    one, other = Kept(table).secrets, Kept(table).secrets
    first, second = await asyncio.gather(one.of(1), other.of(1))
    assert first == second


async def test_old_secret_signs_along_for_a_day(table: SecretStore) -> None:
    kept = Kept(table)
    old = await kept.secrets.of(1)
    new = await kept.secrets.rotate(1)
    assert new.both() == (new.current, old.current)
    day_later = kept.clock.now() + timedelta(days=1)
    assert new.previous_until == int(day_later.timestamp() * 1000)
    kept.clock.moment += timedelta(hours=23, minutes=59)
    assert (await kept.secrets.of(1)).both() == (new.current, old.current)
    kept.clock.moment += timedelta(minutes=2)
    assert (await kept.secrets.of(1)).both() == (new.current,)


class Late:
    """A store whose next look finds what was there before."""

    def __init__(self, store: SecretStore, *rows: SealedSecrets) -> None:
        self._store = store
        self._rows = list(rows)
        self.all, self.add = store.all, store.add
        self.change, self.remove = store.change, store.remove

    async def find(self, key_id: int) -> SealedSecrets | None:
        return self._rows.pop() if self._rows else await self._store.find(key_id)


async def test_two_rotations_at_once_make_one_new_secret(table: SecretStore) -> None:
    kept = Kept(table)
    old = await kept.secrets.of(1)
    [row] = await table.all()
    first = await kept.secrets.rotate(1)
    second = await Kept(Late(table, row)).secrets.rotate(1)
    assert second == first
    assert first.previous == old.current


async def test_secret_of_a_deleted_key_is_gone(table: SecretStore) -> None:
    kept = Kept(table)
    old = await kept.secrets.of(1)
    await kept.secrets.forget(1)
    assert (await kept.secrets.of(1)).current != old.current


async def test_secret_is_sealed_for_its_key(table: SecretStore) -> None:
    kept = Kept(table)
    secret = (await kept.secrets.of(1)).current
    [row] = await table.all()
    assert secret.removeprefix("whsec_").encode() not in row.current
    await table.add(replace(row, key_id=2))
    with pytest.raises(EncryptionKeyError):
        await kept.secrets.of(2)


async def test_secret_is_never_shown(table: SecretStore) -> None:
    kept = Kept(table)
    secrets = await kept.secrets.of(1)
    assert secrets.current not in repr(secrets)
    assert secrets.current not in kept.redactor(f"sent {secrets.current}")


async def test_new_encryption_key_takes_over(table: SecretStore) -> None:
    kept = Kept(table, OLD)
    await kept.secrets.of(2)
    await kept.secrets.of(1)
    rotated = await kept.secrets.rotate(1)
    assert await Kept(table, NEW, OLD).secrets.seal_again() == 2
    assert await Kept(table, NEW).secrets.of(1) == rotated
    with pytest.raises(EncryptionKeyError):
        await Kept(table, OLD).secrets.of(1)


async def test_secret_that_does_not_open_can_be_rotated(table: SecretStore) -> None:
    await Kept(table, OLD).secrets.of(1)
    kept = Kept(table, NEW)
    with pytest.raises(EncryptionKeyError):
        await kept.secrets.of(1)
    rotated = await kept.secrets.rotate(1)
    assert rotated.previous is None
    assert await kept.secrets.of(1) == rotated
