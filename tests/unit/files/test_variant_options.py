"""What the options of a variant's address mean, what is refused, and who may ask for what."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.contract.errors import Forbidden, InvalidRequest
from aiserver.files.variant_options import (
    LONGEST_SIDE,
    Presets,
    VariantOptions,
    Wanted,
    on_grid,
)
from aiserver.kit.imaging.jobs import Fit, Gravity

PRESETS = Presets()
SIDES = st.none() | st.integers(1, LONGEST_SIDE)


def asked(members: dict[str, object]) -> str:
    told = {name: value for name, value in members.items() if value is not None}
    return ",".join(f"{name}={value}" for name, value in told.items())


def test_options_of_the_original_mean_the_same() -> None:
    both = PRESETS.read("width=512,height=300")
    assert (both.width, both.height, both.fit, both.format) == (512, 300, "fill", "auto")
    assert PRESETS.read("height=128") == VariantOptions(height=128)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour=red", "Invalid option 'colour=red'. Options are name=value, with these names: "),
        ("width", "Invalid option 'width'."),
        ("medum", "Invalid option 'medum'."),
        ("=1", "Invalid option '=1'."),
        ("", "width or height is required"),
        (",", "width or height is required"),
        ("fit=cover", "width or height is required"),
        ("width=0", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=8193", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=-1", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=1.5", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=1e3", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=\u0661\u0662", "Invalid option: width is a whole number from 1 to 8192."),
        ("width=" + "9" * 200, "Invalid option: width is a whole number from 1 to 8192."),
        ("width=5000,dpr=2", "width times dpr is at most 8192."),
        ("width=1,width=2", "The option width is given twice."),
        ("width=1,fit=stretch", "Invalid option: fit is one of contain, cover, fill, inside."),
        ("width=1,gravity=up", "Invalid option: gravity is one of center, north, "),
        ("width=1,dpr=0", "Invalid option: dpr is a number from 0.1 to 4."),
        ("width=1,dpr=nan", "Invalid option: dpr is a number from 0.1 to 4."),
        ("width=1,quality=101", "Invalid option: quality is a whole number from 1 to 100."),
        ("width=1,format=svg", "Invalid option: format is one of jpeg, auto, jpg, "),
        ("width=1,blur=inf", "Invalid option: blur is a number from 0 to 100."),
        ("width=1,rotate=45", "Invalid option: rotate is one of 0, 90, 180, 270."),
        ("width=1,strip=maybe", "Invalid option: strip is one of true, 1, false, 0."),
        ("width=1," * 50, "Variant options have at most 300 letters."),
    ],
)
def test_refusal_says_what_is_possible(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PRESETS.read(text)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("width=100,height=50", " Height=50 , WIDTH=100,"),
        ("width=100,dpr=2", "width=200"),
        ("width=100,gravity=north", "width=100"),
        ("width=100,fit=cover", "width=100,fit=fill"),
        ("width=100,rotate=0,blur=0.0,strip=1,format=auto", "width=100"),
        ("width=100,format=jpeg", "width=100,format=jpg"),
        ("width=9,height=9,fit=contain,gravity=attention", "width=9,height=9,fit=contain"),
        ("thumb", "width=160,height=160,fit=cover,gravity=attention"),
        ("small,width=64", "width=64,fit=inside"),
    ],
)
def test_other_words_for_one_picture_are_the_same(one: str, other: str) -> None:
    assert PRESETS.read(one) == PRESETS.read(other)


def test_quality_of_lossless_format_makes_no_second_picture() -> None:
    plain, fine = PRESETS.read("width=8,format=png"), PRESETS.read("width=8,format=png,quality=90")
    assert plain.as_format("png") == fine.as_format("png")
    assert PRESETS.read("width=8,quality=9").as_format("webp").quality == 9


@given(
    st.fixed_dictionaries(
        {
            "width": SIDES,
            "height": SIDES,
            "fit": st.sampled_from(get_args(Fit)),
            "gravity": st.sampled_from(get_args(Gravity)),
            "dpr": st.sampled_from(["0.5", "1", "1.25"]),
            "quality": st.none() | st.integers(1, 100),
            "format": st.sampled_from(get_args(Wanted)),
            "blur": st.sampled_from(["0", "0.3", "12.5", "100"]),
            "rotate": st.sampled_from([0, 90, 180, 270]),
            "strip": st.sampled_from(["true", "false"]),
        }
    )
)
def test_options_written_out_mean_the_same(members: dict[str, object]) -> None:
    sides = [side for side in (members["width"], members["height"]) if isinstance(side, int)]
    if not sides or max(sides) * float(str(members["dpr"])) >= LONGEST_SIDE + 0.5:
        with pytest.raises(InvalidRequest):
            PRESETS.read(asked(members))
        return
    options = PRESETS.read(asked(members))
    assert PRESETS.read(str(options)) == options


@given(st.text(max_size=400))
def test_any_text_is_options_or_refused(text: str) -> None:
    try:
        options = PRESETS.read(text)
    except InvalidRequest:
        return
    assert options.width or options.height


def test_grid_has_powers_of_two_and_multiples_of_64() -> None:
    grid = [side for side in range(1, LONGEST_SIDE + 1) if on_grid(side)]
    assert grid[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert grid[-2:] == [1984, 2048]
    assert len(grid) == 38


@pytest.mark.parametrize(
    "text",
    ["thumb", "large", "medium,format=avif", "width=512,height=448", "width=64,dpr=2,rotate=90"],
)
def test_anyone_may_ask_for_presets_and_the_grid(text: str) -> None:
    PRESETS.require_allowed(PRESETS.read(text))


@pytest.mark.parametrize(
    "text",
    [
        "width=500",
        "width=512,height=3",
        "width=4096",
        "width=64,quality=9",
        "width=64,blur=1",
        "width=64,strip=false",
        "width=64,dpr=1.1",
        "thumb,quality=3",
    ],
)
def test_other_sizes_need_a_key(text: str) -> None:
    with pytest.raises(Forbidden, match=r"multiples of 64, up to 2048.*thumb, small, medium"):
        PRESETS.require_allowed(PRESETS.read(text))


def test_operator_names_presets_of_their_own() -> None:
    presets = Presets({"card": "width=333,height=111,fit=cover", "thumb": "width=99"})
    assert presets.read("thumb").width == 99
    assert presets.read("small").width == 320
    presets.require_allowed(presets.read("card"))


@pytest.mark.parametrize("given", [{"x": "colour=red"}, {"width=1": "width=1"}, {"A": "width=1"}])
def test_preset_that_means_nothing_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        Presets(given)


def test_format_alone_does_not_leave_a_preset() -> None:
    options = PRESETS.read("thumb")
    assert options.sized_alike(msgspec.structs.replace(options, format="avif"))
