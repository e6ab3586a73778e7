"""Converting, cropping and scaling: what Pillow reads of the results."""

from pathlib import Path

import pytest
from PIL import Image, ImageCms

from aiserver.kit.imaging.errors import ImageRefused, ImagingFailed
from aiserver.kit.imaging.jobs import Convert, Crop, Format, Inspect, Scale
from aiserver.kit.imaging.pool import ImagingPool
from pictures import BLUE, GREEN, RED, WHITE, Save, close, corners, quarters

pytestmark = pytest.mark.asyncio(loop_scope="module")

FORMATS: tuple[Format, ...] = ("jpg", "png", "gif", "bmp", "tiff", "webp", "avif")
PILLOW = {"jpg": "JPEG"}
DURATIONS = [40, 80, 120, 160]


def frames(count: int = 4, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    """Each one shade of red further, with a blue square that stays where it is."""
    made = [Image.new("RGB", size, (60 * at, 0, 0)) for at in range(count)]
    for frame in made:
        frame.paste((0, 0, 255), (10, 10, 20, 20))
    return made


def animation(save: Save, name: str) -> str:
    first, *rest = frames()
    return save(
        name, first, save_all=True, append_images=rest, duration=DURATIONS, loop=3, lossless=True
    )


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("start", FORMATS)
async def test_every_format_becomes_every_other(
    pool: ImagingPool, save: Save, out: str, start: Format, to: Format
) -> None:
    source = save(f"mislabelled.{start}.txt", quarters(), format=PILLOW.get(start, start))
    result = await pool.run(Convert(source=source, result=out, format=to), timeout=20)
    with Image.open(out) as picture:
        assert picture.format == PILLOW.get(to, to.upper())
        assert picture.size == (80, 60) == (result.width, result.height)
        for found, wanted in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
            assert close(found, wanted)
    assert result.size == Path(out).stat().st_size
    assert (result.format, result.frames) == (to, 1)


@pytest.mark.parametrize("to", ["gif", "webp"])
@pytest.mark.parametrize("start", ["gif", "webp"])
async def test_animations_keep_frames_and_times(
    pool: ImagingPool, save: Save, out: str, start: str, to: Format
) -> None:
    source = animation(save, f"moving.{start}")
    result = await pool.run(Convert(source=source, result=out, format=to), timeout=20)
    assert result.frames == 4
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == 4
        for at, duration in enumerate(DURATIONS):
            picture.seek(at)
            picture.load()
            assert picture.info["duration"] == duration
            shown = picture.convert("RGB")
            assert close(shown.getpixel((35, 25)), (60 * at, 0, 0))
            assert close(shown.getpixel((15, 15)), BLUE)


async def test_animation_becomes_its_first_frame_elsewhere(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = animation(save, "moving.gif")
    result = await pool.run(Convert(source=source, result=out, format="png"), timeout=20)
    with Image.open(out) as picture:
        assert (result.frames, picture.size) == (1, (40, 30))
        assert close(picture.convert("RGB").getpixel((35, 25)), (0, 0, 0))


async def test_pages_of_a_tiff_stay(pool: ImagingPool, save: Save, out: str) -> None:
    first, *rest = frames()
    source = save("pages.tiff", first, save_all=True, append_images=rest)
    assert (await pool.run(Inspect(source=source), timeout=20)).frames == 4
    await pool.run(Convert(source=source, result=out, format="tiff"), timeout=20)
    with Image.open(out) as picture:
        picture.seek(3)
        assert close(picture.convert("RGB").getpixel((35, 25)), (180, 0, 0))


async def test_turned_pages_are_taken_as_stored(pool: ImagingPool, save: Save, out: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = save("pages.tiff", quarters(), save_all=True, append_images=[quarters()], exif=exif)
    await pool.run(Scale(source=source, result=out, width=40, format="png"), timeout=20)
    with Image.open(out) as picture:
        assert picture.size == (40, 30)
        for found, wanted in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
            assert close(found, wanted, by=25)


async def test_pages_that_differ_are_not_lost_unsaid(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = save("pages.tiff", quarters(), save_all=True, append_images=[quarters(20, 20)])
    assert (await pool.run(Inspect(source=source), timeout=20)).frames == 2
    with pytest.raises(ImageRefused, match="pages differ in size"):
        await pool.run(Convert(source=source, result=out, format="tiff"), timeout=20)
    first = await pool.run(Convert(source=source, result=out, format="png"), timeout=20)
    assert (first.width, first.height, first.frames) == (80, 60, 1)


async def test_transparency_stays_or_becomes_white(pool: ImagingPool, save: Save, out: str) -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 10, 20))
    source = save("clear.png", clear)
    kinds: tuple[Format, ...] = ("webp", "jpg", "bmp")
    for kind in kinds:
        result = await pool.run(Convert(source=source, result=out + kind, format=kind), timeout=20)
        with Image.open(out + kind) as picture:
            seen = picture.convert("RGBA").getpixel((15, 10))
        if kind == "webp":
            assert result.has_alpha
            assert isinstance(seen, tuple)
            assert seen[3] == 0
        else:
            assert not result.has_alpha
            assert close(seen, (255, 255, 255, 255))


async def test_quality_makes_files_smaller(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("noise.png", Image.effect_noise((200, 200), 90).convert("RGB"))
    kinds: tuple[Format, ...] = ("jpg", "webp", "avif")
    for kind in kinds:
        sizes = [
            (
                await pool.run(
                    Convert(source=source, result=f"{out}{q}{kind}", format=kind, quality=q),
                    timeout=20,
                )
            ).size
            for q in (20, 90)
        ]
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_orientation_is_applied(
    pool: ImagingPool, save: Save, out: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = save("turned.jpg", quarters(), exif=exif, quality=95)
    shown = await pool.run(Inspect(source=source), timeout=20)
    result = await pool.run(Convert(source=source, result=out, format="png"), timeout=20)
    scaled = await pool.run(Scale(source=source, result=out + "s", width=40), timeout=20)
    assert shown.orientation == orientation
    across = orientation >= 5
    wanted = {
        1: (RED, GREEN, BLUE, WHITE),
        2: (GREEN, RED, WHITE, BLUE),
        3: (WHITE, BLUE, GREEN, RED),
        4: (BLUE, WHITE, RED, GREEN),
        5: (RED, BLUE, GREEN, WHITE),
        6: (BLUE, RED, WHITE, GREEN),
        7: (WHITE, GREEN, BLUE, RED),
        8: (GREEN, WHITE, RED, BLUE),
    }[orientation]
    for path, answer in ((out, result), (out + "s", scaled)):
        with Image.open(path) as picture:
            assert picture.size == (answer.width, answer.height)
            assert picture.getexif().get(0x0112, 1) == 1
            for found, colour in zip(corners(picture), wanted, strict=True):
                assert close(found, colour, by=16)
    assert (result.width, result.height) == ((60, 80) if across else (80, 60))
    assert (shown.width, shown.height) == (result.width, result.height)


async def test_print_colours_become_rgb(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("print.jpg", Image.new("CMYK", (40, 40), (0, 255, 255, 0)), quality=95)
    await pool.run(Convert(source=source, result=out, format="png"), timeout=20)
    with Image.open(out) as picture:
        assert picture.mode == "RGB"
        red, green, blue = picture.getpixel((20, 20))  # type: ignore[misc]
    assert red > 180
    assert max(green, blue) < 90


async def test_profile_is_kept_or_applied(pool: ImagingPool, save: Save, out: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = save("profiled.png", quarters(), icc_profile=profile)
    kinds: tuple[Format, ...] = ("jpg", "gif")
    for kind in kinds:
        await pool.run(Convert(source=source, result=out + kind, format=kind), timeout=20)
        with Image.open(out + kind) as picture:
            assert ("icc_profile" in picture.info) is (kind == "jpg")
            for found, wanted in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
                assert close(found, wanted)


async def test_deep_grey_stays_grey(pool: ImagingPool, save: Save, out: str) -> None:
    source = save("deep.png", Image.new("I;16", (20, 20), 0x8000))
    kinds: tuple[Format, ...] = ("png", "jpg", "webp")
    for kind in kinds:
        await pool.run(Convert(source=source, result=out + kind, format=kind), timeout=20)
        with Image.open(out + kind) as picture:
            value = picture.getpixel((5, 5))
        shade = value if isinstance(value, int) else (value or (0,))[0]  # type: ignore[index]
        assert abs(shade / (257 if kind == "png" else 1) - 128) <= 3


async def test_inspect_tells_what_a_file_is(pool: ImagingPool, save: Save) -> None:
    source = animation(save, "moving.jpg.webp")
    found = await pool.run(Inspect(source=source), timeout=20)
    assert (found.format, found.width, found.height, found.frames) == ("webp", 40, 30, 4)
    assert found.size == Path(source).stat().st_size
    clear = save("clear.png", Image.new("RGBA", (5, 7)))
    assert (await pool.run(Inspect(source=clear), timeout=20)).has_alpha


async def test_crop_is_exact_to_the_pixel(pool: ImagingPool, save: Save, out: str) -> None:
    picture = Image.effect_noise((50, 40), 80).convert("RGB")
    source = save("noise.png", picture)
    crop = Crop(source=source, result=out, x=7, y=9, width=11, height=13)
    result = await pool.run(crop, timeout=20)
    with Image.open(out) as found:
        assert found.tobytes() == picture.crop((7, 9, 18, 22)).tobytes()
    assert (result.format, result.width, result.height) == ("png", 11, 13)


async def test_crop_of_the_whole_frame_is_the_frame(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = save("all.png", quarters())
    await pool.run(Crop(source=source, result=out, x=0, y=0, width=80, height=60), timeout=20)
    with Image.open(out) as found:
        assert found.tobytes() == quarters().tobytes()


async def test_crop_cuts_every_frame(pool: ImagingPool, save: Save, out: str) -> None:
    source = animation(save, "moving.webp")
    crop = Crop(source=source, result=out, x=15, y=15, width=10, height=10, format="gif")
    assert (await pool.run(crop, timeout=20)).frames == 4
    with Image.open(out) as picture:
        for at, duration in enumerate(DURATIONS):
            picture.seek(at)
            assert (picture.size, picture.info["duration"]) == ((10, 10), duration)
            shown = picture.convert("RGB")
            assert close(shown.getpixel((2, 2)), BLUE)
            assert close(shown.getpixel((8, 8)), (60 * at, 0, 0))


@pytest.mark.parametrize(
    ("x", "y", "width", "height"),
    [
        (-10, -10, 10_000, 10_000),
        (-1, 0, 10, 10),
        (0, -1, 10, 10),
        (0, 0, 0, 10),
        (0, 0, 10, -5),
        (71, 0, 10, 10),
        (0, 51, 10, 10),
        (2**40, 0, 1, 1),
    ],
)
async def test_window_outside_the_frame_is_refused(
    pool: ImagingPool, save: Save, out: str, x: int, y: int, width: int, height: int
) -> None:
    source = save("small.png", quarters())
    crop = Crop(source=source, result=out, x=x, y=y, width=width, height=height)
    with pytest.raises(ImageRefused, match=r"^Invalid crop dimensions") as refused:
        await pool.run(crop, timeout=20)
    assert refused.value.code == "InvalidCrop"
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (40, None, (40, 30)),
        (None, 30, (40, 30)),
        (33, 77, (33, 77)),
        (160, None, (160, 120)),
        (1, None, (1, 1)),
    ],
)
async def test_scale_keeps_the_ratio_with_one_side(
    pool: ImagingPool,
    save: Save,
    out: str,
    width: int | None,
    height: int | None,
    size: tuple[int, int],
) -> None:
    source = save("quarters.jpg", quarters(), quality=95)
    scale = Scale(source=source, result=out, width=width, height=height)
    result = await pool.run(scale, timeout=20)
    with Image.open(out) as picture:
        assert picture.size == size == (result.width, result.height)
        if size != (1, 1):
            for found, wanted in zip(corners(picture), (RED, GREEN, BLUE, WHITE), strict=True):
                assert close(found, wanted, by=25)


async def test_scale_of_an_animation_keeps_frames_apart(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = animation(save, "moving.gif")
    assert (await pool.run(Scale(source=source, result=out, width=20), timeout=20)).frames == 4
    with Image.open(out) as picture:
        for at in range(4):
            picture.seek(at)
            assert picture.size == (20, 15)
            assert close(picture.convert("RGB").getpixel((18, 14)), (60 * at, 0, 0), by=16)
            assert close(picture.convert("RGB").getpixel((18, 0)), (60 * at, 0, 0), by=16)


@pytest.mark.parametrize(("width", "height"), [(None, None), (0, None), (-5, 10)])
async def test_scale_without_a_size_is_refused(
    pool: ImagingPool, save: Save, out: str, width: int | None, height: int | None
) -> None:
    scale = Scale(source=save("a.png", quarters()), result=out, width=width, height=height)
    with pytest.raises(ImageRefused, match=r"^Invalid scale dimensions"):
        await pool.run(scale, timeout=20)


async def test_result_over_the_pixel_bound_is_refused(
    tight: ImagingPool, save: Save, out: str
) -> None:
    source = save("a.png", quarters())
    scale = Scale(source=source, result=out, width=100, height=100)
    await tight.run(scale, timeout=20)
    with pytest.raises(ImageRefused) as refused:
        await tight.run(Scale(source=source, result=out + "2", width=101, height=100), timeout=20)
    assert refused.value.code == "TooManyPixels"


async def test_sides_longer_than_the_format_holds_are_refused(
    pool: ImagingPool, save: Save, out: str
) -> None:
    source = save("a.png", quarters())
    fits = Scale(source=source, result=out, width=16_383, height=1, format="webp")
    await pool.run(fits, timeout=20)
    with pytest.raises(ImageRefused, match="webp images have at most 16383"):
        await pool.run(
            Scale(source=source, result=out + "2", width=16_384, height=1, format="webp"),
            timeout=20,
        )


async def test_existing_results_are_not_overwritten(
    pool: ImagingPool, save: Save, out: str
) -> None:
    Path(out).write_text("mine")
    with pytest.raises(ImagingFailed, match="server failed"):
        await pool.run(
            Convert(source=save("a.png", quarters()), result=out, format="png"), timeout=20
        )
    assert Path(out).read_text() == "mine"
