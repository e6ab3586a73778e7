"""What worker processes of the tests do; here, because a new process imports it by name."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(number: int, ready: Callable[[], None], folder: Path) -> None:
    """Leaves its pid; ends at SIGTERM."""
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    with (folder / f"pids-{number}").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    ready()
    while not stopped.wait(0.05):
        pass
    (folder / f"ended-{number}").touch()


def fail(number: int, ready: Callable[[], None], folder: Path) -> None:
    sys.exit(3)


def ignore(number: int, ready: Callable[[], None], folder: Path) -> None:
    """Does not end when it is asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "pids-1").write_text(f"{os.getpid()}\n")
    ready()
    while True:
        time.sleep(60)
