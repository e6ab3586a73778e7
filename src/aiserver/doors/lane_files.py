"""The hot lane for files: the answer to a request that came before, word for word, from memory."""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from starlette.datastructures import Headers

from aiserver.contract.operation import Operation
from aiserver.dispatch import Dispatch
from aiserver.doors.files import always_whole, whole_head
from aiserver.doors.lane_call import Client
from aiserver.doors.replies import Pairs
from aiserver.doors.timing import server_timing
from aiserver.files.download import Again, Download
from aiserver.keys.access import Credentials
from aiserver.kit.db import StorageError
from aiserver.kit.writes import Writes
from aiserver.settlement import Settlement

_MOST = 1024
_LONGEST = 4096


class _Answer(NamedTuple):
    """How a request was answered; `head` are the lines that do not change from call to call."""

    operation: Operation
    credentials: Credentials
    path: str
    head: bytes
    again: Again


class FileLane:
    """Knows at most 1024 requests of 4 kB, and none of the bytes that they were answered with.

    Who may read what is asked anew for each.
    """

    def __init__(self, dispatch: Dispatch, settlement: Settlement, writes: Writes) -> None:
        self._dispatch = dispatch
        self._settlement = settlement
        self._writes = writes
        self._known: dict[bytes, _Answer] = {}

    def learn(
        self,
        scope: MutableMapping[str, Any],
        headers: Headers,
        operation: Operation,
        credentials: Credentials,
        file: Download,
        more: Pairs,
    ) -> None:
        """How a request is answered; `more` are headers that each answer to it bears.

        Only what came alone on a connection that stays, and where all that counts is in its bytes:
        a session's cookie means something else in another moment.
        """
        request = scope.get("request")
        if request is None or file.again is None or len(request) > _LONGEST:
            return
        if credentials.session or "x-request-id" in headers or not always_whole(headers):
            return
        self._known.pop(request, None)
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        head = b"".join(b"%b: %b\r\n" % pair for pair in (*more, *whole_head(file)))
        self._known[request] = _Answer(operation, credentials, scope["path"], head, file.again)

    def serve(self, client: Client, request: bytes, date: bytes) -> bool:
        """Whether it is answered; if not, nothing has happened. `date` is lines of the head."""
        answer = self._known.get(request)
        if answer is None:
            return False
        caller = self._dispatch.admitted(answer.operation, answer.credentials)
        try:
            content = None if caller is None else answer.again(caller)
        except StorageError:
            content = None
        if caller is None or content is None:
            del self._known[request]
            return False
        trace = self._dispatch.begin(
            answer.operation,
            caller,
            request_id=None,
            address=client.client[0] if client.client else "",
            method="GET",
            path=answer.path,
        )
        trace.status = 200
        self._settlement.end(trace)
        told = (trace.request_id.encode(), server_timing(trace))
        head = b"HTTP/1.1 200 OK\r\n%bX-Request-Id: %b\r\nServer-Timing: %b\r\n" % (date, *told)
        # What was answered before goes out first.
        self._writes.flush()
        client.transport.write(b"".join((head, answer.head, b"\r\n", content)))
        return True
