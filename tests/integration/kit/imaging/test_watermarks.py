"""Watermarks: where they are, how large and how strong."""

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Position, Watermark
from aiserver.kit.imaging.pool import ImagingPool
from pictures import RED, Save, close

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE = (0, 0, 100)
Box = tuple[int, int, int, int]


def changed(path: str, base: Image.Image) -> Box | None:
    """The box around all pixels that are not as they were."""
    with Image.open(path) as picture:
        return ImageChops.difference(picture.convert("RGB"), base).getbbox()


@pytest.fixture
def base() -> Image.Image:
    return Image.new("RGB", (200, 100), BASE)


@pytest.mark.parametrize(
    ("position", "box"),
    [
        ("TopLeft", (5, 5, 45, 25)),
        ("TopRight", (155, 5, 195, 25)),
        ("BottomLeft", (5, 75, 45, 95)),
        ("BottomRight", (155, 75, 195, 95)),
        ("Center", (80, 40, 120, 60)),
    ],
)
async def test_mark_is_put_at_its_position(
    pool: ImagingPool, save: Save, out: str, base: Image.Image, position: Position, box: Box
) -> None:
    job = Watermark(
        source=save("base.png", base),
        result=out,
        mark=save("mark.png", Image.new("RGB", (40, 20), RED)),
        position=position,
        opacity=0.5,
        margin=5,
    )
    result = await pool.run(job, timeout=20)
    assert changed(out, base) == box
    assert not result.has_alpha
    with Image.open(out) as picture:
        assert close(picture.getpixel((box[0] + 10, box[1] + 10)), (128, 0, 50), by=2)


@pytest.mark.parametrize(
    ("scale", "size"), [(0.5, (20, 10)), (1.0, (40, 20)), (2.0, (80, 40)), (50.0, (180, 90))]
)
async def test_scale_is_applied_and_fits(
    pool: ImagingPool, save: Save, out: str, base: Image.Image, scale: float, size: tuple[int, int]
) -> None:
    job = Watermark(
        source=save("base.png", base),
        result=out,
        mark=save("mark.jpg", Image.new("RGB", (40, 20), RED)),
        position="TopLeft",
        scale=scale,
        opacity=1.0,
        margin=5,
    )
    await pool.run(job, timeout=20)
    assert changed(out, base) == (5, 5, 5 + size[0], 5 + size[1])


@pytest.mark.parametrize(("opacity", "red"), [(0.0, 0), (0.25, 64), (0.7, 178), (1.0, 255)])
async def test_opacity_is_applied(
    pool: ImagingPool, save: Save, out: str, base: Image.Image, opacity: float, red: int
) -> None:
    job = Watermark(
        source=save("base.png", base),
        result=out,
        mark=save("mark.png", Image.new("RGBA", (40, 20), (*RED, 255))),
        opacity=opacity,
        position="Center",
    )
    await pool.run(job, timeout=20)
    with Image.open(out) as picture:
        assert close(picture.getpixel((100, 50)), (red, 0, round(100 * (1 - opacity))), by=2)


async def test_clear_parts_of_the_mark_stay_clear(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    mark = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    mark.paste((255, 0, 0, 255), (0, 0, 20, 20))
    job = Watermark(
        source=save("base.png", base),
        result=out,
        mark=save("mark.webp", mark, lossless=True),
        position="TopLeft",
        margin=0,
        opacity=1.0,
    )
    await pool.run(job, timeout=20)
    assert changed(out, base) == (0, 0, 20, 20)


async def test_tiles_cover_the_picture(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    job = Watermark(
        source=save("base.png", base),
        result=out,
        mark=save("mark.png", Image.new("RGB", (20, 10), RED)),
        tiled=True,
        margin=10,
        opacity=1.0,
    )
    await pool.run(job, timeout=20)
    with Image.open(out) as picture:
        for x in range(0, 200, 30):
            for y in range(0, 100, 20):
                assert close(picture.getpixel((x + 1, y + 1)), RED)
                assert close(picture.getpixel((min(x + 25, 199), y + 15)), BASE) or x + 25 > 199


@pytest.mark.parametrize("text", ["Sample 2026", "© Søren & <b>Ω</b>", "x" * 200])
async def test_text_is_drawn_within_the_margins(
    pool: ImagingPool, save: Save, out: str, base: Image.Image, text: str
) -> None:
    job = Watermark(
        source=save("base.png", base), result=out, text=text, scale=3, opacity=1.0, margin=8
    )
    await pool.run(job, timeout=20)
    box = changed(out, base)
    assert box is not None
    assert box[0] >= 8
    assert box[1] >= 8
    assert box[2] <= 192
    assert box[3] <= 92
    if len(text) < 100:
        with Image.open(out) as picture:
            assert any(picture.convert("L").histogram()[201:])


async def test_larger_text_is_larger(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    heights: list[int] = []
    for scale in (1.0, 2.0):
        job = Watermark(
            source=save("base.png", base), result=f"{out}{scale}", text="Hi", scale=scale
        )
        await pool.run(job, timeout=20)
        box = changed(f"{out}{scale}", base)
        assert box is not None
        heights.append(box[3] - box[1])
    assert heights[1] > heights[0] * 1.4


async def test_every_frame_is_marked(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    rest = [Image.new("RGB", base.size, (0, at, 0)) for at in (90, 180)]
    source = save("moving.webp", base, save_all=True, append_images=rest, duration=60)
    job = Watermark(
        source=source,
        result=out,
        mark=save("mark.png", Image.new("RGB", (20, 10), RED)),
        position="TopLeft",
        margin=0,
        opacity=1.0,
    )
    assert (await pool.run(job, timeout=20)).frames == 3
    with Image.open(out) as picture:
        for at in range(3):
            picture.seek(at)
            shown = picture.convert("RGB")
            assert close(shown.getpixel((10, 5)), RED, by=30)
            assert close(shown.getpixel((100, 50)), (BASE, (0, 90, 0), (0, 180, 0))[at])


async def test_mark_larger_than_the_picture_fits(pool: ImagingPool, save: Save, out: str) -> None:
    tiny = Image.new("RGB", (6, 4), BASE)
    job = Watermark(
        source=save("base.png", tiny),
        result=out,
        mark=save("mark.png", Image.new("RGB", (400, 20), RED)),
        margin=10,
    )
    result = await pool.run(job, timeout=20)
    assert (result.width, result.height) == (6, 4)


async def test_missing_mark_is_refused(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    with pytest.raises(ImageRefused, match="No watermark image file provided"):
        await pool.run(Watermark(source=save("base.png", base), result=out), timeout=20)


async def test_bad_mark_is_the_callers_fault(
    pool: ImagingPool, save: Save, out: str, base: Image.Image
) -> None:
    good = save("base.png", base)
    noise = save("noise.png", Image.effect_noise((90, 90), 50))
    cut = save("cut.png", Path(noise).read_bytes()[:3000])
    for bad in (save("mark.svg", b"<svg/>"), cut):
        with pytest.raises(ImageRefused):
            await pool.run(Watermark(source=good, result=out, mark=bad), timeout=20)


@pytest.mark.parametrize("text", [" ", "\n\t", "\u200b"])
async def test_text_without_letters_is_refused(
    pool: ImagingPool, save: Save, out: str, base: Image.Image, text: str
) -> None:
    with pytest.raises(ImageRefused) as refused:
        await pool.run(Watermark(source=save("base.png", base), result=out, text=text), timeout=20)
    assert refused.value.code == "NoWatermark"
