"""Who a call comes from, and what that key may do."""

from datetime import UTC, datetime, timedelta

import pytest

from aiserver.contract.caller import ADMINISTRATOR, ANYONE, Caller
from aiserver.contract.errors import Forbidden, Unauthenticated
from aiserver.contract.operation import GET, Access, operation, operation_of
from aiserver.contract.responses import Wire
from aiserver.keys import access
from aiserver.keys.access import Credentials, KeyRing, permit
from aiserver.keys.sessions import Sessions
from aiserver.keys.store import AdminSecret, KeyStore, new_key
from aiserver.kit.tables import Tables

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class StillClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@operation(tag="T", verbs=GET, access=Access.OPEN, returns=None)
class Open(Wire):
    """Open."""


@operation(tag="T", verbs=GET, access=Access.KEY, returns=None)
class Keyed(Wire):
    """Keyed."""


@operation(tag="T", verbs=GET, access=Access.ADMIN, returns=None)
class Admin(Wire):
    """Admin."""


OPEN, KEYED, ADMIN = (operation_of(each) for each in (Open, Keyed, Admin))


async def ring_on(tables: Tables, clock: StillClock, *, given: str | None = None) -> KeyRing:
    keys, secret = KeyStore(tables, clock), AdminSecret(tables, clock)
    ring = KeyRing(keys, secret, Sessions(tables, clock), clock, auth_secret=given)
    await ring.refresh()
    return ring


async def test_key_is_known_by_its_text(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    created = await KeyStore(tables, clock).create(text, {"name": "app", "models": ["a"]})
    caller = (await ring_on(tables, clock)).identify(Credentials(bearer=text))
    assert (caller.key_id, caller.name, caller.models) == (created.id, "app", {"a"})


async def test_api_key_header_wins_over_bearer(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    await KeyStore(tables, clock).create(text, {})
    ring = await ring_on(tables, clock)
    assert ring.identify(Credentials(api_key=text, bearer="wrong")).known
    with pytest.raises(Unauthenticated):
        ring.identify(Credentials(api_key="wrong", bearer=text))


@pytest.mark.parametrize("text", ["ak-", "wrong", "ak-" + "0" * 32, "x" * 100_000, "\u20ac"])
async def test_wrong_text_is_refused(tables: Tables, text: str) -> None:
    with pytest.raises(Unauthenticated, match="Invalid API Key"):
        (await ring_on(tables, StillClock())).identify(Credentials(bearer=text))


async def test_hash_of_a_key_opens_nothing(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    created = await KeyStore(tables, clock).create(text, {})
    with pytest.raises(Unauthenticated):
        (await ring_on(tables, clock)).identify(Credentials(bearer=created.hash.hex()))


async def test_expired_key_is_refused_at_its_time(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    await KeyStore(tables, clock).create(text, {"expires": NOW + timedelta(seconds=1)})
    ring = await ring_on(tables, clock)
    assert ring.identify(Credentials(bearer=text)).known
    clock.time += timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match="expired"):
        ring.identify(Credentials(bearer=text))


async def test_disabled_key_is_refused(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    created = await KeyStore(tables, clock).create(text, {})
    ring = await ring_on(tables, clock)
    await KeyStore(tables, clock).update(created.id, {"cancelled": NOW})
    assert ring.identify(Credentials(bearer=text)).known
    await ring.refresh()
    with pytest.raises(Unauthenticated, match="disabled"):
        ring.identify(Credentials(bearer=text))


async def test_generated_secret_is_the_administrator(tables: Tables) -> None:
    clock = StillClock()
    secret = await AdminSecret(tables, clock).replace()
    ring = await ring_on(tables, clock)
    assert ring.identify(Credentials(bearer=secret)) is ADMINISTRATOR
    assert ring.identify(Credentials(auth_secret=secret)) is ADMINISTRATOR
    newer = await AdminSecret(tables, clock).replace()
    await ring.refresh()
    assert ring.identify(Credentials(bearer=newer)) is ADMINISTRATOR
    with pytest.raises(Unauthenticated):
        ring.identify(Credentials(bearer=secret))


async def test_given_secret_replaces_the_generated(tables: Tables) -> None:
    clock = StillClock()
    generated = await AdminSecret(tables, clock).replace()
    ring = await ring_on(tables, clock, given="given-secret-of-the-operator")
    assert ring.identify(Credentials(bearer="given-secret-of-the-operator")) is ADMINISTRATOR
    with pytest.raises(Unauthenticated):
        ring.identify(Credentials(bearer=generated))


async def test_last_use_is_kept_once(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    created = await KeyStore(tables, clock).create(text, {})
    ring = await ring_on(tables, clock)
    ring.identify(Credentials(bearer=text))
    assert ring.take_used() == {created.id: NOW}
    assert ring.take_used() == {}


def test_credentials_do_not_show_themselves() -> None:
    assert "canary" not in repr(Credentials(bearer="canary", api_key="canary"))


KEY = Caller(key_id=5, name="app")
RESTRICTED = Caller(key_id=6, restrict_to=frozenset({"Other"}))
ADMIN_KEY = Caller(key_id=7, scopes=frozenset({"Admin"}), restrict_to=frozenset({"Other"}))


def test_open_operations_take_anyone() -> None:
    permit(ANYONE, OPEN)
    permit(RESTRICTED, OPEN)


def test_key_operations_need_a_key() -> None:
    permit(KEY, KEYED)
    permit(ADMINISTRATOR, KEYED)
    with pytest.raises(Unauthenticated):
        permit(ANYONE, KEYED)


def test_restricted_key_learns_what_it_may_call() -> None:
    with pytest.raises(Forbidden, match="may not call Keyed; it may call Other"):
        permit(RESTRICTED, KEYED)


def test_admin_operations_need_an_administrator() -> None:
    permit(ADMINISTRATOR, ADMIN)
    permit(ADMIN_KEY, ADMIN)
    for caller in (ANYONE, KEY, RESTRICTED):
        with pytest.raises(Unauthenticated):
            permit(caller, ADMIN)


def test_models_limit_a_key_not_an_administrator() -> None:
    limited = Caller(key_id=5, models=frozenset({"a"}))
    assert limited.may_use("a")
    assert not limited.may_use("b")
    assert KEY.may_use("b")
    assert ADMIN_KEY.may_use("b")


async def test_key_used_lately_is_refused_once_it_is_disabled(tables: Tables) -> None:
    clock, text = StillClock(), new_key()
    store = KeyStore(tables, clock)
    created = await store.create(text, {})
    ring = await ring_on(tables, clock)
    assert ring.identify(Credentials(bearer=text)).key_id == created.id
    await store.update(created.id, {"cancelled": clock.now()})
    await ring.refresh()
    with pytest.raises(Unauthenticated):
        ring.identify(Credentials(bearer=text))


async def test_keys_used_lately_are_bounded(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_MOST_LATELY", 2)
    clock, texts = StillClock(), [new_key() for _ in range(3)]
    for text in texts:
        await KeyStore(tables, clock).create(text, {})
    ring = await ring_on(tables, clock)
    for text in texts * 2:
        assert ring.identify(Credentials(bearer=text)).known
    assert len(ring._lately) <= 2
