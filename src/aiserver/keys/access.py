"""Who a call comes from and whether it may run; a hash and a look-up in memory, nothing slower."""

import asyncio
import hashlib
import hmac
from datetime import datetime

import msgspec

from aiserver.contract.caller import ADMINISTRATOR, ANYONE, Caller
from aiserver.contract.errors import Forbidden, Unauthenticated
from aiserver.contract.operation import Access, Operation
from aiserver.keys.sessions import Sessions
from aiserver.keys.store import AdminSecret, ApiKey, KeyStore, digest, salted
from aiserver.kit.clock import Clock

_LONGEST = 512
# Keys whose hash need not be computed again.
_MOST_LATELY = 1024


class Credentials(msgspec.Struct, frozen=True, gc=False):
    """The secrets that a request shows; X-Api-Key wins over the bearer."""

    bearer: str | None = None
    api_key: str | None = None
    auth_secret: str | None = None
    session: str | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"

    @property
    def any(self) -> str | None:
        """The secret that was sent with intent; a session's cookie is none."""
        return self.api_key or self.bearer or self.auth_secret


class _Entry(msgspec.Struct, frozen=True):
    key: ApiKey
    caller: Caller


class KeyRing:
    """Every key in memory, renewed when its revision in the store moved."""

    def __init__(
        self,
        store: KeyStore,
        secret: AdminSecret,
        sessions: Sessions,
        clock: Clock,
        *,
        auth_secret: str | None,
    ) -> None:
        self._store = store
        self._secret = secret
        self._sessions = sessions
        self._clock = clock
        self._given = (b"given", salted(b"given", auth_secret)) if auth_secret else None
        self._admin: tuple[bytes, bytes] | None = self._given
        self._keys: dict[bytes, _Entry] = {}
        self._by_id: dict[int, _Entry] = {}
        self._revision = -1
        self._used: dict[int, datetime] = {}
        self._lately: dict[str, _Entry] = {}
        self._reading = asyncio.Lock()

    async def refresh(self) -> None:
        """Reads the keys again if they changed. Raises StorageError; then the old ones stay."""
        await self._sessions.refresh()
        # One at a time: what was read first must not replace what was read later.
        async with self._reading:
            revision = await self._store.revision()
            if revision == self._revision:
                return
            keys = {key.hash: _Entry(key, key.caller()) for key in await self._store.all()}
            self._admin = self._given or await self._secret.stored()
            self._keys, self._lately = keys, {}
            self._by_id = {entry.key.id: entry for entry in keys.values()}
            self._revision = revision

    def identify(self, credentials: Credentials) -> Caller:
        """The caller; ANYONE without credentials. Raises Unauthenticated for wrong ones."""
        shown = credentials.any
        if shown is None:
            return self._of_session(credentials.session) if credentials.session else ANYONE
        lately = self._lately.get(shown)
        if lately is not None:
            return self._usable(lately)
        if len(shown) > _LONGEST:
            raise Unauthenticated("Invalid API Key")
        sought = digest(shown)
        entry = self._keys.get(sought)
        if entry is not None and hmac.compare_digest(entry.key.hash, sought):
            if len(self._lately) >= _MOST_LATELY:
                self._lately.clear()
            self._lately[shown] = entry
            return self._usable(entry)
        if self._is_admin(shown):
            return ADMINISTRATOR
        raise Unauthenticated("Invalid API Key")

    def id_of(self, text: str) -> int | None:
        """The id of the key with this text."""
        entry = self._keys.get(digest(text))
        return entry.key.id if entry is not None else None

    def caller_of(self, key_id: int) -> Caller | None:
        """Who acts later in the name of a key, 0 for the administrator; None once it may not."""
        if key_id == 0:
            return ADMINISTRATOR
        entry = self._by_id.get(key_id)
        try:
            return self._usable(entry) if entry is not None else None
        except Unauthenticated:
            return None

    def publishes(self, key_id: int) -> bool:
        """Whether the results of this key are public."""
        entry = self._by_id.get(key_id)
        return entry is not None and entry.key.publishes

    def credential(self, caller: Caller) -> bytes:
        """The hash that this caller is known by; it changes with the key or the secret."""
        if caller.key_id == 0:
            return self._admin[1] if self._admin else b""
        entry = self._by_id.get(caller.key_id or 0)
        return entry.key.hash if entry else b""

    def _of_session(self, token: str) -> Caller:
        session = self._sessions.find(token)
        if session is None:
            return ANYONE
        entry = self._by_id.get(session.key_id)
        caller = ADMINISTRATOR if session.key_id == 0 else entry.caller if entry else ANYONE
        if not caller.known or not session.rests_on(token, self.credential(caller)):
            return ANYONE
        if entry is not None:
            try:
                self._usable(entry)
            except Unauthenticated:
                return ANYONE
        return msgspec.structs.replace(caller, user_name=session.name or caller.user_name)

    def take_used(self) -> dict[int, datetime]:
        """When keys were used for the first time since this was last asked."""
        used, self._used = self._used, {}
        return used

    def _usable(self, entry: _Entry) -> Caller:
        key = entry.key
        if key.cancelled is not None:
            raise Unauthenticated("This API key was disabled; ask your administrator for another.")
        if key.expires is not None and key.expires <= self._clock.now():
            raise Unauthenticated("This API key has expired; ask your administrator for another.")
        if key.id not in self._used:
            self._used[key.id] = self._clock.now()
        return entry.caller

    def _is_admin(self, shown: str) -> bool:
        if self._admin is None:
            return False
        salt, expected = self._admin
        return hmac.compare_digest(salted(salt, shown), expected)


def permit(caller: Caller, operation: Operation, *, public_catalogue: bool = True) -> None:
    """Returns when the caller may run this. Raises Unauthenticated or Forbidden."""
    if operation.access is Access.OPEN or caller.is_admin:
        return
    if operation.access is Access.CATALOGUE and public_catalogue:
        return
    if not caller.known:
        raise Unauthenticated()
    if operation.access is Access.ADMIN:
        raise Unauthenticated(
            "Not Authenticated. This needs the administrator's secret or a key with scope Admin."
        )
    if caller.restrict_to and operation.name not in caller.restrict_to:
        raise Forbidden(
            f"This API key may not call {operation.name}; "
            f"it may call {', '.join(sorted(caller.restrict_to))}."
        )


def fingerprint(text: str) -> str:
    """Names a secret in a log without giving it away."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
