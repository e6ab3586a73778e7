"""The child process that holds llama.cpp: serves one model on loopback until its parent ends."""

import argparse
import importlib
import json
import os
import sys
import threading
from typing import Any

from aiserver.kit.process import die_with_parent


def main() -> None:
    arguments = _arguments()
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        api_key = stdin.readline().decode("ascii").strip()
    if not api_key:
        sys.exit("the API key must come as the first line of standard input")
    die_with_parent()
    # Native code may write to descriptor 1; only the ready line may reach the parent's pipe.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        server = _serve(arguments, api_key)
    except RuntimeError as error:
        # Not on standard error: the log thread of llama.cpp may still write after it.
        reason = f"llama.cpp cannot serve {arguments.model}: {error}"
        _tell(answer, {"ready": False, "reason": reason})
        sys.exit(1)
    _tell(answer, {"ready": True, "url": server.listening_address})
    threading.Event().wait()


def _tell(answer: int, told: dict[str, Any]) -> None:
    os.write(answer, json.dumps(told).encode() + b"\n")
    os.close(answer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_child", description=__doc__)
    parser.add_argument("--model", required=True, help="path of the GGUF file")
    parser.add_argument("--alias", required=True, help="name the answers carry")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens, over all slots")
    parser.add_argument("--slots", type=int, required=True, help="requests served at once")
    return parser.parse_args()


def _serve(arguments: argparse.Namespace, api_key: str) -> Any:
    native: Any = importlib.import_module("xllamacpp")
    params = native.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {arguments.alias}
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.n_ctx = arguments.context
    params.n_parallel = arguments.slots
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [api_key]
    params.use_jinja = True
    params.offline = True
    params.ui = False
    # These show one caller's prompt to another.
    params.endpoint_slots = False
    params.endpoint_props = False
    # The default keeps up to 8 GB of finished prompts.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # Fitting loads the model once more to measure it, and warming up delays the first answer.
    params.fit_params = False
    params.warmup = False
    # Warnings and errors; the levels above write a line for each request.
    params.verbosity = 2
    return native.Server(params)


if __name__ == "__main__":
    main()
