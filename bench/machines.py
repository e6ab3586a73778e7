"""Starts the servers of a benchmark, each on its own core, and reads what they spent."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GATEWAY_CORE, LOAD_CORE = "0", "1"
UPSTREAM_PORT, PEER_PORT, GATEWAY_PORT = 18091, 18092, 18093
SECRET = "benchmark-secret-0123456789"
_TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "bench-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x" * 430},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200},
    }
)

_UPSTREAM = """
worker_processes 1; daemon off; error_log /dev/null; pid upstream.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    default_type application/json;
    location / {{ return 200 '{answer}'; }}
  }}
}}
"""

_PEER = """
worker_processes 1; daemon off; error_log /dev/null; pid peer.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000;
  upstream models {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://models; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


class Server:
    """One server of the benchmark, pinned to a core."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], url: str) -> None:
        self.name = name
        self.process = process
        self.url = url

    def spent(self) -> float:
        """Microseconds of CPU, user and system, of the process and its children."""
        return sum(_spent(pid) for pid in _family(self.process.pid))


def install() -> None:
    """The peer and the load generator, from the distribution."""
    missing = [p for p, c in (("nginx-light", "nginx"), ("wrk", "wrk")) if not shutil.which(c)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"The benchmark needs {' and '.join(missing)}; install them and run it again.")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", *missing], check=True)


@contextmanager
def servers(folder: Path) -> Generator[tuple[Server, Server]]:
    """(peer, gateway), both in front of the same upstream."""
    started: list[Server] = []
    try:
        config = _UPSTREAM.format(port=UPSTREAM_PORT, answer=_ANSWER)
        started.append(_nginx(folder, "upstream", config, UPSTREAM_PORT, LOAD_CORE))
        config = _PEER.format(port=PEER_PORT, upstream=UPSTREAM_PORT)
        started.append(_nginx(folder, "peer", config, PEER_PORT, GATEWAY_CORE))
        started.append(_gateway(folder))
        yield started[1], started[2]
    finally:
        for server in started:
            server.process.terminate()
            server.process.wait()


def _nginx(folder: Path, name: str, config: str, port: int, core: str) -> Server:
    (folder / f"{name}.conf").write_text(config)
    command = ["taskset", "-c", core, "nginx", "-p", str(folder), "-c", f"{name}.conf"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    server = Server(name, process, f"http://127.0.0.1:{port}")
    _wait_for(f"{server.url}/v1/chat/completions")
    return server


def _gateway(folder: Path) -> Server:
    command = ["taskset", "-c", GATEWAY_CORE, str(Path(sys.executable).with_name("ai-server"))]
    command += ["serve", "--port", str(GATEWAY_PORT), "--data", str(folder / "data")]
    environment = {**os.environ, "AUTH_SECRET": SECRET, "LOCAL_MODELS": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    server = Server("gateway", process, f"http://127.0.0.1:{GATEWAY_PORT}")
    _wait_for(f"{server.url}/health/ready")
    models = [{"model": "bench-model"}]
    provider = {"name": "bench", "aiTypeId": "Custom", "models": models}
    provider["apiBaseUrl"] = f"http://127.0.0.1:{UPSTREAM_PORT}"
    _post(f"{server.url}/api/CreateAiProvider", provider)
    return server


def new_key(server: Server) -> str:
    return _post(f"{server.url}/api/AdminCreateApiKey", {"name": "bench"})["result"]


def _post(url: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                sys.exit(f"{url} does not answer.")
            time.sleep(0.05)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK
