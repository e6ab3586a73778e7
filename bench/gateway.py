"""Starts AI Server as a benchmark wants it: a restricted key, a provider with slots, history on."""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machines import GATEWAY_CORE, Server, free_port, start, wait_for
from bench.peers import echo_upstream

NAME = "ai-server"
SECRET = "benchmark-secret-0123456789"
# More than the most streams that a benchmark holds open.
_SLOTS = 2048


def gateway(folder: Path, upstream: int, *, lane: str = "auto") -> Server:
    """Named after the lane where that is off."""
    name = NAME if lane == "auto" else f"{NAME} (lane {lane})"
    port, log = free_port(), folder / f"{NAME}-{lane}.log"
    command: list[str | Path] = [Path(sys.executable).with_name("ai-server"), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--data", tempfile.mkdtemp(dir=folder)]
    environment = {"AUTH_SECRET": SECRET, "LOCAL_MODELS": "false", "HOT_LANE": lane}
    process = start(command, core=GATEWAY_CORE, log=log, environment=environment)
    server = wait_for(Server(name, process, port), "/health/ready", log)
    try:
        return replace(server, key=_configured(server, upstream))
    except BaseException:
        server.stop()
        raise


def _configured(server: Server, upstream: int) -> str:
    """The key that may chat, once there is a provider to chat with."""
    provider = {"name": "bench", "aiTypeId": "Custom", "models": [{"model": "bench-model"}]}
    provider["apiBaseUrl"] = f"http://127.0.0.1:{upstream}"
    admin(server, "CreateAiProvider", {**provider, "concurrency": _SLOTS})
    limits = {"restrictTo": ["OpenAiChatCompletion"], "models": ["bench-model"]}
    return admin(server, "AdminCreateApiKey", {"name": "bench", **limits})["result"]


@contextmanager
def alone(folder: Path, *, lane: str) -> Generator[Server]:
    """The gateway in front of an upstream that answers with each request's token."""
    with ExitStack() as stack:
        upstream = echo_upstream(folder)
        stack.callback(upstream.stop)
        server = gateway(folder, upstream.port, lane=lane)
        stack.callback(server.stop)
        yield server


def admin(server: Server, operation: str, body: Any) -> Any:
    """The answer to an administrator's call."""
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    url = f"{server.url}/api/{operation}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
