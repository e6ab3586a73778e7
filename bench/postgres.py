"""A PostgreSQL of the benchmark's own, as the distribution configures it, on loopback."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from bench.machines import free_port

_SECONDS = 30


class Cluster:
    """`process` is the server's first one; the others are its children."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.port = port
        self.process = process

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """The URL of a new database."""
        psql = [_binaries() / "psql", "-Xqc", f"CREATE DATABASE {name}", self.url("postgres")]
        subprocess.run(psql, check=True, timeout=_SECONDS)
        return self.url(name)


@contextmanager
def cluster(folder: Path) -> Generator[Cluster]:
    """It runs until the block ends; its files are in a folder of their own, there."""
    home, port = folder / "postgres", free_port()
    home.mkdir()
    user = _user(home)
    data, binaries = home / "data", _binaries()
    made = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    done = subprocess.run([*user, *made, "--no-sync"], cwd="/", capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"initdb failed: {done.stderr or done.stdout}")
    command = [*user, binaries / "postgres", "-D", data, "-p", str(port), "-k", home]
    command += ["-c", "listen_addresses=127.0.0.1"]
    log = folder / "postgres.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd="/", stdout=out, stderr=out)
    try:
        _await(port, process, log)
        yield Cluster(port, process)
    finally:
        # Without waiting for whoever is still connected.
        process.send_signal(signal.SIGINT)
        process.wait(_SECONDS)


def _await(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ready = [_binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    until = time.monotonic() + _SECONDS
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"PostgreSQL does not start.\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _binaries() -> Path:
    """The newest version's: Debian does not put the server on PATH."""
    found = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return max(found, key=lambda path: int(path.parts[-3])).parent
    on_path = shutil.which("postgres")
    if on_path is None:
        sys.exit("The benchmark needs PostgreSQL; scripts/system.sh installs it.")
    return Path(on_path).resolve().parent


def _user(home: Path) -> list[str | Path]:
    """How to become somebody whom PostgreSQL runs for, and gives them the folder: root it refuses."""
    if home.stat().st_uid != 0:
        return []
    name = "postgres" if "\npostgres:" in Path("/etc/passwd").read_text() else "nobody"
    shutil.chown(home, name)
    for above in (home.parent, home):
        above.chmod(0o755)
    return ["setpriv", "--reuid", name, "--regid", name, "--init-groups"]
