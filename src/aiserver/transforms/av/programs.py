"""Where ffmpeg is on this machine: the system's own, else the packaged one."""

import importlib.util
import shutil
from pathlib import Path

import msgspec

from aiserver.contract.errors import Unavailable


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths; without `ffprobe` files are read by a child of our own."""

    ffmpeg: str
    ffprobe: str | None = None


def find_programs(path: str | None = None) -> Programs:
    """Those on PATH (or the path given), else the packaged ffmpeg. Raises Unavailable."""
    system = shutil.which("ffmpeg", path=path)
    if system is not None:
        return Programs(ffmpeg=_absolute(system), ffprobe=_beside(system, path))
    packaged = _packaged()
    if packaged is None:
        raise Unavailable("This server has no ffmpeg: install it, or the package imageio-ffmpeg")
    return Programs(ffmpeg=packaged)


def _beside(ffmpeg: str, path: str | None) -> str | None:
    beside = Path(ffmpeg).with_name("ffprobe")
    found = str(beside) if beside.is_file() else shutil.which("ffprobe", path=path)
    return None if found is None else _absolute(found)


def _packaged() -> str | None:
    # Not imported: asking the package itself would run the program, and obey the environment.
    spec = importlib.util.find_spec("imageio_ffmpeg")
    if spec is None or spec.origin is None:
        return None
    programs = sorted(Path(spec.origin).with_name("binaries").glob("ffmpeg-*"))
    return _absolute(str(programs[0])) if programs else None


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
