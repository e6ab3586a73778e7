"""The ASGI application: finds what a request means, and answers in the path's own protocol."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers

from aiserver.contract.errors import ApiError, MethodNotAllowed, NotFound, Unavailable
from aiserver.contract.operation import Operation
from aiserver.contract.registry import Registry
from aiserver.dispatch import Dispatch
from aiserver.doors.body import BodyReader, ClientGone, Receive
from aiserver.doors.problems import Dialect, body_of, both, open_ai, service_stack
from aiserver.doors.replies import Pairs, Send, send_answer, send_json, unless_gone
from aiserver.doors.server import Lifecycle
from aiserver.keys.access import Credentials
from aiserver.kit import log
from aiserver.kit.ids import request_id

Scope = MutableMapping[str, Any]
Page = Callable[[Scope, Send, Pairs], Awaitable[None]]

_API = "/api/"
_OPERATION_VERBS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
# Typed clients post to these paths as well as OpenAI's own.
_SHARED = frozenset({"/v1/chat/completions", "/chat/completions"})
_MOST_PAIRS = 1000
_log = log.get("doors")


class Found(msgspec.Struct, frozen=True):
    operation: Operation
    variables: dict[str, str]


class Gateway:
    """`pages` are answers without an operation: health, the start page."""

    def __init__(
        self,
        *,
        registry: Registry,
        dispatch: Dispatch,
        reader: BodyReader,
        lifecycle: Lifecycle,
        pages: Mapping[str, Page],
        redact: Callable[[str], str],
    ) -> None:
        self._registry = registry
        self._dispatch = dispatch
        self._reader = reader
        self._lifecycle = lifecycle
        self._pages = pages
        self._redact = redact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        identity = request_id(headers.get("x-request-id"))
        common: Pairs = [(b"X-Request-Id", identity.encode())]
        path = scope["path"]
        dialect = dialect_of(path)
        try:
            page = self._pages.get(path)
            if page is not None:
                _refuse_writing(scope["method"])
                await page(scope, send, common)
            else:
                await self._call(scope, headers, identity, receive, send, common)
        except ClientGone:
            return
        except ApiError as error:
            await self._fail(send, error, dialect, common)
        except Exception:
            # The last line before the socket: whatever went wrong, the caller gets an answer.
            _log.exception("request_failed", path=path, request_id=identity)
            failure = ApiError(f"The server failed; its log has the details under {identity}.")
            await self._fail(send, failure, dialect, common)

    async def _call(
        self,
        scope: Scope,
        headers: Headers,
        identity: str,
        receive: Receive,
        send: Send,
        common: Pairs,
    ) -> None:
        found = self._find(scope["method"], scope["path"])
        operation = found.operation
        caller = self._dispatch.admit(operation, credentials_of(headers))
        if self._lifecycle.draining:
            raise Unavailable("The server is stopping; call again shortly.", retry_after=2)
        query = _query(scope["query_string"])
        reset = frozenset(
            name for key, value in query if key.lower() == "reset" for name in value.split(",")
        )
        async with self._reader.read(headers, _body_of(scope["method"], receive)) as body:
            running = self._dispatch.run(
                operation,
                caller,
                request_id=identity,
                members=body.members,
                pairs=[*found.variables.items(), *body.pairs, *query],
                reset=reset,
            )
            if operation.ends_with_caller:
                answer = await unless_gone(running, receive)
            else:
                answer = await running
        dialect = dialect_of(scope["path"])
        await send_answer(send, receive, answer, common, lambda error: dialect(error, self._redact))

    def _find(self, method: str, path: str) -> Found:
        """The operation that a request means. Raises NotFound or MethodNotAllowed."""
        verb = "GET" if method == "HEAD" else method
        match = self._registry.at(verb, path)
        if match is not None:
            return Found(match.operation, match.variables)
        if path.startswith(_API):
            operation = self._registry.named(path[len(_API) :])
            if operation is None:
                raise NotFound(f"There is no operation {path[len(_API) :][:100]!r}.")
            if method not in _OPERATION_VERBS and not (
                method == "HEAD" and operation.verbs == ("GET",)
            ):
                raise MethodNotAllowed(f"{operation.name} does not answer {method}.")
            return Found(operation, {})
        known = self._registry.verbs_at(path)
        if known:
            raise MethodNotAllowed(f"{path} answers {', '.join(sorted(known))}, not {method}.")
        raise NotFound(f"There is nothing at {path[:200]}.")

    async def _fail(self, send: Send, error: ApiError, dialect: Dialect, common: Pairs) -> None:
        headers = list(common)
        if error.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % max(1, round(error.retry_after))))
        if error.http_status == 401:
            headers.append((b"WWW-Authenticate", b"Bearer"))
        if error.http_status == 413 or self._lifecycle.draining:
            # The rest of the body is not read, so this connection cannot be used again.
            headers.append((b"Connection", b"close"))
        problem = dialect(error, self._redact)
        await send_json(send, error.http_status, headers, body_of(problem))


def dialect_of(path: str) -> Dialect:
    if path in _SHARED:
        return both
    return open_ai if path.startswith("/v1/") else service_stack


def credentials_of(headers: Headers) -> Credentials:
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return Credentials(
        bearer=token.strip() or None if scheme.lower() == "bearer" else None,
        api_key=headers.get("x-api-key") or None,
        auth_secret=headers.get("authsecret") or None,
    )


def _query(raw: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            raw.decode("ascii", errors="replace"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_MOST_PAIRS,
        )
    except ValueError:
        return []


def _refuse_writing(method: str) -> None:
    if method not in ("GET", "HEAD"):
        raise MethodNotAllowed(f"This page answers GET, not {method}.")


def _body_of(method: str, receive: Receive) -> Receive:
    """The body's messages; for verbs that carry their values in the query, none."""

    async def nothing() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    return nothing if method in _WITHOUT_BODY else receive
