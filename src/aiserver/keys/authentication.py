"""Answers Authenticate: sign-in, whose session this is, sign-out."""

import msgspec

from aiserver.contract.caller import Caller
from aiserver.contract.errors import Unauthenticated
from aiserver.contract.operation import Call, Cookie, Handler, WithCookies
from aiserver.keys.access import Credentials, KeyRing
from aiserver.keys.operations import Authenticate, AuthenticateResponse
from aiserver.keys.sessions import REMEMBERED, SHORT, Sessions
from aiserver.keys.signin import SignInLimit

_CLEARED = tuple(Cookie(name, "", 0) for name in ("ss-id", "ss-pid", "ss-opt"))


class SignIn:
    """`limit` is asked before a password is looked at."""

    def __init__(self, ring: KeyRing, sessions: Sessions, limit: SignInLimit) -> None:
        self._ring = ring
        self._sessions = sessions
        self._limit = limit

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {Authenticate: self.authenticate}

    async def authenticate(
        self, request: Authenticate, call: Call
    ) -> AuthenticateResponse | WithCookies:
        if (request.provider or "").lower() == "logout":
            return await self._sign_out(call)
        if request.password is None:
            if not call.caller.known:
                raise Unauthenticated()
            return _told(call.caller)
        return await self._sign_in(request, call)

    async def _sign_in(self, request: Authenticate, call: Call) -> WithCookies:
        self._limit.check(call.address)
        try:
            caller = self._ring.identify(Credentials(bearer=request.password))
        except Unauthenticated:
            self._limit.failed(call.address)
            raise
        if not caller.known:
            self._limit.failed(call.address)
            raise Unauthenticated("Invalid API Key")
        self._limit.succeeded(call.address)
        remember = bool(request.remember_me)
        name = request.user_name or caller.user_name or caller.name
        token = await self._sessions.open(
            caller.key_id or 0, self._ring.credential(caller), name, remember=remember
        )
        lasts = int((REMEMBERED if remember else SHORT).total_seconds())
        cookies = (
            Cookie("ss-id", token, lasts),
            Cookie("ss-pid", token, lasts),
            Cookie("ss-opt", "perm" if remember else "temp", lasts),
        )
        named = msgspec.structs.replace(caller, user_name=name)
        return WithCookies(_told(named, session=token), cookies)

    async def _sign_out(self, call: Call) -> WithCookies:
        if call.session is not None:
            await self._sessions.close(call.session)
        return WithCookies(AuthenticateResponse(user_id=""), _CLEARED)


def _told(caller: Caller, *, session: str | None = None) -> AuthenticateResponse:
    return AuthenticateResponse(
        user_id=str(caller.key_id),
        session_id=session,
        user_name=caller.user_name or caller.name,
        display_name=caller.user_name or caller.name,
        roles=sorted(caller.scopes),
        permissions=[],
        auth_provider="authsecret" if caller.key_id == 0 else "apikey",
    )
