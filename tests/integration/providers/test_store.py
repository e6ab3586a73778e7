"""The table of providers: what cannot be read back is never kept."""

from typing import Any

import msgspec
import pytest

from aiserver.kit.clock import SystemClock
from aiserver.kit.crypto import Cipher
from aiserver.kit.tables import Tables
from aiserver.providers.store import ADMIN, ProviderStore


def forget(_: str) -> None:
    pass


async def test_unreadable_row_is_undone(tables: Tables) -> None:
    store = ProviderStore(tables, Cipher(bytes(32)), SystemClock(), forget)
    provider = await store.create("mine", ADMIN, {"ai_type_id": "Custom"})
    before = await store.all()
    bad: Any = [{"model": ""}]
    with pytest.raises(msgspec.ValidationError):
        await store.update(provider, {"models": bad})
    with pytest.raises(msgspec.ValidationError):
        await store.create("other", ADMIN, {"ai_type_id": "Custom", "models": bad})
    assert await store.all() == before


async def test_upstream_keys_are_made_known_before_they_are_used(tables: Tables) -> None:
    told: list[str] = []
    store = ProviderStore(tables, Cipher(bytes(32)), SystemClock(), told.append)
    provider = await store.create("mine", ADMIN, {"ai_type_id": "Custom", "api_key": "k-1"})
    assert told == ["k-1"]
    assert store.key_of(provider) == "k-1"
