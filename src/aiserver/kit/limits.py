"""Bounds that the system holds a child process to, set before its program begins."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

LAUNCHER = str(Path(__file__).with_name("limited_child.py"))


class ProcessLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a child may use; None leaves the system's own bound.

    `memory` is address space in bytes. A child over `cpu_seconds` is killed, one that writes
    beyond `file_size` bytes gets SIGXFSZ. `nice` lets the server go first where both want a core.
    """

    memory: int | None = None
    cpu_seconds: int | None = None
    file_size: int | None = None
    open_files: int | None = None
    nice: int = 0


def limited(argv: Sequence[str], limits: ProcessLimits) -> tuple[str, ...]:
    """The command that runs `argv` under these limits; it ends when this process does.

    `argv[0]` is an absolute path. A launcher sets them, since code between fork and exec is unsafe
    in a process with threads.
    """
    values = (limits.memory, limits.cpu_seconds, limits.file_size, limits.open_files, limits.nice)
    bounds = ["-" if value is None else str(value) for value in values]
    return (sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), *bounds, *argv)
