"""What orchestrators and people ask to learn whether the server lives and takes calls."""

from collections.abc import Callable
from typing import Any

import msgspec

from aiserver.doors.gateway import Page, Scope
from aiserver.doors.lifecycle import Lifecycle
from aiserver.doors.replies import Pairs, Send, send_json

Problems = Callable[[], dict[str, str]]


class Health:
    """`problems` names each part that keeps calls from being served, and why; `warnings` others."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        problems: Problems,
        warnings: Problems,
        local: Callable[[], dict[str, Any]],
    ) -> None:
        self._lifecycle = lifecycle
        self._problems = problems
        self._warnings = warnings
        self._local = local

    def pages(self) -> dict[str, Page]:
        return {
            "/up": self.live,
            "/health/live": self.live,
            "/health/ready": self.ready,
        }

    async def live(self, scope: Scope, send: Send, headers: Pairs) -> None:
        await send_json(send, 200, [*headers, _FRESH], b'{"status":"ok"}')

    async def ready(self, scope: Scope, send: Send, headers: Pairs) -> None:
        problems = self._problems()
        if self._lifecycle.draining:
            problems["server"] = "stopping"
        body: dict[str, Any] = {"status": "unready" if problems else "ready"}
        if problems:
            body["problems"] = problems
        if warnings := self._warnings():
            body["warnings"] = warnings
        body["local"] = self._local()
        status = 503 if problems else 200
        await send_json(send, status, [*headers, _FRESH], msgspec.json.encode(body))


_FRESH = (b"Cache-Control", b"no-store")
