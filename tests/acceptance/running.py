"""A real `ai-server serve` in a process of its own, for tests that meet it from outside."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

PATIENCE = 20.0
_READY = re.compile(r"AI Server \S+ is ready on (http://\S+)")
_SECRET = re.compile(r"Administrator's secret, shown this once: (\S+)")


class NotRunning(Exception):
    """The server ended or stayed silent instead of starting; the message holds what it printed."""


class RunningServer:
    """`secret` is the administrator's, or empty when an earlier start of this data printed it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.base_url = ""
        self.secret = ""
        self._printed: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # For as long as the process lives: one that nobody reads blocks on a full pipe.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def start(cls, data: Path, env: Mapping[str, str], *, port: int = 0) -> Self:
        """Raises NotRunning when it does not come up in time."""
        command = [str(Path(sys.executable).with_name("ai-server")), "serve"]
        command += ["--port", str(port), "--data", str(data)]
        first = not (data / "app.db").exists() and "AUTH_SECRET" not in env
        process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server = cls(process)
        try:
            deadline = time.monotonic() + PATIENCE
            server.base_url = server._await(_READY, deadline)
            server.secret = (
                server._await(_SECRET, deadline) if first else env.get("AUTH_SECRET", "")
            )
        except BaseException:
            process.kill()
            server.stop()
            raise
        return server

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def stop(self) -> int:
        """Asks it to stop and waits; the exit code. A server that does not stop is killed."""
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        return code

    def printed(self) -> str:
        """Everything that it has printed so far, logs included."""
        return "".join(self._printed)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._printed.append(line)
                self._lines.put(line)
        self._lines.put(None)

    def _await(self, wanted: re.Pattern[str], deadline: float) -> str:
        """The first group of the next line that matches."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise NotRunning(f"Too slow; printed so far:\n{self.printed()}") from None
            if line is None:
                raise NotRunning(f"It ended; it printed:\n{self.printed()}")
            if found := wanted.search(line):
                return found[1]
