"""Variants: sizes, crops, turns and what stays of metadata."""

import pytest
from PIL import Image

from aiserver.kit.imaging.errors import ImageRefused
from aiserver.kit.imaging.jobs import Fit, Format, Gravity, Variant
from aiserver.kit.imaging.pool import ImagingPool
from pictures import BLUE, GREEN, RED, WHITE, Save, close, corners, quarters

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("fit", "width", "height", "size"),
    [
        ("inside", 40, 40, (40, 30)),
        ("inside", 200, 200, (80, 60)),
        ("inside", 200, None, (80, 60)),
        ("contain", 40, 40, (40, 40)),
        ("contain", 160, 160, (160, 160)),
        ("cover", 40, 40, (40, 40)),
        ("cover", 7, 50, (7, 50)),
        ("cover", 160, 160, (160, 160)),
        ("fill", 33, 99, (33, 99)),
        ("fill", 160, None, (160, 120)),
        ("fill", None, 30, (40, 30)),
        ("inside", None, None, (80, 60)),
    ],
)
async def test_fit_decides_the_size(
    pool: ImagingPool,
    save: Save,
    out: str,
    fit: Fit,
    width: int | None,
    height: int | None,
    size: tuple[int, int],
) -> None:
    source = save("quarters.png", quarters())
    job = Variant(source=source, result=out, width=width, height=height, fit=fit, format="webp")
    result = await pool.run(job, timeout=20)
    with Image.open(out) as picture:
        assert picture.size == size == (result.width, result.height)
        assert picture.format == "WEBP"


