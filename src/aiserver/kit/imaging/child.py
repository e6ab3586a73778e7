"""The child that works on pictures: one job after another from its socket, within its limits."""

import errno
import os
import resource
import struct
import sys

import msgspec
import pyvips

from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Done, Faulted, Full, Job, Limits, Ready, Refused, Reply
from aiserver.kit.imaging.operations import perform, sources
from aiserver.kit.imaging.pictures import allow_loaders, decodes
from aiserver.kit.process import killed_with_parent

_SOCKET = 0
_LENGTH = struct.Struct(">I")
_jobs = msgspec.msgpack.Decoder(Job)


def main() -> None:
    killed_with_parent()
    limits = msgspec.msgpack.decode(_read(), type=Limits)
    _limit(limits)
    pyvips.cache_set_max(0)
    allow_loaders()
    _write(Ready())
    while True:
        _write(_reply(_read(), limits))


def _limit(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.open_files, limits.open_files))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.result_bytes, limits.result_bytes))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))


def _reply(frame: bytes, limits: Limits) -> Reply:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    return _done(_jobs.decode(frame), limits)


def _done(job: Job, limits: Limits) -> Reply:
    try:
        return Done(result=perform(job, limits), resident=_resident())
    except ImageRefused as error:
        return _refused(error.code, str(error))
    except pyvips.Error as error:
        words = str(error)[:500]
        if "File too large" in words:
            return _too_large(limits)
        if "No space left on device" in words or "quota exceeded" in words:
            return Full(resident=_resident())
        # libvips decodes while it writes, so its error does not say which of the two failed.
        if "out of memory --- size" in words or all(decodes(path, limits) for path in sources(job)):
            return Faulted(message=words, resident=_resident())
        return _refused("DamagedImage", "The image file is damaged or cut off.", words)
    except Exception as error:
        # The job ends here; the child lives on for the next.
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return _too_large(limits)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Full(resident=_resident())
        return Faulted(message=f"{type(error).__name__}: {error}"[:500], resident=_resident())


def _too_large(limits: Limits) -> Refused:
    return _refused(
        "ResultTooLarge",
        f"The result would have more than {limits.result_bytes / 2**20:.3g} MB;"
        " ask for a smaller one or another format.",
    )


def _refused(code: str, message: str, detail: str = "") -> Refused:
    return Refused(code=code, message=message, detail=detail, resident=_resident())


def _resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _read() -> bytes:
    (length,) = _LENGTH.unpack(_exactly(_LENGTH.size))
    return _exactly(length)


def _exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(_SOCKET, count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _write(reply: Reply) -> None:
    frame = msgspec.msgpack.encode(reply)
    data = memoryview(_LENGTH.pack(len(frame)) + frame)
    while data:
        data = data[os.write(_SOCKET, data) :]


if __name__ == "__main__":
    main()
