"""The one path of every call: admit, validate, run, settle."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aiserver.contract.autoquery import Query, as_pairs
from aiserver.contract.binding import Binder, binder_of
from aiserver.contract.caller import Caller
from aiserver.contract.errors import ApiError, Forbidden, StorageUnavailable, Unauthenticated
from aiserver.contract.operation import Answer, Call, EventStream, Handler, Operation
from aiserver.contract.registry import Registry
from aiserver.contract.trace import Trace
from aiserver.contract.uploads import Upload, assign
from aiserver.keys.access import Credentials, KeyRing, permit
from aiserver.kit import log
from aiserver.kit.db import StorageError
from aiserver.kit.ids import CallIds
from aiserver.settlement import Settlement

_log = log.get("dispatch")


class Dispatch:
    """Knows rules, no protocol: doors bring calls here and print what comes back."""

    def __init__(
        self,
        registry: Registry,
        ring: KeyRing,
        settlement: Settlement,
        ids: CallIds | None = None,
        *,
        public_catalogue: bool = True,
    ) -> None:
        self._registry = registry
        self._ring = ring
        self._settlement = settlement
        self._ids = ids or CallIds()
        self._public_catalogue = public_catalogue
        self._binders: dict[str, Binder[msgspec.Struct]] = {
            operation.name: binder_of(operation.request) for operation in registry
        }

    def admit(self, operation: Operation, credentials: Credentials) -> Caller:
        """Who calls, once they may. Raises Unauthenticated or Forbidden."""
        try:
            caller = self._ring.identify(credentials)
            permit(caller, operation, public_catalogue=self._public_catalogue)
        except Unauthenticated:
            self._settlement.refused()
            raise
        return caller

    def admitted(self, operation: Operation, credentials: Credentials) -> Caller | None:
        """As `admit`, for who asks again if it is None: a refusal is not counted."""
        try:
            caller = self._ring.identify(credentials)
            permit(caller, operation, public_catalogue=self._public_catalogue)
        except (Unauthenticated, Forbidden):
            return None
        return caller

    def begin(
        self,
        operation: Operation,
        caller: Caller,
        *,
        request_id: str | None,
        address: str = "",
        method: str = "",
        path: str = "",
    ) -> Trace:
        """The trace of a call that was admitted; whoever begins one has it settled.

        Without a `request_id` the call's own number is one.
        """
        now = time.time()
        id = self._ids.next(int(now * 1000))
        return Trace(
            id=id,
            at=now,
            started=time.monotonic(),
            operation=operation.name,
            request_id=request_id or f"{id:x}",
            key_id=caller.key_id,
            address=address,
            method=method,
            path=path,
        )

    def lose(self, trace: Trace, error: ApiError) -> None:
        """Settles a call that was begun and is refused before it could run."""
        if trace.left is not None:
            trace.left.drop()
        if not trace.status:
            self._settlement.failed(trace, error)

    def leave(self, trace: Trace) -> None:
        """Ends a call whose caller went away before it could run."""
        if trace.left is not None:
            trace.left.drop()
        if not trace.status:
            self._settlement.end(trace)

    async def run(
        self,
        operation: Operation,
        caller: Caller,
        trace: Trace,
        *,
        members: dict[str, Any],
        pairs: Iterable[tuple[str, str]] = (),
        reset: frozenset[str] = frozenset(),
        session: str | None = None,
        files: Mapping[str, Upload] | None = None,
        handler: Handler | None = None,
        base: str = "",
        accept: str = "",
    ) -> Answer:
        """The handler's answer, its call settled once it is over. Raises only ApiError.

        `handler` answers instead of the operation's own.
        """
        try:
            given = tuple(pairs)
            request = self._binders[operation.name].bind(members, given)
            call = Call(
                operation=operation,
                caller=caller,
                request_id=trace.request_id,
                trace=trace,
                members=members if operation.keeps_members or handler is not None else {},
                reset=reset,
                pairs=(*given, *as_pairs(members)) if issubclass(operation.request, Query) else (),
                address=trace.address,
                session=session,
                files=assign(operation.files, files or {}) if operation.files else {},
                base=base,
                accept=accept,
            )
            answer = await _answer(handler or self._registry.handler(operation), request, call)
        except ApiError as error:
            self._settlement.failed(trace, error)
            raise
        except BaseException:
            self._settlement.end(trace)
            raise
        if isinstance(answer, EventStream):
            return self._settled_at_close(answer, trace)
        trace.status = trace.status or 200
        self._settlement.end(trace)
        return answer

    def _settled_at_close(self, stream: EventStream, trace: Trace) -> EventStream:
        def close() -> None:
            try:
                stream.close()
            finally:
                self._settlement.end(trace)

        return msgspec.structs.replace(stream, close=close)


async def _answer(handler: Handler, request: msgspec.Struct, call: Call) -> Answer:
    try:
        return await handler(request, call)
    except ApiError:
        raise
    except StorageError as error:
        _log.error("storage_failed", operation=call.operation.name, problem=str(error))
        raise StorageUnavailable(retry_after=2) from error
    except Exception as error:
        # Where a call ends: the caller gets an id to quote, the log has the rest.
        _log.exception("call_failed", operation=call.operation.name, request_id=call.request_id)
        raise ApiError(
            f"The server failed; its log has the details under {call.request_id}."
        ) from error
