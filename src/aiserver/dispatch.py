"""The one path of every call: admit, validate, run."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aiserver.contract.autoquery import Query, as_pairs
from aiserver.contract.binding import Binder
from aiserver.contract.caller import Caller
from aiserver.contract.errors import ApiError, StorageUnavailable
from aiserver.contract.operation import Answer, Call, Operation
from aiserver.contract.registry import Registry
from aiserver.contract.uploads import Upload, assign
from aiserver.keys.access import Credentials, KeyRing, permit
from aiserver.kit import log
from aiserver.kit.db import StorageError

_log = log.get("dispatch")


class Dispatch:
    """Knows rules, no protocol: doors bring calls here and print what comes back."""

    def __init__(self, registry: Registry, ring: KeyRing, *, public_catalogue: bool = True) -> None:
        self._registry = registry
        self._ring = ring
        self._public_catalogue = public_catalogue
        self._binders: dict[str, Binder[msgspec.Struct]] = {
            operation.name: Binder(operation.request) for operation in registry
        }

    def admit(self, operation: Operation, credentials: Credentials) -> Caller:
        """Who calls, once they may. Raises Unauthenticated or Forbidden."""
        caller = self._ring.identify(credentials)
        permit(caller, operation, public_catalogue=self._public_catalogue)
        return caller

    async def run(
        self,
        operation: Operation,
        caller: Caller,
        *,
        request_id: str,
        members: dict[str, Any],
        pairs: Iterable[tuple[str, str]] = (),
        reset: frozenset[str] = frozenset(),
        address: str = "",
        session: str | None = None,
        files: Mapping[str, Upload] | None = None,
    ) -> Answer:
        """The handler's answer. Raises only ApiError."""
        given = tuple(pairs)
        request = self._binders[operation.name].bind(members, given)
        call = Call(
            operation=operation,
            caller=caller,
            request_id=request_id,
            members=members if operation.keeps_members else {},
            reset=reset,
            pairs=(*given, *as_pairs(members)) if issubclass(operation.request, Query) else (),
            address=address,
            session=session,
            files=assign(operation.files, files or {}) if operation.files else {},
        )
        try:
            return await self._registry.handler(operation)(request, call)
        except ApiError:
            raise
        except StorageError as error:
            _log.error("storage_failed", operation=operation.name, problem=str(error))
            raise StorageUnavailable(retry_after=2) from error
        except Exception as error:
            # Where a call ends: the caller gets an id to quote, the log has the rest.
            _log.exception("call_failed", operation=operation.name, request_id=request_id)
            raise ApiError(
                f"The server failed; its log has the details under {request_id}."
            ) from error
