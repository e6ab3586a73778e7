"""The servers beside ours: thumbor, ipx, and nginx with a file that is ready."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench.machines import GATEWAY_CORE, Server, free_port, start, wait_for
from bench.media.direct import QUALITY
from bench.peers import CACHE, installed

_THUMBOR = """
LOADER = "thumbor.loaders.file_loader"
FILE_LOADER_ROOT_PATH = {root!r}
STORAGE = "thumbor.storages.no_storage"
QUALITY = {quality}
"""
_NGINX = """
worker_processes 1; daemon off; error_log /dev/null; pid nginx-files.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
  types {{ image/jpeg jpg; }}
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
_NPM_SECONDS = 300


class NotHere(Exception):
    """This peer cannot be had on this machine; the message says why."""


def thumbor(folder: Path, picture: Path) -> Server:
    """One process, which keeps neither sources nor results. Raises NotHere."""
    try:
        program = installed("thumbor") / "thumbor"
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotHere(f"pip could not install it: {error}") from error
    port, log = free_port(), folder / "thumbor.log"
    config = folder / "thumbor.conf"
    config.write_text(_THUMBOR.format(root=str(picture.parent), quality=QUALITY))
    command: list[str | Path] = [program, "--port", str(port), "--ip", "127.0.0.1"]
    command += ["--conf", config, "--log-level", "error", "--processes", "1"]
    process = start(command, core=GATEWAY_CORE, log=log)
    return wait_for(Server("thumbor", process, port), "/healthcheck", log)


def ipx(folder: Path, picture: Path) -> Server:
    """One process of Node.js with its own threads, sharp behind it. Raises NotHere."""
    node = shutil.which("node")
    if node is None:
        raise NotHere("there is no Node.js")
    program = _from_npm("ipx") / "ipx" / "bin" / "ipx.mjs"
    port, log = free_port(), folder / "ipx.log"
    command: list[str | Path] = [node, program, "serve", "--dir", picture.parent]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    process = start(command, core=GATEWAY_CORE, log=log, environment={"NODE_ENV": "production"})
    return wait_for(Server("ipx", process, port), f"/_/{picture.name}", log)


PEERS: dict[str, Callable[[Path, Path], Server]] = {"thumbor": thumbor, "ipx": ipx}


def version_of(name: str) -> str:
    """What is installed under a peer's name."""
    if name == "ipx":
        about = CACHE / "npm-ipx" / "node_modules" / "ipx" / "package.json"
        return json.loads(about.read_text())["version"]
    asked = f"import importlib.metadata as m; print(m.version({name!r}))"
    command: list[str | Path] = [installed(name) / "python", "-c", asked]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def nginx_files(folder: Path, root: Path, ready: str) -> Server:
    """Serves the files of a folder, which its own user must be able to read."""
    port, log = free_port(), folder / "nginx-files.log"
    (folder / "nginx-files.conf").write_text(_NGINX.format(port=port, root=root))
    command: list[str | Path] = ["nginx", "-p", folder, "-c", "nginx-files.conf"]
    process = start(command, core=GATEWAY_CORE, log=log)
    return wait_for(Server("nginx", process, port), ready, log)


def _from_npm(name: str) -> Path:
    """Where the package and those it needs are, in a folder that stays for next time."""
    home = CACHE / f"npm-{name}"
    if not (home / "complete").exists():
        npm = shutil.which("npm")
        if npm is None:
            raise NotHere("there is no npm")
        print(f"Installing {name} into {home} ...", flush=True)
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(home), "--no-audit", "--no-fund", name]
        try:
            done = subprocess.run(
                command,
                cwd=home,
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
                env={**os.environ, "CI": "1"},
            )
        except subprocess.TimeoutExpired as error:
            raise NotHere(f"npm did not end in {_NPM_SECONDS} s") from error
        if done.returncode != 0:
            raise NotHere(f"npm could not install it: {done.stderr.strip()[-300:]}")
        (home / "complete").touch()
    return home / "node_modules"
