"""Sets bounds on itself, ties its life to its parent's and becomes the program it is told to run.

Run as a file, without the site packages: it stands between a call and its child, so it is light.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Words: the parent's process id, five bounds ("-" for none), then the program's own."""
    parent, memory, cpu, file_size, open_files, nice, *argv = words
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        bound(resource.RLIMIT_AS, memory)
    if os.getppid() != int(parent):
        sys.exit("the process that began this one has ended")
    bound(resource.RLIMIT_CPU, cpu)
    bound(resource.RLIMIT_FSIZE, file_size)
    bound(resource.RLIMIT_NOFILE, open_files)
    bound(resource.RLIMIT_CORE, "0")
    os.nice(int(nice))
    # Python ignores these, and an ignored signal stays so in the program that follows.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(argv[0], argv)


def bound(which: int, value: str) -> None:
    """Lowers one bound; one that the system has already set lower stays."""
    if value == "-":
        return
    _, hard = resource.getrlimit(which)
    wanted = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
    resource.setrlimit(which, (wanted, wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
