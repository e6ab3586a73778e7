"""The servers beside the gateway: nginx, vllm-router, LiteLLM, and the upstreams of all of them."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.machines import GATEWAY_CORE, LOAD_CORE, Server, free_port, start, wait_for

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-server-bench"
# Without OpenTelemetry and compiled bytecode LiteLLM compiles a failing import again on each call.
_PACKAGES = {
    "vllm-router": ["vllm-router"],
    "litellm": ["litellm[proxy]", "opentelemetry-sdk", "opentelemetry-exporter-otlp"],
    "pgqueuer": ["pgqueuer", "asyncpg", "uvloop"],
    "procrastinate": ["procrastinate", "psycopg[binary,pool]", "uvloop"],
    "thumbor": ["thumbor"],
}
_MANY = "100000000"

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

_HTTP = """
worker_processes 1; worker_rlimit_nofile 16384; daemon off; error_log /dev/null; pid {name}.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests {many}; keepalive_timeout 600s; client_max_body_size 16m;
  client_body_buffer_size 2m;
  {rest}
}}
"""

_FIXED = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    default_type application/json;
    location / {{ return 200 '{answer}'; }}
  }}
"""

_PROXY = """
  upstream models {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests {many}; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://models; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering {buffering};
    }}
  }}
"""


def fixed_upstream(folder: Path) -> Server:
    """Answers all with the same 700 bytes."""
    return _nginx(folder, "fixed", LOAD_CORE, _FIXED, answer=_ANSWER)


def echo_upstream(folder: Path) -> Server:
    """Answers with the token of the request, whole or streamed."""
    port, log = free_port(), folder / "echo.log"
    process = start([folder / "upstream", str(port)], core=LOAD_CORE, log=log)
    return wait_for(Server("direct", process, port), "/", log)


def nginx(folder: Path, upstream: int) -> Server:
    """A plain proxy, which keeps whole answers in its buffers as it does unless told otherwise."""
    return _nginx(folder, "nginx", GATEWAY_CORE, _PROXY, upstream=upstream, buffering="on")


def nginx_unbuffered(folder: Path, upstream: int) -> Server:
    """A plain proxy that passes each event of a stream on at once."""
    return _nginx(folder, "nginx", GATEWAY_CORE, _PROXY, upstream=upstream, buffering="off")


def vllm_router(folder: Path, upstream: int) -> Server:
    port, log = free_port(), folder / "vllm-router.log"
    command: list[str | Path] = [installed("vllm-router") / "vllm-router", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"]
    command += ["--log-level", "warning", "--prometheus-port", str(free_port())]
    command += ["--max-concurrent-requests", "8192"]
    process = start(command, core=GATEWAY_CORE, log=log)
    return wait_for(Server("vllm-router", process, port), "/health", log, seconds=60)


def litellm(folder: Path, upstream: int) -> Server:
    """One worker, no database, a model that has a price."""
    port, log, key = free_port(), folder / "litellm.log", f"sk-{secrets.token_hex(16)}"
    settings = {
        "model_list": [
            {
                "model_name": "bench-model",
                "litellm_params": {
                    "model": "openai/bench-model",
                    "api_base": f"http://127.0.0.1:{upstream}/v1",
                    "api_key": "none",
                    "input_cost_per_token": 1e-6,
                    "output_cost_per_token": 2e-6,
                },
            }
        ],
        "general_settings": {"master_key": key},
    }
    # JSON is YAML.
    (folder / "litellm.yaml").write_text(json.dumps(settings))
    command: list[str | Path] = [installed("litellm") / "litellm", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--config", folder / "litellm.yaml"]
    environment = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": ""}
    process = start(command, core=GATEWAY_CORE, log=log, environment=environment)
    server = Server("litellm", process, port, key, slow=True)
    return wait_for(server, "/health/liveliness", log, seconds=120)


PEERS: dict[str, Callable[[Path, int], Server]] = {
    "nginx": nginx,
    "vllm-router": vllm_router,
    "litellm": litellm,
}


def installed(name: str) -> Path:
    """The folder of a peer's programs, in an environment of its own that stays for next time."""
    home = CACHE / name
    if (home / "complete").exists():
        return home / "bin"
    print(f"Installing {name} into {home} ...", flush=True)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    python = home / "bin" / "python"
    steps: list[list[str | Path]] = [
        [sys.executable, "-m", "venv", home],
        [python, "-m", "pip", "install", "--quiet", *_PACKAGES[name]],
        [python, "-m", "compileall", "-q", home / "lib"],
    ]
    for step in steps:
        # Compiling fails on the templates that some packages carry; that costs nothing.
        subprocess.run(
            step, check=step is not steps[-1], env=environment, stdout=subprocess.DEVNULL
        )
    (home / "complete").touch()
    return home / "bin"


def _nginx(folder: Path, name: str, core: str, rest: str, **values: object) -> Server:
    port, log = free_port(), folder / f"{name}.log"
    config = _HTTP.format(name=name, many=_MANY, rest=rest.format(port=port, many=_MANY, **values))
    (folder / f"{name}.conf").write_text(config)
    command = ["nginx", "-p", str(folder), "-c", f"{name}.conf"]
    process = start([*command], core=core, log=log)
    return wait_for(Server(name, process, port), "/v1/chat/completions", log)
