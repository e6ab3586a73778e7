"""Makes the picture and the clips of the benchmarks, always the same ones."""

import subprocess
from pathlib import Path

import pyvips

from aiserver.transforms.av.programs import find_programs

WIDTH, HEIGHT = 2000, 1333
# Layers of noise, each by the size of its cells in pixels and its weight: shapes down to grain.
_LIGHT = ((300, 70.0), (60, 50.0), (20, 40.0), (7, 34.0), (3, 22.0))
_COLOUR = ((500, 60.0), (90, 30.0))
_GRAIN = 4.0


def picture(folder: Path) -> Path:
    """A JPEG of 1.7 bits a pixel, about as many as photographs have."""
    light = _layers(_LIGHT, seed=1) + pyvips.Image.gaussnoise(WIDTH, HEIGHT, sigma=_GRAIN, seed=9)
    red, green, blue = (light + _layers(_COLOUR, seed=seed) for seed in (11, 22, 33))
    image = red.bandjoin(green).bandjoin(blue).cast("uchar").copy(interpretation="srgb")
    target = folder / "picture.jpg"
    image.write_to_file(str(target), Q=85)
    return target


def clip(folder: Path, seconds: int) -> Path:
    """H.264 and AAC in 1280x720, 30 frames a second."""
    target = folder / f"clip-{seconds}.mp4"
    video = f"testsrc2=s=1280x720:r=30:d={seconds}"
    words = ["-f", "lavfi", "-i", video, "-f", "lavfi", "-i", f"sine=440:d={seconds}"]
    words += ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    ffmpeg(*words, str(target))
    return target


def ffmpeg(*words: str) -> None:
    """The program that the server uses too, with nothing around it."""
    command = [find_programs().ffmpeg, "-v", "error", "-nostdin", "-y", *words]
    subprocess.run(command, check=True)


def _layers(layers: tuple[tuple[int, float], ...], *, seed: int) -> pyvips.Image:
    image = pyvips.Image.black(WIDTH, HEIGHT)
    for number, (cell, weight) in enumerate(layers):
        noise = pyvips.Image.perlin(WIDTH, HEIGHT, cell_size=cell, seed=seed + number)
        image += noise * weight
    return image
