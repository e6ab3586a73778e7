"""Names the process that holds a lease, so that a dead one's leases are taken back at once."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

from aiserver.kit.ids import random_hex


def this_process() -> str:
    """`host:pid:start:random`; a number of a process that ended may be given again."""
    pid = os.getpid()
    return f"{_host()}:{pid}:{_started(pid)}:{random_hex(4)}"


def dead_among(owners: Iterable[str]) -> list[str]:
    """Those that ran on this machine and do not any more; of other machines nothing is known."""
    return [owner for owner in owners if _is_dead(owner)]


def _is_dead(owner: str) -> bool:
    host, _, rest = owner.partition(":")
    pid, _, rest = rest.partition(":")
    if host != _host() or not pid.isdigit():
        return False
    return _started(int(pid)) != rest.partition(":")[0]


def _host() -> str:
    """This machine, or this container: its processes are not seen from another one."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname().replace(':', '-')}/{namespace}"


def _started(pid: int) -> str:
    """When a process began, in the system's ticks; "" when there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
