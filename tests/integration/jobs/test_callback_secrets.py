"""The secrets of callbacks: one per key, sealed, each valid for the day that was promised."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from aiserver.contract.errors import Conflict
from aiserver.jobs.callback_secrets import KEPT_DAYS, MOST_SIGNING, CallbackSecrets, KeyDeleted
from aiserver.kit.crypto import Cipher, EncryptionKeyError
from aiserver.kit.redact import Redactor
from aiserver.kit.tables import Rows, Statement, Tables
from fakes.calls import StillClock

OLD, NEW = b"o" * 32, b"n" * 32


class Kept:
    def __init__(self, tables: Tables, *keys: bytes) -> None:
        self.clock = StillClock()
        self.redactor = Redactor()
        self.deleted: set[int] = set()
        self.secrets = CallbackSecrets(
            tables,
            Cipher(*(keys or (OLD,))),
            self.clock,
            self.redactor.learn,
            is_key=self.is_key,
        )

    async def is_key(self, key_id: int) -> bool:
        return key_id not in self.deleted

    async def delete(self, key_id: int) -> None:
        self.deleted.add(key_id)
        await self.secrets.forget(key_id)

    def pass_(self, **time: float) -> None:
        self.clock.moment += timedelta(**time)


async def test_each_key_has_a_secret_of_its_own(tables: Tables) -> None:
    kept = Kept(tables)
    of_key, of_admin = await kept.secrets.of(1), await kept.secrets.of(0)
    assert of_key.current != of_admin.current
    assert await Kept(tables).secrets.of(1) == of_key


async def test_two_first_calls_get_one_secret(tables: Tables) -> None:
    one, other = Kept(tables).secrets, Kept(tables).secrets
    first, second = await asyncio.gather(one.of(1), other.of(1))
    assert first == second


async def test_old_secret_signs_along_for_a_day(tables: Tables) -> None:
    kept = Kept(tables)
    old = await kept.secrets.of(1)
    new = await kept.secrets.rotate(1)
    assert new.signing() == (new.current, old.current)
    day_later = kept.clock.now() + timedelta(days=1)
    assert new.previous_until == int(day_later.timestamp() * 1000)
    kept.pass_(hours=23, minutes=59)
    assert (await kept.secrets.of(1)).signing() == (new.current, old.current)
    kept.pass_(minutes=2)
    assert (await kept.secrets.of(1)).signing() == (new.current,)


class Late:
    """Tables whose next look finds what was there before."""

    def __init__(self, tables: Tables, before: Rows) -> None:
        self._tables = tables
        self._before = [before]
        self.write, self.read_long = tables.write, tables.read_long
        self.revision, self.changed = tables.revision, tables.changed
        self.version = tables.version

    async def read(self, sql: str, *parameters: Any) -> Rows:
        return self._before.pop() if self._before else await self._tables.read(sql, *parameters)


async def test_two_rotations_at_once_make_one_new_secret(tables: Tables) -> None:
    kept = Kept(tables)
    old = await kept.secrets.of(1)
    before = await tables.read("SELECT * FROM callback_secrets")
    first = await kept.secrets.rotate(1)
    second = await Kept(Late(tables, before)).secrets.rotate(1)
    assert second == first
    assert first.earlier == (old.current,)


async def test_each_rotated_secret_signs_until_its_own_promise(tables: Tables) -> None:
    kept = Kept(tables)
    first = await kept.secrets.of(1)
    second = await kept.secrets.rotate(1)
    kept.pass_(hours=10)
    third = await kept.secrets.rotate(1)
    assert third.signing() == (third.current, second.current, first.current)
    assert third.previous_until == int((kept.clock.now() + timedelta(days=1)).timestamp() * 1000)
    kept.pass_(hours=13, minutes=59)
    assert (await kept.secrets.of(1)).signing() == third.signing()
    kept.pass_(minutes=1)
    assert (await kept.secrets.of(1)).signing() == (third.current, second.current)
    kept.pass_(hours=10)
    assert (await kept.secrets.of(1)).signing() == (third.current,)


async def test_rotation_past_the_most_that_sign_waits(tables: Tables) -> None:
    kept = Kept(tables)
    newest = await kept.secrets.of(1)
    for _ in range(MOST_SIGNING - 1):
        newest = await kept.secrets.rotate(1)
        kept.pass_(hours=1)
    assert len(newest.signing()) == MOST_SIGNING
    with pytest.raises(Conflict, match=r"2026-11-16T12:00:00(\.000)?Z, the previousUntil"):
        await kept.secrets.rotate(1)
    assert await kept.secrets.of(1) == newest
    kept.pass_(hours=24 - MOST_SIGNING + 1)
    assert len((await kept.secrets.rotate(1)).signing()) == MOST_SIGNING


async def test_deleted_key_signs_what_is_under_way(tables: Tables) -> None:
    kept = Kept(tables)
    secrets = await kept.secrets.of(1)
    await kept.delete(1)
    kept.pass_(days=KEPT_DAYS)
    await kept.secrets.tidy()
    assert await kept.secrets.of(1) == secrets


async def test_secret_of_a_key_deleted_long_ago_is_removed(tables: Tables) -> None:
    kept = Kept(tables)
    other = await kept.secrets.of(2)
    await kept.secrets.of(1)
    await kept.delete(1)
    kept.pass_(days=1)
    # Told again by someone else, it is kept no longer.
    await kept.secrets.forget(1)
    kept.pass_(days=KEPT_DAYS - 1, seconds=1)
    await kept.secrets.tidy()
    with pytest.raises(KeyDeleted, match="was deleted"):
        await kept.secrets.of(1)
    assert await tables.read("SELECT key_id FROM callback_secrets") == [(2,)]
    assert await kept.secrets.of(2) == other


async def test_no_secret_is_made_for_a_deleted_key(tables: Tables) -> None:
    kept = Kept(tables)
    kept.deleted |= {0, 1}
    for call in (kept.secrets.of, kept.secrets.rotate):
        with pytest.raises(KeyDeleted):
            await call(1)
    assert await tables.read("SELECT key_id FROM callback_secrets") == []
    # The administrator's is no key.
    assert (await kept.secrets.of(0)).current


async def test_secret_is_sealed_for_its_key(tables: Tables) -> None:
    kept = Kept(tables)
    secret = (await kept.secrets.of(1)).current
    [(sealed,)] = await tables.read("SELECT current FROM callback_secrets")
    assert secret.removeprefix("whsec_").encode() not in sealed
    copy = "INSERT INTO callback_secrets (key_id, current) VALUES (2, ?)"
    await tables.write(Statement(copy, (sealed,)))
    with pytest.raises(EncryptionKeyError):
        await kept.secrets.of(2)


async def test_secret_is_never_shown(tables: Tables) -> None:
    kept = Kept(tables)
    secrets = await kept.secrets.of(1)
    assert secrets.current not in repr(secrets)
    assert secrets.current not in kept.redactor(f"sent {secrets.current}")


async def test_new_encryption_key_takes_over(tables: Tables) -> None:
    kept = Kept(tables, OLD)
    await kept.secrets.of(2)
    await kept.secrets.of(1)
    await kept.secrets.rotate(1)
    rotated = await kept.secrets.rotate(1)
    assert len(rotated.signing()) == 3
    assert await Kept(tables, NEW, OLD).secrets.seal_again() == 2
    assert await Kept(tables, NEW).secrets.of(1) == rotated
    with pytest.raises(EncryptionKeyError):
        await Kept(tables, OLD).secrets.of(1)


async def test_secret_that_does_not_open_can_be_rotated(tables: Tables) -> None:
    await Kept(tables, OLD).secrets.of(1)
    kept = Kept(tables, NEW)
    with pytest.raises(EncryptionKeyError):
        await kept.secrets.of(1)
    rotated = await kept.secrets.rotate(1)
    assert rotated.signing() == (rotated.current,)
    assert await kept.secrets.of(1) == rotated
