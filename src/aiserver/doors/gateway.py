"""The ASGI application: finds what a request means, and answers in the path's own protocol."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any

import msgspec
from starlette.datastructures import Headers

from aiserver.contract.caller import ANYONE, Caller
from aiserver.contract.errors import (
    ApiError,
    Forbidden,
    MalformedBody,
    MethodNotAllowed,
    Unauthenticated,
)
from aiserver.contract.operation import Access, Answer, Content, Operation
from aiserver.contract.registry import Registry
from aiserver.contract.trace import Trace
from aiserver.contract.uploads import WHOLE_BODY
from aiserver.dispatch import Dispatch
from aiserver.doors.batch import answer_batch
from aiserver.doors.body import Body, BodyReader, ClientGone, Receive
from aiserver.doors.cookies import guard, guard_sign_in, session_of
from aiserver.doors.cors import Cors
from aiserver.doors.cycle import CUT_OFF
from aiserver.doors.encoding import to_csv, to_php_json
from aiserver.doors.files import send_file
from aiserver.doors.headers import RequestHeaders
from aiserver.doors.lane_files import FileLane
from aiserver.doors.lifecycle import Lifecycle, Stopping
from aiserver.doors.problems import Dialect, body_of, both, ollama, open_ai, service_stack
from aiserver.doors.query import query_pairs
from aiserver.doors.replies import Pairs, Reply, Send, send_bytes, unless_gone
from aiserver.doors.routes import Found, find
from aiserver.files.download import Download
from aiserver.keys.access import Credentials
from aiserver.kit import log
from aiserver.kit.ids import request_id
from aiserver.work.deferred import Deferred, Manner, manner_of

Scope = MutableMapping[str, Any]
Page = Callable[[Scope, Send, Pairs], Awaitable[None]]

_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_ABOUT_BODIES = ("content-type", "content-length", "content-encoding")
# Typed clients post to these paths as well as OpenAI's own.
_SHARED = frozenset({"/v1/chat/completions", "/chat/completions"})
_GENERATE = "/api/generate"
_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
# gzip;q=0 is how a client says that it does not take it.
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:\d{1,5})?")
# 2026-01-01, in the form that the header asks for.
_SECRET_IN_QUERY_SINCE = b"@1767225600"
_log = log.get("doors")


class Asked(msgspec.Struct, frozen=True):
    """What a request asks for, before its body is read, and where it came from."""

    found: Found
    query: list[tuple[str, str]]
    request_id: str
    address: str
    session: str | None
    method: str
    path: str
    trace: Trace | None = None
    manner: Manner | None = None
    base: str = ""
    accept: str = ""


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
        cors: Cors,
        secret_in_query: bool,
        redact: Callable[[str], str],
        deferred: Deferred,
        lane: FileLane | None = None,
    ) -> None:
        self._registry = registry
        self._lane = lane
        self._deferred = deferred
        self._dispatch = dispatch
        self._reader = reader
        self._lifecycle = lifecycle
        self._pages = pages
        self._cors = cors
        self._secret_in_query = secret_in_query
        self._redact = redact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = RequestHeaders(scope)
        begun: Trace | None = scope.get("trace")
        identity = begun.request_id if begun else request_id(headers.get("x-request-id"))
        reply = Reply(send, receive, [(b"X-Request-Id", identity.encode())])
        reply.headers.extend(self._cors.headers(headers))
        reply.gzip = _GZIP.search(headers.get("accept-encoding", "")) is not None
        path = scope["path"]
        try:
            page = self._pages.get(path)
            if scope["method"] == "OPTIONS":
                await send_bytes(send, 204, [*reply.headers, *self._cors.preflight(headers)], b"")
            elif page is not None:
                _refuse_writing(scope["method"])
                await page(scope, send, reply.headers)
            else:
                file = await self._call(scope, headers, identity, receive, reply)
                if file is not None:
                    await send_file(
                        file,
                        reply.headers,
                        method=scope["method"],
                        asked=headers,
                        send=send,
                        receive=receive,
                    )
        except ClientGone:
            if begun is not None:
                self._dispatch.leave(begun)
        except ApiError as error:
            if begun is not None:
                self._dispatch.lose(begun, error)
            await self._fail(reply, error, dialect_of(path))
        except asyncio.CancelledError:
            if not self._lifecycle.over:
                raise
            # What has begun cannot become an error any more, and nothing follows its cut.
            await send(CUT_OFF)
            await self._fail(reply, Stopping(), dialect_of(path))
        except Exception:
            # The last line before the socket: whatever went wrong, the caller gets an answer.
            _log.exception("request_failed", path=path, request_id=identity)
            failure = ApiError(f"The server failed; its log has the details under {identity}.")
            await self._fail(reply, failure, dialect_of(path))

    async def _call(
        self, scope: Scope, headers: Headers, identity: str, receive: Receive, reply: Reply
    ) -> Download | None:
        """Answers; a file is left to be sent, now that the call is settled."""
        query = query_pairs(scope["query_string"])
        found = find(self._registry, scope["method"], scope["path"], query)
        credentials = credentials_of(headers)
        unnamed = credentials.any is None and found.operation.access is Access.ADMIN
        if unnamed:
            credentials = self._secret_in(query, reply) or credentials
        # A form may hold the secret itself, so it is read before its sender is known.
        late = unnamed and credentials.any is None and _is_form(headers)
        caller = ANYONE if late else self._admit(found, credentials, scope["method"], headers)
        trace: Trace | None = scope.get("trace")
        if self._lifecycle.draining and (trace is None or self._lifecycle.over):
            raise Stopping
        _shape(reply, found, headers)
        client = scope.get("client") or ("", 0)
        asked = Asked(
            found=found,
            query=query,
            request_id=identity,
            address=client[0],
            session=credentials.session,
            method=scope["method"],
            path=scope["path"],
            trace=trace,
            manner=_manner(found.operation, headers),
            base=_base(scope, headers),
            accept=headers.get("accept", ""),
        )
        arriving = _body_of(scope["method"], receive)
        async with self._reading(found.operation, headers, arriving) as body:
            if late:
                credentials = self._secret_in(body.pairs, reply) or credentials
                caller = self._admit(found, credentials, scope["method"], headers)
            if found.batch:
                run = partial(self._run_item, asked, caller, reply)
                await answer_batch(found.operation, body.batch, asked.manner, run, reply)
                return None
            if body.batch is not None:
                raise MalformedBody("The body must be a JSON object: {...}.")
            running = self._run(asked, caller, body, reply)
            ends = found.operation.ends_with_caller
            answer = await (unless_gone(running, receive) if ends else running)
        if isinstance(answer, Download):
            if self._lane is not None:
                own = self._cors.headers(headers)
                self._lane.learn(scope, headers, found.operation, credentials, answer, own)
            return answer
        dialect = dialect_of(scope["path"])
        await reply.answer(answer, lambda error: dialect(error, self._redact))
        return None

    def _reading(
        self, operation: Operation, headers: Headers, arriving: Receive
    ) -> AbstractAsyncContextManager[Body]:
        if arriving is _nothing and not any(map(headers.get, _ABOUT_BODIES)):
            return nullcontext(Body())
        if operation.files == WHOLE_BODY:
            return self._reader.read_file(headers, arriving)
        return self._reader.read(headers, arriving, files=bool(operation.files))

    def _admit(
        self, found: Found, credentials: Credentials, method: str, headers: Headers
    ) -> Caller:
        caller = self._dispatch.admit(found.operation, credentials)
        if credentials.any is None:
            if caller.known:
                caller = _guarded(caller, method, found.operation, headers)
            guard_sign_in(found.operation, headers, named=self._cors.names(headers))
        return caller

    def _secret_in(self, query: list[tuple[str, str]], reply: Reply) -> Credentials | None:
        """The secret in a query or form: understood where the operator allows it."""
        secret = next((value for name, value in query if name.lower() == "authsecret"), None)
        if secret is None:
            return None
        if not self._secret_in_query:
            raise Unauthenticated("Send the secret as a header: Authorization: Bearer ...")
        reply.headers.append((b"Deprecation", _SECRET_IN_QUERY_SINCE))
        return Credentials(auth_secret=secret)

    async def _run(self, asked: Asked, caller: Caller, body: Body, reply: Reply) -> Answer:
        reset = frozenset(
            name
            for key, value in asked.query
            if key.lower() == "reset"
            for name in value.split(",")
        )
        operation = asked.found.operation
        trace = asked.trace or self._dispatch.begin(
            operation,
            caller,
            request_id=asked.request_id,
            address=asked.address,
            method=asked.method,
            path=asked.path,
        )
        try:
            return await self._dispatch.run(
                operation,
                caller,
                trace,
                members=body.members,
                pairs=[*asked.found.variables.items(), *body.pairs, *asked.query],
                reset=reset,
                session=asked.session,
                files=body.files,
                handler=asked.manner and self._deferred.handler_of(operation, asked.manner),
                base=asked.base,
                accept=asked.accept,
            )
        finally:
            reply.timed(trace)

    async def _run_item(
        self,
        asked: Asked,
        caller: Caller,
        reply: Reply,
        members: dict[str, Any],
        manner: Manner | None,
    ) -> Answer:
        asked = msgspec.structs.replace(asked, manner=manner)
        return await self._run(asked, caller, Body(members=members), reply)

    async def _fail(self, reply: Reply, error: ApiError, dialect: Dialect) -> None:
        if error.retry_after is not None:
            reply.headers.append((b"Retry-After", b"%d" % max(1, round(error.retry_after))))
        reply.headers.extend(error.headers)
        if error.http_status == 401:
            reply.headers.append((b"WWW-Authenticate", b"Bearer"))
        if error.http_status == 413 or self._lifecycle.draining:
            # The rest of the body is not read, so this connection cannot be used again.
            reply.headers.append((b"Connection", b"close"))
        await reply.json(error.http_status, body_of(dialect(error, self._redact)))


def dialect_of(path: str) -> Dialect:
    if path in _SHARED:
        return both
    if path == _GENERATE:
        return ollama
    return open_ai if path.startswith("/v1/") else service_stack


def credentials_of(headers: Headers) -> Credentials:
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return Credentials(
        bearer=token.strip() or None if scheme.lower() == "bearer" else None,
        api_key=headers.get("x-api-key") or None,
        auth_secret=headers.get("authsecret") or None,
        session=session_of(headers),
    )


def _manner(operation: Operation, headers: Headers) -> Manner | None:
    """None for what can be no job."""
    if operation.queued is None and operation.twin_of is None:
        return None
    return manner_of(
        ", ".join(headers.getlist("prefer")) or None,
        headers.get("idempotency-key"),
        deadline=headers.get("job-deadline"),
        run_after=headers.get("job-run-after"),
        priority=headers.get("job-priority"),
    )


def _base(scope: Scope, headers: Headers) -> str:
    """What this caller reached the server by; empty where that cannot be an address."""
    host = headers.get("host", "")
    return f"{scope.get('scheme', 'http')}://{host}" if _HOST.fullmatch(host) else ""


def _guarded(caller: Caller, method: str, operation: Operation, headers: Headers) -> Caller:
    """Raises Forbidden where a session's cookie must not count; a file is then asked for by anyone.

    Pages of other sites may show what everybody may see.
    """
    try:
        guard(method, operation, headers)
    except Forbidden:
        if operation.returns is not Content:
            raise
        return ANYONE
    return caller


def _is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").split(";")[0].strip().lower() in _FORMS


def _shape(reply: Reply, found: Found, headers: Headers) -> None:
    if found.format == "csv":
        reply.csv = True
        reply.encode = to_csv
    elif headers.get("user-agent", "").startswith("servicestack/php"):
        reply.encode = to_php_json


def _refuse_writing(method: str) -> None:
    if method not in ("GET", "HEAD"):
        raise MethodNotAllowed(f"This page answers GET, not {method}.")


def _body_of(method: str, receive: Receive) -> Receive:
    """The body's messages; for verbs that carry their values in the query, none."""
    return _nothing if method in _WITHOUT_BODY else receive


async def _nothing() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
