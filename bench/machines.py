"""Starts the processes of a benchmark, each on its own core, and reads what they spent."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

GATEWAY_CORE, LOAD_CORE = "0", "1"
SOURCES = Path(__file__).parent / "c"
_TOOLS = {"nginx": "nginx-light", "wrk": "wrk", "gcc": "gcc"}


@dataclass(frozen=True)
class Server:
    """One server, pinned to a core. `slow` ones get a load that they can carry."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    key: str = "none"
    slow: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spent(self) -> float:
        """Microseconds of CPU, user and system, of the process and its children, ended ones too."""
        return sum(spent(pid) + reaped(pid) for pid in family(self.process.pid))

    def resident(self) -> int:
        """Bytes of memory of the process and its children."""
        return sum(resident(pid) for pid in family(self.process.pid))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(
    command: list[str | Path],
    *,
    core: str,
    log: Path,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """What it prints goes to `log`."""
    pinned = ["taskset", "-c", core, *command]
    with log.open("wb") as out:
        return subprocess.Popen(
            pinned, env={**os.environ, **(environment or {})}, stdout=out, stderr=out
        )


def wait_for(server: Server, path: str, log: Path, *, seconds: float = 20) -> Server:
    """The server, once it answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(server.url + path, timeout=1).close()
            return server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline or server.process.poll() is not None:
                said = log.read_text(errors="replace")[-2000:]
                server.stop()
                sys.exit(f"{server.name} does not answer on {server.url}{path}.\n{said}")
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def install(*tools: str) -> None:
    """Those that are absent, from the distribution."""
    missing = [_TOOLS[tool] for tool in tools if not shutil.which(tool)]
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"The benchmark needs {' and '.join(missing)}; install them and run it again.")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", *missing], check=True)


def compiled(folder: Path) -> None:
    """Puts the programs `load` and `upstream` there."""
    for name in ("load", "upstream"):
        source, warnings = SOURCES / f"{name}.c", ["-Wall", "-Wno-missing-field-initializers"]
        command = ["gcc", "-O2", *warnings, "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)


def family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]


def spent(pid: int) -> float:
    """Microseconds of CPU of one process."""
    # The CPU clock of another process, as clock_getcpuclockid makes it: /proc counts in ticks of
    # 10 ms and forgets nothing either, but a short round would be a handful of them.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1000


def reaped(pid: int) -> float:
    """Microseconds of CPU of its children that ended."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    return (int(user) + int(system)) * 1_000_000 / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory of one process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