async def test_contain_fills_up_clear_or_white(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("quarters.png", quarters())
    kinds: tuple[Format, ...] = ("png", "jpg")
    for kind in kinds:
        job = Variant(
            source=source, result=out + kind, width=80, height=80, fit="contain", format=kind
        )
        await pool.run(job, timeout=20)
        with Image.open(out + kind) as picture:
            shown = picture.convert("RGBA")
        edge = shown.getpixel((40, 4))
        if kind == "png":
            assert edge == (0, 0, 0, 0)
        else:
            assert close(edge, (255, 255, 255))
        assert close(shown.getpixel((20, 20)), RED)
        assert close(shown.getpixel((20, 60)), BLUE)


@pytest.mark.parametrize(
    ("gravity", "colours"),
    [
        ("west", (RED, RED, BLUE, BLUE)),
        ("east", (GREEN, GREEN, WHITE, WHITE)),
        ("northwest", (RED, RED, BLUE, BLUE)),
        ("center", (RED, GREEN, BLUE, WHITE)),
    ],
)
async def test_cover_crops_at_the_gravity(
    pool: ImagingPool, save: Save, out: str, gravity: Gravity, colours: tuple[tuple[int, ...], ...]
) -> None:
    source = save("quarters.png", quarters(160, 60))
    job = Variant(source=source, result=out, width=60, height=60, fit="cover", gravity=gravity)
    await pool.run(job, timeout=20)
    with Image.open(out) as picture:
        for found, wanted in zip(corners(picture), colours, strict=True):
            assert close(found, wanted)


async def test_attention_keeps_what_stands_out(pool: ImagingPool, save: Save, out: str) -> None:
    picture = Image.new("RGB", (400, 100), (90, 90, 90))
    picture.paste(Image.effect_noise((60, 60), 120).convert("RGB"), (320, 20))
    picture.paste((230, 60, 30), (335, 35, 365, 65))
    source = save("odd.png", picture)
    job = Variant(
        source=source, result=out, width=100, height=100, fit="cover", gravity="attention"
    )
    await pool.run(job, timeout=20)
    with Image.open(out) as found:
        assert found.size == (100, 100)
        reds = sum(
            count
            for count, colour in found.convert("RGB").getcolors(10_000) or []
            if close(colour, (230, 60, 30))
        )
    assert reds > 700


async def test_dpr_multiplies_the_sides(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("quarters.png", quarters())
    result = await pool.run(Variant(source=source, result=out, width=20, dpr=1.5), timeout=20)
    assert (result.width, result.height) == (30, 22)


@pytest.mark.parametrize(
    ("rotate", "colours"),
    [
        (90, (BLUE, RED, WHITE, GREEN)),
        (180, (WHITE, BLUE, GREEN, RED)),
        (270, (GREEN, WHITE, RED, BLUE)),
    ],
)
async def test_rotate_turns_before_sizing(
    pool: ImagingPool, save: Save, out: str, rotate: int, colours: tuple[tuple[int, ...], ...]
) -> None:
    source = save("quarters.png", quarters())
    job = Variant(source=source, result=out, width=30, rotate=rotate)  # type: ignore[arg-type]
    result = await pool.run(job, timeout=20)
    size = (30, 22) if rotate == 180 else (30, 40)
    assert (result.width, result.height) == size
    with Image.open(out) as picture:
        for found, wanted in zip(corners(picture), colours, strict=True):
            assert close(found, wanted)


async def test_turned_photograph_is_cropped_as_shown(
    pool: ImagingPool, save: Save, out: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = save("turned.jpg", quarters(), exif=exif, quality=95)
    job = Variant(source=source, result=out, width=12, height=40, fit="cover", gravity="west")
    await pool.run(job, timeout=20)
    with Image.open(out) as picture:
        assert picture.size == (12, 40)
        for found, wanted in zip(corners(picture), (BLUE, BLUE, WHITE, WHITE), strict=True):
            assert close(found, wanted, by=30)


async def test_blur_softens_edges_only(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("quarters.png", quarters())
    await pool.run(Variant(source=source, result=out, blur=3.0), timeout=20)
    with Image.open(out) as picture:
        red, green, _ = picture.getpixel((40, 15))  # type: ignore[misc]
        assert 60 < red < 200
        assert 30 < green < 110
        assert close(picture.getpixel((10, 10)), RED)


async def test_strip_removes_what_a_photograph_tells(
    pool: ImagingPool, save: Save, out: str
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    source = save("told.jpg", quarters(), exif=exif, comment=b"secret")
    for strip in (True, False):
        job = Variant(source=source, result=f"{out}{strip}", width=40, strip=strip)
        await pool.run(job, timeout=20)
        with Image.open(f"{out}{strip}") as picture:
            assert (picture.getexif().get(0x010F) == "Camera") is not strip
            assert "comment" not in picture.info
            assert "icc_profile" not in picture.info


async def test_variant_of_an_animation_moves(pool: ImagingPool, save: Save, out: str) -> None:
    frames = [quarters(), quarters().rotate(180), quarters()]
    source = save(
        "moving.gif", frames[0], save_all=True, append_images=frames[1:], duration=70, loop=0
    )
    job = Variant(
        source=source,
        result=out,
        width=30,
        height=30,
        fit="cover",
        gravity="attention",
        rotate=90,
        blur=0.5,
        format="webp",
    )
    result = await pool.run(job, timeout=20)
    assert result.frames == 3
    with Image.open(out) as picture:
        for at in range(3):
            picture.seek(at)
            picture.load()
            assert (picture.size, picture.info["duration"]) == ((30, 30), 70)


async def test_box_over_the_pixel_bound_is_refused(
    tight: ImagingPool, save: Save, out: str
) -> None:
    source = save("a.png", quarters())
    fits: tuple[Fit, ...] = ("contain", "cover", "fill")
    for fit in fits:
        await tight.run(
            Variant(source=source, result=out + fit, width=100, height=75, fit=fit), timeout=20
        )
        with pytest.raises(ImageRefused) as refused:
            await tight.run(
                Variant(source=source, result=out, width=100, height=101, fit=fit), timeout=20
            )
        assert refused.value.code == "TooManyPixels"


async def test_options_out_of_range_are_refused(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("a.png", quarters())
    for job in (
        Variant(source=source, result=out, width=0),
        Variant(source=source, result=out, width=10**30),
        Variant(source=source + "\ud800", result=out),
        Variant(source=source, result=out, dpr=5.0),
        Variant(source=source, result=out, quality=101),
        Variant(source=source, result=out, rotate=45),  # type: ignore[arg-type]
        Variant(source=source, result=out, format="svg"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ImageRefused, match="Invalid image options"):
            await pool.run(job, timeout=20)
