"""Who makes variants beside ours, each on one core: libraries in a loop, servers under a load."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from bench.gateway import NAME
from bench.loads import Sample, saturated
from bench.machines import GATEWAY_CORE, Server
from bench.media import server as ours
from bench.media.direct import BOX, QUALITY, WIDTH
from bench.media.made import HEIGHT as FULL_HEIGHT
from bench.media.made import WIDTH as FULL_WIDTH
from bench.media.peers import PEERS, NotHere, version_of

ENGINE, LIBVIPS = "engine alone", "libvips"
THUMBNAIL, RESIZE = "Pillow thumbnail", "Pillow full decode"
_LOOPS = {LIBVIPS: "libvips", ENGINE: "engine", THUMBNAIL: "thumbnail", RESIZE: "resize"}
_ROOT = Path(__file__).parents[2]
_CONNECTIONS = 4
# A box that the picture does not fill: its height makes another address, not another picture.
_LOWEST, _HIGHEST = 400, 8000
_SCRIPT = """
local height = {first}
function request()
  height = height + 1
  local path = "{before}" .. height .. "{after}"
  return wrk.format("GET", path, {{["Authorization"] = "Bearer {key}"}})
end
"""

Round = Callable[[float], Sample]
Address = Callable[[str], str]


def variant_of(path: str, height: int | str) -> str:
    """The address of a variant of ours in a box of this height."""
    asked = f"width={WIDTH},fit=inside,quality={QUALITY},format=jpg,height={height}"
    return f"/variants/{asked}/{path.removeprefix('/uploads/')}"


def contestants(
    stack: ExitStack, folder: Path, picture: Path, peers: Sequence[str], *, rounds: int
) -> tuple[dict[str, Round], dict[str, str]]:
    """What runs a round of each, and why others are left out; the stack ends their servers."""
    every = {name: _loop(how, picture) for name, how in _LOOPS.items()}
    left_out: dict[str, str] = {}
    server = ours.files_server(folder)
    stack.callback(server.stop)
    path = ours.upload(server, ours.file_part("file", picture))
    every[NAME] = _server(server, folder, lambda height: variant_of(path, height), rounds)
    for peer in peers:
        try:
            server = PEERS[peer](folder, picture)
        except NotHere as reason:
            left_out[peer] = str(reason)
            continue
        stack.callback(server.stop)
        name = f"{peer} {version_of(peer)}"
        every[name] = _server(server, folder, _address(peer, picture.name), rounds)
    return every, left_out


def _address(peer: str, name: str) -> Address:
    if peer == "thumbor":
        return lambda height: f"/unsafe/fit-in/{WIDTH}x{height}/{name}"
    return lambda height: f"/fit_inside,f_jpeg,q_{QUALITY},s_{WIDTH}x{height}/{name}"


def _loop(how: str, picture: Path) -> Round:
    """A process of its own for each round."""
    command = ["taskset", "-c", GATEWAY_CORE, sys.executable, "-m", "bench.media.direct"]
    command += ["--how", how, "--source", str(picture)]

    def run(seconds: float) -> Sample:
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            cwd=_ROOT,
            env={**os.environ, "VIPS_CONCURRENCY": "1"},
            capture_output=True,
            text=True,
            timeout=60 + 10 * seconds,
        )
        if done.returncode != 0:
            sys.exit(f"{how} failed: {done.stderr[-3000:]}")
        found = json.loads(done.stdout)
        return Sample(found["cpu"], found["rate"], 0.0, 0.0)

    return run


def _server(server: Server, folder: Path, address: Address, rounds: int) -> Round:
    """Each round has heights of its own; the first request warms it up, and is looked at."""
    _check(server, address(str(BOX // 2)))
    each = (_HIGHEST - _LOWEST) // rounds
    starts: Iterator[int] = iter(range(_LOWEST, _HIGHEST, each))

    def run(seconds: float) -> Sample:
        before, after = address("|").split("|")
        script = folder / f"{server.name}.lua"
        first = next(starts)
        script.write_text(_SCRIPT.format(first=first, before=before, after=after, key=server.key))
        sample = saturated(server, "/", script, seconds, connections=_CONNECTIONS)
        if sample.rate * seconds + _CONNECTIONS > each:
            sys.exit(f"{server.name} ran out of addresses; measure fewer seconds.")
        return sample

    return run


def _check(server: Server, path: str) -> None:
    """All are to make the same of it, however they are asked."""
    body = ours.read(server, path)
    with Image.open(io.BytesIO(body)) as image:
        made = (image.format, image.size)
    wanted = ("JPEG", (WIDTH, round(FULL_HEIGHT * WIDTH / FULL_WIDTH)))
    if made != wanted:
        sys.exit(f"{server.name} makes {made} of the picture, not {wanted}.")
    print(f"  {server.name}: a variant of {len(body)} bytes", flush=True)
